//! An end of an attested connection that is written anew from `docs/connection.md`, over TLS alone:
//! what attackers use, and what honest ends without one of their defences are made of.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use attestation::{Binding, Nonce};
use attested_tls::tls::{KeyExchange, provider};
use cert_chain::Digest32;
use minicbor::{Decoder, Encoder};
use ring::signature::{ED25519, UnparsedPublicKey};
use rustls::client::Resumption;
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, CommonState, ServerConfig};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::support::{Issuer, Signer, name, statement};

/// Which defences an end has in what it binds evidence to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Defences {
    /// A value that only the two ends of this connection have.
    pub(crate) exporter: bool,
    /// Its label.
    pub(crate) label: &'static str,
    /// Which end attests itself.
    pub(crate) role: bool,
    /// The request: its nonce and number.
    pub(crate) request: bool,
    /// What an attester binds its evidence to is never what a request names.
    pub(crate) no_oracle: bool,
}

impl Defences {
    pub(crate) const ALL: Self = Self {
        exporter: true,
        label: "EXPORTER-vrot-attestation-v1",
        role: true,
        request: true,
        no_oracle: true,
    };
}

pub(crate) const SERVER: u8 = 0;
pub(crate) const CLIENT: u8 = 1;

/// What passes on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Hello { demands: bool },
    Request(Request),
    Answer { sequence: u32, evidence: Vec<u8> },
    Accepted { sequence: u32 },
    Data(Vec<u8>),
    End,
    Close(u8),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) sequence: u32,
    pub(crate) nonce: Vec<u8>,
    /// A binding that evidence is to have; no request of the protocol has one.
    pub(crate) named: Option<[u8; 32]>,
}

/// One end after its handshake.
pub(crate) struct Peer {
    pub(crate) stream: TlsStream<DuplexStream>,
    /// The server's certificate: no client has one here.
    server: CertificateDer<'static>,
}

pub(crate) fn client_config(issuer: &Issuer, resumption: Resumption) -> Result<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(provider(KeyExchange::HybridFirst))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(issuer.server_verifier()?)
        .with_no_client_auth();
    config.resumption = resumption;
    Ok(config)
}

pub(crate) fn server_config(key: CertifiedKey) -> Result<ServerConfig> {
    Ok(
        ServerConfig::builder_with_provider(provider(KeyExchange::HybridFirst))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
    )
}

impl Peer {
    pub(crate) async fn client(issuer: &Issuer, io: DuplexStream) -> Result<Self> {
        let config = Arc::new(client_config(issuer, Resumption::disabled())?);
        let stream = TlsConnector::from(config).connect(name(), io).await?;
        let state: &CommonState = stream.get_ref().1;
        let server = state.peer_certificates().and_then(<[_]>::first);
        let server = server.context("a server without a certificate")?.clone();
        Ok(Self {
            stream: stream.into(),
            server: server.into_owned(),
        })
    }

    pub(crate) async fn server(key: CertifiedKey, io: DuplexStream) -> Result<Self> {
        Self::accepting(server_config(key.clone())?, key, io).await
    }

    /// A server with a configuration of its own, which shows this certificate.
    pub(crate) async fn accepting(
        config: ServerConfig,
        key: CertifiedKey,
        io: DuplexStream,
    ) -> Result<Self> {
        let server = key.cert.first().context("no certificate")?.clone();
        let stream = TlsAcceptor::from(Arc::new(config)).accept(io).await?;
        Ok(Self {
            stream: stream.into(),
            server,
        })
    }

    pub(crate) async fn send(&mut self, frame: Frame) -> Result<()> {
        self.stream.write_all(&frame.bytes()?).await?;
        Ok(self.stream.flush().await?)
    }

    pub(crate) async fn receive(&mut self) -> Result<Frame> {
        let mut message = Vec::new();
        loop {
            let kind = self.stream.read_u8().await?;
            let mut body = vec![0; self.stream.read_u16().await?.into()];
            self.stream.read_exact(&mut body).await?;
            match (kind, body.first()) {
                (0, _) => return Ok(Frame::Data(body)),
                (1, _) => return Ok(Frame::End),
                (2, _) => {}
                (3, _) => message.extend(body),
                (4, _) => {
                    message.extend(body);
                    return Frame::of_message(&message);
                }
                (5, Some(reason)) => return Ok(Frame::Close(*reason)),
                other => bail!("{other:?}"),
            }
        }
    }

    /// Says what it demands and hears what the other end does.
    pub(crate) async fn greet(&mut self, demands: bool) -> Result<bool> {
        self.send(Frame::Hello { demands }).await?;
        match self.receive().await? {
            Frame::Hello { demands } => Ok(demands),
            other => bail!("{other:?} instead of a hello"),
        }
    }

