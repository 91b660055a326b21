//! Whoever stands between two ends, or plays one of them with the other's evidence, gets nowhere.

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use attestation::{Binding, Nonce};
use attested_tls::{
    Attester, CloseReason, ConnectionError, Demand, EvidenceFuture, NoDemand, Unattested, accept,
    connect,
};
use tokio::io::duplex;

use crate::support::{Issuer, Signer, Trusting, between, deadlines, name};

fn refused<T>(outcome: Result<T, ConnectionError>) -> Result<()> {
    match outcome.err().context("it was accepted")? {
        ConnectionError::Refused(_) => Ok(()),
        other => Err(other.into()),
    }
}

#[tokio::test]
async fn no_end_gets_a_stream_whose_peer_shows_nothing_or_something_else() -> Result<()> {
    let issuer = Issuer::new()?;
    let (service, other) = (Signer::new()?, Signer::new()?);
    let (server, client) = between(
        (&issuer.server()?, Arc::new(Unattested), NoDemand),
        (
            &issuer.client()?,
            Arc::new(Unattested),
            Trusting::new(&service),
        ),
    )
    .await;
    assert!(
        matches!(client, Err(ConnectionError::PeerHasNone(_))),
        "{client:?}"
    );
    assert!(
        matches!(
            server,
            Err(ConnectionError::ClosedByPeer(CloseReason::NoEvidence))
        ),
        "{server:?}"
    );
    let (server, client) = between(
        (&issuer.server()?, other, NoDemand),
        (
            &issuer.client()?,
            Arc::new(Unattested),
            Trusting::new(&service),
        ),
    )
    .await;
    refused(client)?;
    assert!(
        matches!(
            server,
            Err(ConnectionError::ClosedByPeer(CloseReason::Refused))
        ),
        "{server:?}"
    );
    Ok(())
}

/// An attester that has another end's evidence made, for the binding of the connection to that end.
struct Relaying {
    /// What the relay's own connection to the genuine service asked for and got.
    genuine: Arc<Signer>,
    upstream: Mutex<Option<Binding>>,
}

impl Attester for Relaying {
    fn evidence(&self, _: &Demand, nonce: Nonce, _: Binding) -> EvidenceFuture {
        let upstream = self
            .upstream
            .lock()
            .ok()
            .and_then(|binding| binding.clone());
        let binding = upstream.unwrap_or(Binding::None);
        Box::pin(std::future::ready(Ok(self.genuine.sign(&nonce, &binding))))
    }
}

/// Notes the binding that a genuine service computed for its connection with the relay.
struct Noting(Arc<Relaying>);

impl Attester for Noting {
    fn evidence(&self, _: &Demand, nonce: Nonce, binding: Binding) -> EvidenceFuture {
        if let Ok(mut upstream) = self.0.upstream.lock() {
            *upstream = Some(binding.clone());
        }
        Box::pin(std::future::ready(Ok(self
            .0
            .genuine
            .sign(&nonce, &binding))))
    }
}

/// The relay holds a certificate that the client accepts, as if it had stolen the service's key.
#[tokio::test]
async fn a_relay_that_terminates_tls_is_refused_whatever_evidence_it_fetches() -> Result<()> {
    let issuer = Issuer::new()?;
    let genuine = Signer::new()?;
    let relay = Arc::new(Relaying {
        genuine: genuine.clone(),
        upstream: Mutex::default(),
    });
    // The relay's connection to the service, which attests itself on it.
    let (server, upstream) = between(
        (&issuer.server()?, Arc::new(Noting(relay.clone())), NoDemand),
        (
            &issuer.client()?,
            Arc::new(Unattested),
            Trusting::new(&genuine),
        ),
    )
    .await;
    let (_server, _upstream) = (server?, upstream?);
    // The victim's connection, to the relay.
    let (relay_end, victim) = between(
        (&issuer.server()?, relay, NoDemand),
        (
            &issuer.client()?,
            Arc::new(Unattested),
            Trusting::new(&genuine),
        ),
    )
    .await;
    refused(victim)?;
    assert!(relay_end.is_err());
    Ok(())
}

/// Both ends have the same root of trust here, so only the role tells their evidence apart.
#[tokio::test]
async fn evidence_is_not_accepted_by_the_end_that_made_it() -> Result<()> {
    /// The evidence of the client, once it made some.
    type Seen = Arc<Mutex<Option<Vec<u8>>>>;
    /// Answers with the evidence that the other end made.
    struct Reflecting(Seen);
    impl Attester for Reflecting {
        fn evidence(&self, _: &Demand, _: Nonce, _: Binding) -> EvidenceFuture {
            let seen = self.0.clone();
            Box::pin(async move {
                loop {
                    if let Some(evidence) = seen.lock().ok().and_then(|seen| seen.clone()) {
                        return Ok(evidence);
                    }
                    tokio::task::yield_now().await;
                }
            })
        }
    }
    /// The victim's attester, whose evidence the other end sees.
    struct Observed {
        signer: Arc<Signer>,
        seen: Seen,
    }
    impl Attester for Observed {
        fn evidence(&self, _: &Demand, nonce: Nonce, binding: Binding) -> EvidenceFuture {
            let evidence = self.signer.sign(&nonce, &binding);
            if let Ok(mut seen) = self.seen.lock() {
                *seen = Some(evidence.clone());
            }
            Box::pin(std::future::ready(Ok(evidence)))
        }
    }
    let issuer = Issuer::new()?;
    let signer = Signer::new()?;
    let seen = Arc::new(Mutex::new(None));
    let (server, client) = between(
        (
            &issuer.server()?,
            Arc::new(Reflecting(seen.clone())),
            Trusting::new(&signer),
        ),
        (
            &issuer.client()?,
            Arc::new(Observed {
                signer: signer.clone(),
                seen,
            }),
            Trusting::new(&signer),
        ),
    )
    .await;
    refused(client)?;
    assert!(server.is_err());
    Ok(())
}

#[tokio::test]
async fn a_server_with_a_certificate_of_another_issuer_is_refused_in_the_handshake() -> Result<()> {
    let (issuer, other) = (Issuer::new()?, Issuer::new()?);
    let service = Signer::new()?;
    let (ours, theirs) = duplex(64 * 1024);
    let (server_tls, client_tls) = (other.server()?, issuer.client()?);
    let (server, client) = tokio::join!(
        accept(ours, &server_tls, service.clone(), NoDemand, deadlines()),
        connect(
            theirs,
            &client_tls,
            name(),
            Arc::new(Unattested),
            Trusting::new(&service),
            deadlines()
        ),
    );
    assert!(matches!(client, Err(ConnectionError::Io(_))), "{client:?}");
    assert!(server.is_err());
    Ok(())
}
