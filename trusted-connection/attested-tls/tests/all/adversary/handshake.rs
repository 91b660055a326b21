//! Attacks on the handshake: what is resumed or early is attested by nothing, and a weaker key exchange
//! is what somebody in the middle would like.

use std::io::{Read, Write};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use attested_tls::tls::{ClientTls, KeyExchange, is_hybrid, provider};
use attested_tls::{Attested, ConnectionError, NoDemand, Unattested, accept, connect};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::kx_group;
use rustls::server::ServerSessionMemoryCache;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, copy_bidirectional};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::peer::{Peer, client_config, server_config};
use super::{Scene, meanwhile, pipe};
use crate::support::{deadlines, name};

/// `{0: 1, 1: [0, []]}`: a hello without a demand, as the last part of a message.
const HELLO: &[u8] = &[4, 0, 10, 0x82, 0, 0x81, 0xa2, 0, 1, 1, 0x82, 0, 0x80];

/// A server that has what ours has not: tickets, and early data with them.
fn generous(scene: &Scene) -> Result<Arc<ServerConfig>> {
    let mut config = server_config(scene.key.clone())?;
    config.session_storage = ServerSessionMemoryCache::new(16);
    config.send_tls13_tickets = 2;
    config.max_early_data_size = 1024;
    Ok(Arc::new(config))
}

/// A client that resumes whatever it can.
fn resuming(scene: &Scene) -> Result<Arc<ClientConfig>> {
    let mut config = client_config(&scene.issuer, Resumption::in_memory_sessions(16))?;
    config.enable_early_data = true;
    Ok(Arc::new(config))
}

/// Makes a connection with early data, if the client has a ticket for that, up to the server's hello:
/// how it was made, and whether the server took the data.
async fn connect_early(
    config: Arc<ClientConfig>,
    mut io: DuplexStream,
) -> Result<(Option<HandshakeKind>, bool)> {
    let mut tls = ClientConnection::new(config, name())?;
    if let Some(mut early) = tls.early_data() {
        early.write_all(b"before any attestation")?;
    }
    let mut received = Vec::new();
    let mut is_greeted = false;
    while received.len() < HELLO.len() {
        if !tls.is_handshaking() && !is_greeted {
            tls.writer().write_all(HELLO)?;
            is_greeted = true;
        }
        let mut out = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut out)?;
        }
        io.write_all(&out).await?;
        if !out.is_empty() {
            continue;
        }
        let mut bytes = [0; 4096];
        let length = io.read(&mut bytes).await?;
        ensure!(length > 0, "the server ended the connection");
        let mut bytes = &bytes[..length];
        while !bytes.is_empty() {
            tls.read_tls(&mut bytes)?;
            let arrived = tls.process_new_packets()?.plaintext_bytes_to_read();
            let mut plain = vec![0; arrived];
            tls.reader().read_exact(&mut plain)?;
            received.extend(plain);
        }
    }
    Ok((tls.handshake_kind(), tls.is_early_data_accepted()))
}