    /// The other end's request for evidence.
    pub(crate) async fn request(&mut self) -> Result<Request> {
        match self.receive().await? {
            Frame::Request(request) => Ok(request),
            other => bail!("{other:?} instead of a request"),
        }
    }

    /// Waits for the other end's evidence.
    pub(crate) async fn answer(&mut self) -> Result<Vec<u8>> {
        match self.receive().await? {
            Frame::Answer { evidence, .. } => Ok(evidence),
            other => bail!("{other:?} instead of evidence"),
        }
    }

    pub(crate) async fn send_evidence(
        &mut self,
        request: &Request,
        evidence: Vec<u8>,
    ) -> Result<()> {
        let sequence = request.sequence;
        self.send(Frame::Answer { sequence, evidence }).await
    }

    /// Takes in what comes until the other end closes.
    pub(crate) async fn until_closed(&mut self) {
        while !matches!(self.receive().await, Err(_) | Ok(Frame::Close(_))) {}
    }

    /// What evidence of an end is bound to on this connection, for this request.
    pub(crate) fn binding(
        &self,
        defences: Defences,
        attester: u8,
        request: &Request,
    ) -> Result<(Nonce, Binding)> {
        let attester = if defences.role { attester } else { SERVER };
        let (sequence, nonce) = match defences.request {
            true => (request.sequence, request.nonce.clone()),
            false => (0, vec![0; 32]),
        };
        let nonce = Nonce::new(nonce)?;
        let mut context = Encoder::new(Vec::new());
        (context.array(4)?.str("vrot attestation request v1")?)
            .u8(attester)?
            .u32(sequence)?
            .bytes(nonce.as_bytes())?;
        let exporter = match defences.exporter {
            true => self.export(defences.label, context.writer())?,
            false => [0; 32],
        };
        let (_, state) = self.stream.get_ref();
        let suite = state.negotiated_cipher_suite().context("a suite")?.suite();
        let group = state.negotiated_key_exchange_group();
        let group = group.context("a group")?.name();
        let key = ParsedCertificate::try_from(&self.server)?;
        let key = key.subject_public_key_info();
        let mut data = Encoder::new(Vec::new());
        (data.array(9)?.str("vrot connection binding v1")?)
            .u8(attester)?
            .bytes(&exporter)?
            .bytes(nonce.as_bytes())?
            .array(2)?
            .bytes(Digest32::of(key.as_ref()).as_bytes())?
            .bytes(Digest32::of(&self.server).as_bytes())?
            .null()?
            .u16(0x0304)?
            .u16(suite.into())?
            .u16(group.into())?;
        let binding = match (defences.no_oracle, request.named) {
            (false, Some(named)) => Binding::Connection(Digest32::new(named)),
            _ => Binding::Connection(Digest32::of(data.writer())),
        };
        Ok((nonce, binding))
    }

    fn export(&self, label: &str, context: &[u8]) -> Result<[u8; 32]> {
        let label = label.as_bytes();
        Ok(match &self.stream {
            TlsStream::Client(stream) => {
                let (_, connection) = stream.get_ref();
                connection.export_keying_material([0; 32], label, Some(context))?
            }
            TlsStream::Server(stream) => {
                let (_, connection) = stream.get_ref();
                connection.export_keying_material([0; 32], label, Some(context))?
            }
        })
    }

    fn role(&self) -> u8 {
        match self.stream {
            TlsStream::Server(_) => SERVER,
            TlsStream::Client(_) => CLIENT,
        }
    }

    /// This end's own evidence.
    pub(crate) fn evidence(
        &self,
        defences: Defences,
        signer: &Signer,
        request: &Request,
    ) -> Result<Vec<u8>> {
        let (nonce, binding) = self.binding(defences, self.role(), request)?;
        Ok(signer.sign(&nonce, &binding))
    }

    /// Whether this is evidence of the other end, by this signer.
    pub(crate) fn is_evidence(
        &self,
        defences: Defences,
        trusted: &Signer,
        request: &Request,
        evidence: &[u8],
    ) -> Result<bool> {
        let other = SERVER + CLIENT - self.role();
        let (nonce, binding) = self.binding(defences, other, request)?;
        let key = UnparsedPublicKey::new(&ED25519, trusted.public());
        let verified = key.verify(&statement(&nonce, &binding), evidence);
        Ok(verified.is_ok())
    }

    /// An honest end that attests itself and demands nothing.
    pub(crate) async fn attesting(mut self, defences: Defences, signer: &Signer) -> Result<()> {
        ensure!(self.greet(false).await?, "nothing is demanded");
        loop {
            match self.receive().await? {
                Frame::Request(request) => {
                    let evidence = self.evidence(defences, signer, &request)?;
                    self.send_evidence(&request, evidence).await?;
                }
                Frame::Close(_) => return Ok(()),
                _ => {}
            }
        }
    }

