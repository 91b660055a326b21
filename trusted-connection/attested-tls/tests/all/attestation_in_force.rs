//! An appraisal has an end, and is made anew before that while data flow.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use attestation::{Binding, Nonce};
use attested_tls::{
    Attested, Attester, CloseReason, ConnectionError, Demand, EvidenceFuture, NoDemand, Unattested,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Issuer, Signer, Trusting, between};

/// Long enough for a new appraisal in time, on a machine that is busy with other tests.
const BRIEF: Duration = Duration::from_secs(3);

/// A service that is not asked for anything, and a client for which an appraisal of it holds so long.
async fn connected(lasting: Duration) -> Result<(Arc<Signer>, Attested<()>, Attested<Nonce>)> {
    let issuer = Issuer::new()?;
    let service = Signer::new()?;
    let lasting = Trusting::lasting(&service, lasting);
    let (server, client) = between(
        (&issuer.server()?, service.clone(), NoDemand),
        (&issuer.client()?, Arc::new(Unattested), lasting),
    )
    .await;
    Ok((service, server?, client?))
}

#[tokio::test]
async fn a_peer_is_appraised_anew_while_data_flow_and_while_nobody_reads() -> Result<()> {
    let (service, mut server, mut client) = connected(BRIEF).await?;
    let first = client.appraisal.clone();
    // The client's buffers are full for longer than an appraisal lasts.
    let flood = tokio::spawn(async move {
        server.stream.write_all(&vec![7; 2_000_000]).await?;
        server.stream.shutdown().await?;
        anyhow::Ok(server.stream)
    });
    for _ in 0..3 {
        client.appraisals.changed().await?;
        assert_ne!(client.appraisals.borrow_and_update().as_ref(), Some(&first));
    }
    let mut received = Vec::new();
    client.stream.read_to_end(&mut received).await?;
    assert_eq!(received.len(), 2_000_000);
    client.stream.shutdown().await?;
    client.stream.ended().await?;
    flood.await??.ended().await?;
    assert!(service.made.load(Ordering::SeqCst) >= 4);
    Ok(())
}

#[tokio::test]
async fn a_connection_whose_peer_has_no_new_evidence_ends_with_its_appraisal() -> Result<()> {
    let (service, server, client) = connected(BRIEF).await?;
    let (mut server, mut client) = (server.stream, client.stream);
    service.broken.store(true, Ordering::SeqCst);
    let mut buffer = [0; 16];
    let told = client.read(&mut buffer).await.err().context("data came")?;
    assert!(
        told.to_string().contains("appraisal of the peer has ended"),
        "{told}"
    );
    let told = server.read(&mut buffer).await.err().context("data came")?;
    assert!(
        told.to_string().contains("its appraisal of us has ended"),
        "{told}"
    );
    assert!(client.write(b"late").await.is_err());
    assert!(
        service.made.load(Ordering::SeqCst) >= 2,
        "it was asked anew before"
    );
    let error = server.ended().await.err().context("a good end")?;
    assert!(matches!(
        *error,
        ConnectionError::ClosedByPeer(CloseReason::AppraisalEnded)
    ));
    Ok(())
}

#[tokio::test]
async fn a_peer_that_fails_for_a_moment_is_asked_again_in_time() -> Result<()> {
    let (service, _server, mut client) = connected(BRIEF).await?;
    service.broken.store(true, Ordering::SeqCst);
    while service.made.load(Ordering::SeqCst) < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    service.broken.store(false, Ordering::SeqCst);
    client.appraisals.borrow_and_update();
    client.appraisals.changed().await?;
    Ok(())
}

#[tokio::test]
async fn data_that_an_ended_appraisal_takes_away_do_not_read_as_if_there_were_none() -> Result<()> {
    let (service, server, client) = connected(BRIEF).await?;
    let (mut server, mut client) = (server.stream, client.stream);
    service.broken.store(true, Ordering::SeqCst);
    server.write_all(b"all there is").await?;
    server.shutdown().await?;
    let error = client.broken().await;
    assert!(
        matches!(*error, ConnectionError::AppraisalEnded),
        "{error:?}"
    );
    let mut received = Vec::new();
    let outcome = client.read_to_end(&mut received).await;
    assert!(outcome.is_err(), "{received:?} was taken for everything");
    assert_eq!(received, b"");
    Ok(())
}

/// Keeps evidence back for so long.
struct Late(Arc<Signer>, Duration);

impl Attester for Late {
    fn evidence(&self, _: &Demand, nonce: Nonce, binding: Binding) -> EvidenceFuture {
        let (evidence, by) = (self.0.sign(&nonce, &binding), self.1);
        Box::pin(async move {
            tokio::time::sleep(by).await;
            Ok(evidence)
        })
    }
}

#[tokio::test]
async fn evidence_that_is_kept_back_for_as_long_as_it_holds_is_worth_nothing() -> Result<()> {
    let issuer = Issuer::new()?;
    let service = Signer::new()?;
    let lasting = Trusting::lasting(&service, Duration::from_millis(300));
    let late = Arc::new(Late(service, Duration::from_millis(400)));
    let (_server, client) = between(
        (&issuer.server()?, late, NoDemand),
        (&issuer.client()?, Arc::new(Unattested), lasting),
    )
    .await;
    assert!(
        matches!(client, Err(ConnectionError::AppraisalEnded)),
        "{client:?}"
    );
    Ok(())
}