/// How the second connection of a client that would resume the first is made.
async fn second_connection(is_ours: bool) -> Result<(Option<HandshakeKind>, bool)> {
    let scene = Scene::new()?;
    let (client, server_tls, generous) =
        (resuming(&scene)?, scene.server_tls()?, generous(&scene)?);
    let mut last = None;
    for _ in 0..2 {
        let (near, far) = pipe();
        let server = async {
            if is_ours {
                let attester = Arc::new(Unattested);
                accept(far, &server_tls, attester, NoDemand, deadlines()).await?;
            } else {
                let mut stream = TlsAcceptor::from(generous.clone()).accept(far).await?;
                stream.write_all(HELLO).await?;
                stream.flush().await?;
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
            Ok(())
        };
        last = Some(meanwhile(connect_early(client.clone(), near), server).await?);
    }
    last.context("two connections")
}

#[tokio::test]
async fn resumption_and_early_data_need_a_server_that_gives_tickets() -> Result<()> {
    assert_eq!(
        second_connection(true).await?,
        (Some(HandshakeKind::Full), false)
    );
    assert_eq!(
        second_connection(false).await?,
        (Some(HandshakeKind::Resumed), true)
    );
    Ok(())
}

/// The server gives tickets, takes them, and notes how the second connection was made.
#[tokio::test]
async fn a_server_that_would_resume_needs_a_client_that_keeps_tickets() -> Result<()> {
    for (is_ours, expected) in [(true, HandshakeKind::Full), (false, HandshakeKind::Resumed)] {
        let scene = Scene::new()?;
        let (server, ours) = (generous(&scene)?, scene.issuer.client()?);
        let other = TlsConnector::from(resuming(&scene)?);
        let mut kind = None;
        for _ in 0..2 {
            let (near, far) = pipe();
            let serving = async {
                let mut stream = TlsAcceptor::from(server.clone()).accept(far).await?;
                kind = stream.get_ref().1.handshake_kind();
                stream.write_all(HELLO).await?;
                stream.flush().await?;
                let _ = stream.read_to_end(&mut Vec::new()).await;
                Ok(())
            };
            let connecting = async {
                if is_ours {
                    let attester = Arc::new(Unattested);
                    connect(near, &ours, name(), attester, NoDemand, deadlines()).await?;
                } else {
                    let mut stream = other.connect(name(), near).await?;
                    stream.read_exact(&mut [0; HELLO.len()]).await?;
                    stream.shutdown().await?;
                }
                Ok(())
            };
            meanwhile(connecting, serving).await?;
        }
        assert_eq!(kind, Some(expected), "ours: {is_ours}");
    }
    Ok(())
}

type Ends = (
    Result<Attested<()>, ConnectionError>,
    Result<Attested<()>, ConnectionError>,
);

/// Two ends of ours with a party between them, that takes the hybrid group out of the first flight, or
/// leaves it.
async fn through_the_middle(is_stripping: bool) -> Result<Ends> {
    let scene = Scene::new()?;
    let (client_end, mut near) = pipe();
    let (mut far, server_end) = pipe();
    let middle = async {
        let mut hello = vec![0; 5];
        near.read_exact(&mut hello).await?;
        let length = u16::from_be_bytes([hello[3], hello[4]]).into();
        let mut body = vec![0; length];
        near.read_exact(&mut body).await?;
        hello.extend(body);
        let hybrid: Vec<_> = (0..hello.len() - 1)
            .filter(|at| hello[*at..].starts_with(&[0x11, 0xec]))
            .collect();
        ensure!(!hybrid.is_empty(), "it is not offered");
        for at in hybrid.into_iter().filter(|_| is_stripping) {
            // A number that stands for no group (RFC 8701).
            hello[at..at + 2].copy_from_slice(&[0x1a, 0x1a]);
        }
        far.write_all(&hello).await?;
        let _ = copy_bidirectional(&mut near, &mut far).await;
        Ok(())
    };
    let (client_tls, server_tls) = (scene.issuer.client()?, scene.server_tls()?);
    let ends = async {
        let (client, server) = (Arc::new(Unattested), Arc::new(Unattested));
        Ok(tokio::join!(
            connect(
                client_end,
                &client_tls,
                name(),
                client,
                NoDemand,
                deadlines()
            ),
            accept(server_end, &server_tls, server, NoDemand, deadlines()),
        ))
    };
    meanwhile(ends, middle).await
}

/// TLS itself is the defence, so there is nothing to leave out but the attack.
#[tokio::test]
async fn a_hybrid_offer_that_is_taken_out_on_the_way_is_noticed_by_both_ends() -> Result<()> {
    let (client, server) = through_the_middle(true).await?;
    assert!(client.is_err() && server.is_err(), "{client:?} {server:?}");
    let (client, server) = through_the_middle(false).await?;
    assert!(is_hybrid(&client?.peer.parameters) && is_hybrid(&server?.peer.parameters));
    Ok(())
}

/// A server that has no hybrid key exchange, or says so.
#[tokio::test]
async fn a_server_without_hybrid_key_exchange_needs_a_client_that_offers_others() -> Result<()> {
    for key_exchange in [KeyExchange::HybridOnly, KeyExchange::HybridFirst] {
        let scene = Scene::new()?;
        let without = CryptoProvider {
            kx_groups: vec![kx_group::X25519],
            ..CryptoProvider::clone(&provider(KeyExchange::HybridFirst))
        };
        let config = ServerConfig::builder_with_provider(Arc::new(without))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(server_config(scene.key.clone())?.cert_resolver);
        let (near, far) = pipe();
        let server = async {
            let mut peer = Peer::accepting(config, scene.key.clone(), far).await?;
            peer.greet(false).await?;
            peer.until_closed().await;
            Ok(())
        };
        let tls = ClientTls::anonymous(scene.issuer.server_verifier()?, key_exchange)?;
        let connecting = async {
            let attester = Arc::new(Unattested);
            Ok(connect(near, &tls, name(), attester, NoDemand, deadlines()).await)
        };
        match (key_exchange, meanwhile(connecting, server).await?) {
            (KeyExchange::HybridOnly, Err(ConnectionError::Io(_))) => {}
            (KeyExchange::HybridFirst, Ok(open)) => assert!(!is_hybrid(&open.peer.parameters)),
            other => anyhow::bail!("{other:?}"),
        }
    }
    Ok(())
}
