//! Two ends, and evidence that stands for a TPM's: a signature over nonce and binding. What real
//! evidence is worth is shown where there is a TPM.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use attestation::{Binding, Nonce};
use attested_tls::tls::{ClientTls, KeyExchange, ServerTls, provider};
use attested_tls::{
    Appraisal, Attested, Attester, ConnectionError, Deadlines, Demand, Demands, EvidenceFuture,
    EvidenceRefused, Format, NoEvidence, Peer, Verifier, accept, connect,
};
use cert_chain::Digest32;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{DuplexStream, duplex};

/// The name of every server here.
pub(crate) const NAME: &str = "service.example";

/// An issuer of certificates for TLS.
pub(crate) struct Issuer(CertifiedIssuer<'static, KeyPair>);

impl Issuer {
    pub(crate) fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self(CertifiedIssuer::self_signed(
            params,
            KeyPair::generate()?,
        )?))
    }

    fn roots(&self) -> Result<Arc<RootCertStore>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone())?;
        Ok(Arc::new(roots))
    }

    /// A key with a certificate for this name.
    pub(crate) fn certified(&self, name: &str) -> Result<CertifiedKey> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new([name.to_owned()])?.signed_by(&key, &*self.0)?;
        let private = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let chain: Vec<CertificateDer<'static>> = vec![certificate.into()];
        Ok(CertifiedKey::from_der(
            chain,
            private,
            &provider(KeyExchange::HybridFirst),
        )?)
    }

    pub(crate) fn server(&self) -> Result<ServerTls> {
        self.server_with(self.certified(NAME)?)
    }

    /// A server with this key, which lets clients in that have no certificate.
    pub(crate) fn server_with(&self, key: CertifiedKey) -> Result<ServerTls> {
        Ok(ServerTls::new(
            key,
            WebPkiClientVerifier::builder_with_provider(
                self.roots()?,
                provider(KeyExchange::HybridFirst),
            )
            .allow_unauthenticated()
            .build()?,
            KeyExchange::HybridFirst,
        )?)
    }

    pub(crate) fn client(&self) -> Result<ClientTls> {
        Ok(ClientTls::anonymous(
            self.server_verifier()?,
            KeyExchange::HybridFirst,
        )?)
    }

    pub(crate) fn known_client(&self) -> Result<ClientTls> {
        Ok(ClientTls::with_certificate(
            self.certified("device.example")?,
            self.server_verifier()?,
            KeyExchange::HybridFirst,
        )?)
    }

    pub(crate) fn server_verifier(&self) -> Result<Arc<WebPkiServerVerifier>> {
        Ok(WebPkiServerVerifier::builder_with_provider(
            self.roots()?,
            provider(KeyExchange::HybridFirst),
        )
        .build()?)
    }
}

/// What stands for a root of trust.
pub(crate) struct Signer {
    key: Ed25519KeyPair,
    /// No evidence from now on.
    pub(crate) broken: AtomicBool,
    /// How often evidence was made.
    pub(crate) made: AtomicUsize,
}

impl Signer {
    pub(crate) fn new() -> Result<Arc<Self>> {
        let mut seed = [0; 32];
        ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut seed)
            .map_err(anyhow::Error::msg)?;
        let key = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(anyhow::Error::msg)?;
        Ok(Arc::new(Self {
            key,
            broken: AtomicBool::new(false),
            made: AtomicUsize::new(0),
        }))
    }

    pub(crate) fn sign(&self, nonce: &Nonce, binding: &Binding) -> Vec<u8> {
        self.key.sign(&statement(nonce, binding)).as_ref().to_vec()
    }

    pub(crate) fn public(&self) -> Vec<u8> {
        self.key.public_key().as_ref().to_vec()
    }
}

/// What a [`Signer`] signs.
pub(crate) fn statement(nonce: &Nonce, binding: &Binding) -> Vec<u8> {
    [nonce.as_bytes(), binding.to_string().as_bytes()].concat()
}

impl Attester for Signer {
    fn evidence(&self, _: &Demand, nonce: Nonce, binding: Binding) -> EvidenceFuture {
        self.made.fetch_add(1, Ordering::SeqCst);
        let evidence = if self.broken.load(Ordering::SeqCst) {
            Err(NoEvidence::Host)
        } else {
            Ok(self.sign(&nonce, &binding))
        };
        Box::pin(std::future::ready(evidence))
    }
}

/// Accepts what one [`Signer`] signed.
pub(crate) struct Trusting {
    pub(crate) signer: Vec<u8>,
    pub(crate) valid_for: Duration,
}

impl Trusting {
    pub(crate) fn new(signer: &Signer) -> Arc<Self> {
        Self::lasting(signer, Duration::from_secs(600))
    }

    pub(crate) fn lasting(signer: &Signer, valid_for: Duration) -> Arc<Self> {
        Arc::new(Self {
            signer: signer.public(),
            valid_for,
        })
    }
}

impl Verifier for Trusting {
    /// The nonce that was answered.
    type Result = Nonce;

    fn demand(&self) -> Demand {
        Demand::Evidence {
            formats: vec![Format::Vrot],
            policy: Digest32::of(&self.signer),
        }
    }

    fn appraise(
        &self,
        evidence: &[u8],
        nonce: &Nonce,
        binding: &Binding,
        _: &Peer,
    ) -> Result<Appraisal<Nonce>, EvidenceRefused> {
        UnparsedPublicKey::new(&ED25519, &self.signer)
            .verify(&statement(nonce, binding), evidence)
            .map_err(|_| EvidenceRefused {
                reason: "the signature is of something else".to_owned(),
            })?;
        Ok(Appraisal {
            result: nonce.clone(),
            valid_for: self.valid_for,
        })
    }
}

/// Deadlines for peers that are never slow.
pub(crate) fn deadlines() -> Deadlines {
    Deadlines {
        handshake: Duration::from_secs(20),
        attestation: Duration::from_secs(20),
        sending: Duration::from_secs(20),
    }
}

pub(crate) fn name() -> ServerName<'static> {
    ServerName::try_from(NAME).unwrap_or_else(|_| unreachable!("it is a DNS name"))
}

/// What two ends make of a connection between them.
pub(crate) async fn between<S: Demands, C: Demands>(
    server: (&ServerTls, Arc<dyn Attester>, S),
    client: (&ClientTls, Arc<dyn Attester>, C),
) -> (
    Result<Attested<S::Result>, ConnectionError>,
    Result<Attested<C::Result>, ConnectionError>,
) {
    let (ours, theirs): (DuplexStream, DuplexStream) = duplex(64 * 1024);
    tokio::join!(
        accept(ours, server.0, server.1, server.2, deadlines()),
        connect(theirs, client.0, name(), client.1, client.2, deadlines()),
    )
}
