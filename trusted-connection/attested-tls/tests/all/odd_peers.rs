//! Peers that keep to TLS and do what few do: what of it the protocol allows is served, and the rest gets a
//! defined end.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use attested_tls::tls::{ClientTls, KeyExchange, ServerTls, is_hybrid, provider};
use attested_tls::{
    Attested, ConnectionError, NoDemand, ProtocolError, Unattested, accept, connect,
};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::kx_group;
use rustls::server::WebPkiClientVerifier;
use rustls::{HandshakeKind, NamedGroup, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::timeout;
use tokio_rustls::TlsStream;

use crate::adversary::peer::{Defences, Frame, Peer, Request, server_config};
use crate::support::{Issuer, NAME, Signer, Trusting, deadlines, name};

/// Longer than any deadline of an end.
const PATIENCE: Duration = Duration::from_secs(40);

/// `{0: 1, 1: [0, []]}`: a hello without a demand, as the last part of a message.
const HELLO: &[u8] = &[4, 0, 10, 0x82, 0, 0x81, 0xa2, 0, 1, 1, 0x82, 0, 0x80];

/// A server of ours that demands nothing, and how its connection ends.
async fn serve(issuer: &Issuer, io: DuplexStream) -> Result<Result<(), Arc<ConnectionError>>> {
    let (tls, attester) = (issuer.server()?, Arc::new(Unattested));
    match accept(io, &tls, attester, NoDemand, deadlines()).await {
        Ok(attested) => Ok(attested.stream.ended().await),
        Err(error) => Ok(Err(Arc::new(error))),
    }
}

fn protocol(outcome: Result<(), Arc<ConnectionError>>) -> Result<ProtocolError> {
    match outcome.err().context("it was taken")?.as_ref() {
        ConnectionError::Protocol(error) => Ok(error.clone()),
        other => bail!("{other:?}"),
    }
}

async fn send_byte_by_byte(peer: &mut Peer, bytes: &[u8]) -> Result<()> {
    for byte in bytes {
        peer.stream.write_all(&[*byte]).await?;
        peer.stream.flush().await?;
    }
    Ok(())
}

/// Each byte in a TLS record of its own, through all that a connection has.
#[tokio::test]
async fn a_peer_that_sends_byte_by_byte_is_understood() -> Result<()> {
    let issuer = Issuer::new()?;
    let (ours, theirs) = duplex(1 << 16);
    let (server_tls, attester) = (issuer.server()?, Arc::new(Unattested));
    let peer = async {
        let mut peer = Peer::client(&issuer, theirs).await?;
        // Data, their end, and once the server has closed, a close.
        let data = [&[0, 0, 5][..], b"hello", &[1, 0, 0]].concat();
        send_byte_by_byte(&mut peer, &[HELLO, &data].concat()).await?;
        peer.until_closed().await;
        send_byte_by_byte(&mut peer, &[5, 0, 1, 0]).await
    };
    let server = async {
        let attested = accept(ours, &server_tls, attester, NoDemand, deadlines()).await?;
        let Attested { mut stream, .. } = attested;
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await?;
        stream.shutdown().await?;
        anyhow::Ok((received, stream.ended().await))
    };
    let (outcome, ()) = timeout(PATIENCE, async { tokio::try_join!(server, peer) }).await??;
    assert_eq!(outcome.0, b"hello");
    assert!(outcome.1.is_ok(), "{:?}", outcome.1);
    Ok(())
}

/// What a device makes of a server that attests itself by `answer`.
async fn device_with<F>(
    answer: impl FnOnce(Peer, Request, Arc<Signer>) -> F,
) -> Result<ProtocolError>
where
    F: Future<Output = Result<()>>,
{
    let issuer = Issuer::new()?;
    let service = Signer::new()?;
    let (ours, theirs) = duplex(1 << 16);
    let (tls, key) = (issuer.client()?, issuer.certified(NAME)?);
    let server = async {
        let mut peer = Peer::server(key, theirs).await?;
        peer.greet(false).await?;
        let request = peer.request().await?;
        answer(peer, request, service.clone()).await
    };
    let device = async {
        let (attester, trusting) = (Arc::new(Unattested), Trusting::new(&service));
        let outcome = match connect(ours, &tls, name(), attester, trusting, deadlines()).await {
            Ok(attested) => attested.stream.ended().await,
            Err(error) => Err(Arc::new(error)),
        };
        protocol(outcome)
    };
    let (error, ()) = timeout(PATIENCE, async { tokio::try_join!(device, server) }).await??;
    Ok(error)
}

#[tokio::test]
async fn a_second_answer_to_one_request_ends_the_connection() -> Result<()> {
    let error = device_with(|mut peer, request, service| async move {
        let evidence = peer.evidence(Defences::ALL, &service, &request)?;
        peer.send_evidence(&request, evidence.clone()).await?;
        peer.send_evidence(&request, evidence).await?;
        peer.until_closed().await;
        Ok(())
    })
    .await?;
    assert_eq!(error, ProtocolError::OutOfTurn("an answer"));
    Ok(())
}

#[tokio::test]
async fn an_answer_to_a_request_that_was_not_made_ends_the_connection() -> Result<()> {
    let error = device_with(|mut peer, request, service| async move {
        let evidence = peer.evidence(Defences::ALL, &service, &request)?;
        let other = Request {
            sequence: request.sequence + 1,
            ..request
        };
        peer.send_evidence(&other, evidence).await?;
        peer.until_closed().await;
        Ok(())
    })
    .await?;
    assert_eq!(
        error,
        ProtocolError::OutOfTurn("an answer to another request")
    );
    Ok(())
}

/// TLS says that nothing more comes, where evidence is waited for.
#[tokio::test]
async fn an_end_of_tls_in_the_middle_of_the_attestation_is_told_as_one() -> Result<()> {
    let error = device_with(|mut peer, _, _| async move {
        peer.stream.shutdown().await?;
        peer.until_closed().await;
        Ok(())
    })
    .await?;
    assert_eq!(error, ProtocolError::Truncated);
    Ok(())
}

/// What a service makes of a client that demands evidence, gets it, and then sends these frames.
async fn service_after_its_answer(frames: Vec<Frame>) -> Result<ProtocolError> {
    let issuer = Issuer::new()?;
    let service = Signer::new()?;
    let (ours, theirs) = duplex(1 << 16);
    let tls = issuer.server()?;
    let client = async {
        let mut peer = Peer::client(&issuer, theirs).await?;
        peer.greet(true).await?;
        let request = Request {
            sequence: 1,
            nonce: vec![7; 32],
            named: None,
        };
        peer.send(Frame::Request(request)).await?;
        peer.answer().await?;
        for frame in frames {
            peer.send(frame).await?;
        }
        peer.until_closed().await;
        Ok(())
    };
    let serving = async {
        let attester = service.clone();
        let outcome = match accept(ours, &tls, attester, NoDemand, deadlines()).await {
            Ok(attested) => attested.stream.ended().await,
            Err(error) => Err(Arc::new(error)),
        };
        protocol(outcome)
    };
    let (error, ()) = timeout(PATIENCE, async { tokio::try_join!(serving, client) }).await??;
    Ok(error)
}

#[tokio::test]
async fn data_of_a_peer_that_has_not_accepted_us_end_the_connection() -> Result<()> {
    let error = service_after_its_answer(vec![Frame::Data(b"data".to_vec())]).await?;
    assert_eq!(error, ProtocolError::EarlyData);
    Ok(())
}

#[tokio::test]
async fn an_answer_is_accepted_once() -> Result<()> {
    let accepted = Frame::Accepted { sequence: 1 };
    let error = service_after_its_answer(vec![accepted.clone(), accepted]).await?;
    assert_eq!(error, ProtocolError::OutOfTurn("an acceptance"));
    Ok(())
}

/// The answer cannot be sent any more: the connection ends as it would have, and no later.
#[tokio::test]
async fn a_request_while_the_connection_closes_keeps_it_from_nothing() -> Result<()> {
    let issuer = Issuer::new()?;
    let service = Signer::new()?;
    let (ours, theirs) = duplex(1 << 16);
    let tls = issuer.server()?;
    let client = async {
        let peer = Peer::client(&issuer, theirs).await?;
        let request = Request {
            sequence: 1,
            nonce: vec![7; 32],
            named: None,
        };
        let (mut peer, is_genuine) = peer.asking(request, Defences::ALL, &service).await?;
        ensure!(is_genuine, "it is genuine, and was accepted");
        peer.send(Frame::End).await?;
        peer.until_closed().await;
        // Longer than requests have to be apart.
        tokio::time::sleep(Duration::from_millis(700)).await;
        let request = Request {
            sequence: 2,
            nonce: vec![8; 32],
            named: None,
        };
        // Some seconds later the server would have ended its side.
        let _ = peer.send(Frame::Request(request)).await;
        anyhow::Ok(peer)
    };
    let serving = async {
        let attester = service.clone();
        let attested = accept(ours, &tls, attester, NoDemand, deadlines()).await?;
        let mut stream = attested.stream;
        stream.shutdown().await?;
        anyhow::Ok(stream.ended().await)
    };
    let both = async { tokio::try_join!(serving, client) };
    let (outcome, _peer) = timeout(PATIENCE, both).await??;
    assert!(outcome.is_ok(), "{outcome:?}");
    Ok(())
}

/// The exporter stays as it is, whatever keys data are encrypted with.
#[tokio::test]
async fn evidence_is_bound_to_a_connection_whose_keys_were_updated() -> Result<()> {
    let error = device_with(|mut peer, request, service| async move {
        update_keys(&mut peer.stream, 3).await?;
        let evidence = peer.evidence(Defences::ALL, &service, &request)?;
        peer.send_evidence(&request, evidence).await?;
        let Frame::Accepted { .. } = peer.receive().await? else {
            bail!("the evidence is genuine");
        };
        update_keys(&mut peer.stream, 3).await?;
        peer.send(Frame::Accepted { sequence: 1 }).await?;
        peer.until_closed().await;
        Ok(())
    })
    .await?;
    // It was understood with the new keys.
    assert_eq!(error, ProtocolError::OutOfTurn("an acceptance"));
    Ok(())
}

#[tokio::test]
async fn a_flood_of_key_updates_ends_the_connection() -> Result<()> {
    let issuer = Issuer::new()?;
    let (ours, theirs) = duplex(1 << 16);
    let peer = async {
        let mut peer = Peer::client(&issuer, theirs).await?;
        peer.stream.write_all(HELLO).await?;
        // The server gives up in the middle.
        let _ = update_keys(&mut peer.stream, 10_000).await;
        peer.until_closed().await;
        anyhow::Ok(())
    };
    let both = async { tokio::try_join!(serve(&issuer, ours), peer) };
    let (outcome, ()) = timeout(PATIENCE, both).await??;
    let error = outcome.err().context("it was taken")?;
    assert!(matches!(&*error, ConnectionError::Io(_)), "{error:?}");
    Ok(())
}

/// Each update asks for one in return.
async fn update_keys(stream: &mut TlsStream<DuplexStream>, times: usize) -> Result<()> {
    for _ in 0..times {
        match stream {
            TlsStream::Client(stream) => stream.get_mut().1.refresh_traffic_keys()?,
            TlsStream::Server(stream) => stream.get_mut().1.refresh_traffic_keys()?,
        }
        stream.flush().await?;
    }
    Ok(())
}

/// A server that has but one curve, of which the client's first message has no share.
#[tokio::test]
async fn a_handshake_that_was_asked_to_begin_again_is_attested_with_its_own_group() -> Result<()> {
    let issuer = Issuer::new()?;
    let service = Signer::new()?;
    let key = issuer.certified(NAME)?;
    let one_curve = CryptoProvider {
        kx_groups: vec![kx_group::SECP256R1],
        ..CryptoProvider::clone(&provider(KeyExchange::HybridFirst))
    };
    let config = ServerConfig::builder_with_provider(Arc::new(one_curve))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(server_config(key.clone())?.cert_resolver);
    for key_exchange in [KeyExchange::HybridFirst, KeyExchange::HybridOnly] {
        let (ours, theirs) = duplex(1 << 16);
        let server = async {
            let peer = Peer::accepting(config.clone(), key.clone(), theirs).await;
            let Ok(peer) = peer else {
                return Ok(None);
            };
            let kind = peer.stream.get_ref().1.handshake_kind();
            peer.attesting(Defences::ALL, &service).await?;
            Ok(kind)
        };
        let tls = ClientTls::anonymous(issuer.server_verifier()?, key_exchange)?;
        let device = async {
            let (attester, trusting) = (Arc::new(Unattested), Trusting::new(&service));
            let attested = connect(ours, &tls, name(), attester, trusting, deadlines()).await;
            anyhow::Ok(attested.map(|attested| attested.peer.parameters))
        };
        let (device, kind) =
            timeout(PATIENCE, async { tokio::try_join!(device, server) }).await??;
        match key_exchange {
            KeyExchange::HybridFirst => {
                let parameters = device?;
                assert_eq!(kind, Some(HandshakeKind::FullWithHelloRetryRequest));
                assert_eq!(parameters.group, u16::from(NamedGroup::secp256r1));
                assert!(!is_hybrid(&parameters));
            }
            KeyExchange::HybridOnly => {
                assert!(matches!(device, Err(ConnectionError::Io(_))), "{device:?}");
                assert_eq!(kind, None);
            }
        }
    }
    Ok(())
}

/// A client that has a certificate, and a server that asks for none: both ends bind evidence to a client
/// without identity.
#[tokio::test]
async fn a_certificate_that_was_not_asked_for_is_not_part_of_the_binding() -> Result<()> {
    let issuer = Issuer::new()?;
    let service = Signer::new()?;
    let server_tls = ServerTls::new(
        issuer.certified(NAME)?,
        WebPkiClientVerifier::no_client_auth(),
        KeyExchange::HybridFirst,
    )?;
    let client_tls = issuer.known_client()?;
    let (server, client) = crate::support::between(
        (&server_tls, service.clone(), NoDemand),
        (&client_tls, Arc::new(Unattested), Trusting::new(&service)),
    )
    .await;
    client?;
    assert!(server?.peer.identity.is_none());
    Ok(())
}

/// A client with a certificate of another issuer: no connection, rather than one without identity.
#[tokio::test]
async fn a_clients_certificate_of_a_stranger_is_refused_in_the_handshake() -> Result<()> {
    let (issuer, stranger) = (Issuer::new()?, Issuer::new()?);
    let (server_tls, key) = (issuer.server()?, stranger.certified("device.example")?);
    let verifier = issuer.server_verifier()?;
    let client_tls = ClientTls::with_certificate(key, verifier, KeyExchange::HybridFirst)?;
    let (ours, theirs) = duplex(1 << 16);
    let (server, client) = tokio::join!(
        accept(
            ours,
            &server_tls,
            Arc::new(Unattested),
            NoDemand,
            deadlines()
        ),
        connect(
            theirs,
            &client_tls,
            name(),
            Arc::new(Unattested),
            NoDemand,
            deadlines()
        ),
    );
    assert!(matches!(server, Err(ConnectionError::Io(_))), "{server:?}");
    assert!(client.is_err());
    Ok(())
}

/// The parts of a record that nobody of ours sends.
#[tokio::test]
async fn what_is_no_tls_at_all_costs_the_connection_alone() -> Result<()> {
    let issuer = Issuer::new()?;
    for bytes in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0x16, 3, 1, 0xff, 0xff],
        vec![0x17; 100],
        // An alert in the place of a hello: unexpected_message.
        vec![0x15, 3, 3, 0, 2, 2, 10],
    ] {
        let (ours, mut theirs) = duplex(1 << 16);
        let peer = async {
            theirs.write_all(&bytes).await?;
            theirs.shutdown().await?;
            let _ = theirs.read_to_end(&mut Vec::new()).await;
            anyhow::Ok(())
        };
        let both = async { tokio::try_join!(serve(&issuer, ours), peer) };
        let (outcome, ()) = timeout(PATIENCE, both).await??;
        let error = outcome.err().context("it was taken")?;
        let is_io = matches!(
            &*error,
            ConnectionError::Io(_) | ConnectionError::Protocol(ProtocolError::Truncated)
        );
        assert!(is_io, "{error:?}");
    }
    Ok(())
}
