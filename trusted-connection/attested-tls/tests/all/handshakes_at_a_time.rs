//! Keys whose signatures take their time, as those of a TPM do: they hold few threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use attested_tls::tls::{KeyExchange, ServerTls, provider};
use attested_tls::{ConnectionError, Deadlines, NoDemand, Stage, Unattested, accept};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::kx_group;
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{ClientConfig, HandshakeKind, SignatureAlgorithm, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::support::{Issuer, deadlines, name};

/// A key that signs while nobody holds `held`, and blocks its thread until then.
#[derive(Clone, Debug)]
struct SlowKey {
    key: Arc<dyn SigningKey>,
    held: Arc<Mutex<()>>,
    asked: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct SlowSigner {
    key: SlowKey,
    signer: Box<dyn Signer>,
}

impl SigningKey for SlowKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let signer = self.key.choose_scheme(offered)?;
        let key = self.clone();
        Some(Box::new(SlowSigner { key, signer }))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.key.algorithm()
    }
}

impl Signer for SlowSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.key.asked.fetch_add(1, Ordering::SeqCst);
        tokio::task::block_in_place(|| drop(self.key.held.blocking_lock()));
        self.signer.sign(message)
    }

    fn scheme(&self) -> SignatureScheme {
        self.signer.scheme()
    }
}

/// A server that works on so many handshakes at a time, and its key.
fn server(issuer: &Issuer, handshakes: usize) -> Result<(ServerTls, SlowKey)> {
    let CertifiedKey { cert, key, .. } = issuer.certified(crate::support::NAME)?;
    let key = SlowKey {
        key,
        held: Arc::default(),
        asked: Arc::default(),
    };
    let tls = issuer.server_with(CertifiedKey::new(cert, Arc::new(key.clone())))?;
    Ok((tls.at_a_time(Arc::new(Semaphore::new(handshakes))), key))
}

/// Accepts one connection; `None` for one that is open.
fn accepting(
    io: DuplexStream,
    tls: &ServerTls,
    deadlines: Deadlines,
) -> JoinHandle<Option<ConnectionError>> {
    let tls = tls.clone();
    tokio::spawn(async move {
        let accepted = accept(io, &tls, Arc::new(Unattested), NoDemand, deadlines);
        accepted.await.err()
    })
}

/// A client that says nothing behind its handshake.
fn connector(issuer: &Issuer, provider: Arc<CryptoProvider>) -> Result<TlsConnector> {
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(issuer.server_verifier()?)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// A client whose first key share is of a group that the server does not have.
fn asked_again() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        kx_groups: vec![kx_group::SECP384R1, kx_group::X25519],
        ..CryptoProvider::clone(&provider(KeyExchange::HybridFirst))
    })
}

async fn until(what: impl Fn() -> bool) -> Result<()> {
    let polling = async {
        while !what() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    Ok(timeout(Duration::from_secs(60), polling).await?)
}

/// Whether a client has to send a second `ClientHello` makes no difference.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_wait_for_the_key_end_at_their_deadline_and_hold_no_thread() -> Result<()> {
    for (clients, kind) in [
        (provider(KeyExchange::HybridFirst), HandshakeKind::Full),
        (asked_again(), HandshakeKind::FullWithHelloRetryRequest),
    ] {
        let issuer = Issuer::new()?;
        let (tls, key) = server(&issuer, 2)?;
        let connector = connector(&issuer, clients)?;
        let held = key.held.lock().await;
        let connect = |deadlines| {
            let (ours, theirs) = duplex(64 * 1024);
            let accepting = accepting(ours, &tls, deadlines);
            let connector = connector.clone();
            let client = tokio::spawn(async move { connector.connect(name(), theirs).await });
            (accepting, client)
        };
        let first = [connect(deadlines()), connect(deadlines())];
        until(|| key.asked.load(Ordering::SeqCst) == 2).await?;
        let hasty = Deadlines {
            handshake: Duration::from_millis(100),
            ..deadlines()
        };
        for _ in 0..4 {
            let (waiting, _client) = connect(hasty);
            let ended = timeout(Duration::from_secs(60), waiting).await??;
            let slow = matches!(ended, Some(ConnectionError::TooSlow(Stage::Handshake)));
            assert!(slow, "{ended:?}");
        }
        assert_eq!(key.asked.load(Ordering::SeqCst), 2);
        // Those that were worked on go on; and there is room for another one.
        drop(held);
        for (_, client) in first {
            let client = client.await??;
            assert_eq!(client.get_ref().1.handshake_kind(), Some(kind));
        }
        let (_, client) = connect(deadlines());
        client.await??;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_stops_in_its_handshake_keeps_no_other_waiting() -> Result<()> {
    let issuer = Issuer::new()?;
    let (tls, _) = server(&issuer, 1)?;
    // No peer is given up, which would let others go on.
    let patient = Deadlines {
        handshake: Duration::from_secs(3600),
        ..deadlines()
    };
    let connector = connector(&issuer, provider(KeyExchange::HybridFirst))?;
    // Nothing; the beginning of a handshake; and all of it but the client's last word.
    let mut stopped = Vec::new();
    for said in 0..3usize {
        let (ours, mut theirs) = duplex(64 * 1024);
        let accepting = accepting(ours, &tls, patient);
        let hello = client_hello(&connector).await?;
        let said = hello.get(..hello.len() * said / 2).context("a hello")?;
        theirs.write_all(said).await?;
        stopped.push((accepting, theirs));
    }
    let (_, last) = stopped.last_mut().context("three")?;
    timeout(Duration::from_secs(60), last.read_exact(&mut [0])).await??;

    let (ours, theirs) = duplex(64 * 1024);
    let _accepting = accepting(ours, &tls, patient);
    let connecting = connector.connect(name(), theirs);
    timeout(Duration::from_secs(60), connecting).await??;
    Ok(())
}

/// What a client says first.
async fn client_hello(connector: &TlsConnector) -> Result<Vec<u8>> {
    let (theirs, mut captured) = duplex(64 * 1024);
    let connecting = connector.connect(name(), theirs);
    let mut hello = vec![0; 16 * 1024];
    let length = tokio::select! {
        _ = connecting => anyhow::bail!("nobody answered"),
        length = captured.read(&mut hello) => length?,
    };
    hello.truncate(length);
    Ok(hello)
}
