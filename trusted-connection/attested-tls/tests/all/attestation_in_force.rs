//! An appraisal has an end, and is made anew before that while data flow.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use attested_tls::{CloseReason, ConnectionError, NoDemand, Unattested};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Issuer, Signer, Trusting, between};

#[tokio::test]
async fn a_peer_is_appraised_anew_while_data_flow_and_while_nobody_reads() -> Result<()> {
    let issuer = Issuer::new()?;
    let service = Signer::new()?;
    let lasting = Trusting::lasting(&service, Duration::from_millis(600));
    let (server, client) = between(
        (&issuer.server()?, service.clone(), NoDemand),
        (&issuer.client()?, Arc::new(Unattested), lasting),
    )
    .await;
    let (mut server, mut client) = (server?, client?);
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
    let issuer = Issuer::new()?;
    let service = Signer::new()?;
    let lasting = Trusting::lasting(&service, Duration::from_millis(700));
    let (server, client) = between(
        (&issuer.server()?, service.clone(), NoDemand),
        (&issuer.client()?, Arc::new(Unattested), lasting),
    )
    .await;
    let (mut server, mut client) = (server?.stream, client?.stream);
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
    let issuer = Issuer::new()?;
    let service = Signer::new()?;
    let lasting = Trusting::lasting(&service, Duration::from_secs(2));
    let (server, client) = between(
        (&issuer.server()?, service.clone(), NoDemand),
        (&issuer.client()?, Arc::new(Unattested), lasting),
    )
    .await;
    let (_server, mut client) = (server?, client?);
    service.broken.store(true, Ordering::SeqCst);
    while service.made.load(Ordering::SeqCst) < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    service.broken.store(false, Ordering::SeqCst);
    client.appraisals.borrow_and_update();
    client.appraisals.changed().await?;
    Ok(())
}