    /// An honest end that demands evidence, with a nonce of its own choice, and attests itself by the same
    /// signer if it is asked: whether it accepts the other end.
    pub(crate) async fn demanding(self, defences: Defences, trusted: &Signer) -> Result<bool> {
        let mut nonce = [0; 32];
        ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut nonce)
            .map_err(anyhow::Error::msg)?;
        let request = Request {
            sequence: 1,
            nonce: nonce.to_vec(),
            named: None,
        };
        self.asking(request, defences, trusted)
            .await
            .map(|(_, is)| is)
    }

    /// The same with this request, and the end itself for what follows.
    pub(crate) async fn asking(
        mut self,
        request: Request,
        defences: Defences,
        trusted: &Signer,
    ) -> Result<(Self, bool)> {
        if request.sequence == 1 {
            self.greet(true).await?;
        }
        self.send(Frame::Request(request.clone())).await?;
        loop {
            match self.receive().await? {
                Frame::Request(theirs) => {
                    let evidence = self.evidence(defences, trusted, &theirs)?;
                    self.send_evidence(&theirs, evidence).await?;
                }
                Frame::Answer { evidence, sequence } if sequence == request.sequence => {
                    let is = self.is_evidence(defences, trusted, &request, &evidence)?;
                    if is {
                        self.send(Frame::Accepted { sequence }).await?;
                    }
                    return Ok((self, is));
                }
                other => bail!("{other:?} instead of evidence"),
            }
        }
    }
}

impl Frame {
    fn bytes(&self) -> Result<Vec<u8>> {
        let mut message = Encoder::new(Vec::new());
        match self {
            Self::Hello { demands } => {
                message
                    .array(2)?
                    .u8(0)?
                    .array(1)?
                    .map(2)?
                    .u8(0)?
                    .u8(1)?
                    .u8(1)?;
                if *demands {
                    (message.array(2)?.u8(1)?.array(2)?.array(1)?.u8(1)?).bytes(&[7; 32])?;
                } else {
                    message.array(2)?.u8(0)?.array(0)?;
                }
            }
            Self::Request(request) => {
                let fields = 2 + u64::from(request.named.is_some());
                (message.array(2)?.u8(1)?.array(1)?.map(fields)?)
                    .u8(1)?
                    .u32(request.sequence)?
                    .u8(2)?
                    .bytes(&request.nonce)?;
                if let Some(named) = &request.named {
                    message.u8(3)?.bytes(named)?;
                }
            }
            Self::Answer { sequence, evidence } => {
                (message.array(2)?.u8(2)?.array(1)?.map(2)?)
                    .u8(1)?
                    .u32(*sequence)?
                    .u8(2)?
                    .array(2)?
                    .u8(0)?
                    .array(1)?
                    .bytes(evidence)?;
            }
            Self::Accepted { sequence } => {
                (message.array(2)?.u8(3)?.array(1)?.map(2)?)
                    .u8(1)?
                    .u32(*sequence)?
                    .u8(2)?
                    .u64(600_000)?;
            }
            Self::Data(data) => return frame(0, data),
            Self::End => return frame(1, &[]),
            Self::Close(reason) => return frame(5, &[*reason]),
        }
        frame(4, message.writer())
    }

    fn of_message(bytes: &[u8]) -> Result<Self> {
        let mut decoder = Decoder::new(bytes);
        decoder.array()?;
        let kind = decoder.u8()?;
        decoder.array()?;
        decoder.map()?;
        let first = decoder.u8()?;
        let sequence = decoder.u32()?;
        let second = decoder.u8()?;
        Ok(match (kind, first, second) {
            (0, 0, 1) => {
                decoder.array()?;
                let demands = decoder.u8()? == 1;
                Self::Hello { demands }
            }
            (1, 1, 2) => {
                let nonce = decoder.bytes()?.to_vec();
                let named = match decoder.position() < bytes.len() {
                    true => {
                        decoder.u8()?;
                        Some(decoder.bytes()?.try_into()?)
                    }
                    false => None,
                };
                Self::Request(Request {
                    sequence,
                    nonce,
                    named,
                })
            }
            (2, 1, 2) => {
                decoder.array()?;
                ensure!(decoder.u8()? == 0, "no evidence");
                decoder.array()?;
                let evidence = decoder.bytes()?.to_vec();
                Self::Answer { sequence, evidence }
            }
            (3, 1, 2) => Self::Accepted { sequence },
            other => bail!("{other:?}"),
        })
    }
}

fn frame(kind: u8, body: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(body.len())?.to_be_bytes();
    Ok([&[kind], &length[..], body].concat())
}
