//! What an application finds: a stream as any other.

use std::time::Duration;

use anyhow::{Context, Result};
use attested_tls::tls::{KeyExchange, ServerTls};
use attested_tls::{AttestedStream, NoDemand, Unattested};
use rustls::server::NoClientAuth;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::support::{Issuer, NAME, Signer, Trusting, between};

/// Both ends of a connection on which nothing is demanded.
async fn streams() -> Result<(AttestedStream, AttestedStream)> {
    let issuer = Issuer::new()?;
    let (server, client) = between(
        (&issuer.server()?, Arc::new(Unattested), NoDemand),
        (&issuer.client()?, Arc::new(Unattested), NoDemand),
    )
    .await;
    Ok((server?.stream, client?.stream))
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

/// Both ends compute the same binding, although the client has a certificate and the server does not
/// know of it.
#[tokio::test]
async fn a_client_whose_certificate_is_not_asked_for_has_no_identity_at_either_end() -> Result<()> {
    let issuer = Issuer::new()?;
    let service = Signer::new()?;
    let asks_for_none = ServerTls::new(
        issuer.certified(NAME)?,
        Arc::new(NoClientAuth),
        KeyExchange::HybridFirst,
    )?;
    let (server, client) = between(
        (&asks_for_none, service.clone(), NoDemand),
        (
            &issuer.known_client()?,
            Arc::new(Unattested),
            Trusting::new(&service),
        ),
    )
    .await;
    assert!(client.is_ok(), "{client:?}");
    assert!(server?.peer.identity.is_none());
    Ok(())
}

#[tokio::test]
async fn both_ends_attest_themselves_and_data_flow_in_both_directions() -> Result<()> {
    let issuer = Issuer::new()?;
    let (service, device) = (Signer::new()?, Signer::new()?);
    let (server, client) = between(
        (&issuer.server()?, service.clone(), Trusting::new(&device)),
        (
            &issuer.known_client()?,
            device.clone(),
            Trusting::new(&service),
        ),
    )
    .await;
    let (server, client) = (server?, client?);
    assert_ne!(
        server.appraisal, client.appraisal,
        "each end has its own nonce"
    );
    // 0x11ec: X25519MLKEM768; 0x0304: TLS 1.3.
    for peer in [&server.peer, &client.peer] {
        assert_eq!(
            (peer.parameters.version, peer.parameters.group),
            (0x0304, 0x11ec)
        );
    }
    assert_eq!(server.peer.parameters, client.peer.parameters);

    // Far more than all buffers hold, so each end reads while it writes.
    let data = pattern(5_000_000);
    let echo = tokio::spawn(async move {
        let (mut read, mut write) = tokio::io::split(server.stream);
        tokio::io::copy(&mut read, &mut write).await?;
        write.shutdown().await?;
        anyhow::Ok(read.unsplit(write))
    });
    let (mut read, mut write) = tokio::io::split(client.stream);
    let sent = data.clone();
    let sending = tokio::spawn(async move {
        write.write_all(&sent).await?;
        write.shutdown().await?;
        anyhow::Ok(write)
    });
    let mut received = Vec::new();
    read.read_to_end(&mut received).await?;
    assert!(received == data, "{} bytes came back", received.len());
    read.unsplit(sending.await??).ended().await?;
    echo.await??.ended().await?;
    Ok(())
}

#[tokio::test]
async fn one_direction_can_end_long_before_the_other() -> Result<()> {
    let (mut server, mut client) = streams().await?;
    client.write_all(b"a question").await?;
    client.shutdown().await?;
    let mut question = String::new();
    server.read_to_string(&mut question).await?;
    assert_eq!(question, "a question");
    for _ in 0..3 {
        server.write_all(b"answer ").await?;
        server.flush().await?;
        let mut answer = [0; 7];
        client.read_exact(&mut answer).await?;
    }
    server.shutdown().await?;
    assert_eq!(client.read(&mut [0]).await?, 0);
    client.ended().await?;
    server.ended().await?;
    Ok(())
}

#[tokio::test]
async fn a_reader_that_rests_slows_its_writer_and_loses_nothing() -> Result<()> {
    let (mut server, mut client) = streams().await?;
    let data = pattern(3_000_000);
    let sent = data.clone();
    let (tell, full) = oneshot::channel();
    let writing = tokio::spawn(async move {
        let mut written = 0;
        // Nobody reads: what is not taken within this time, nobody has room for.
        while let Ok(part) =
            timeout(Duration::from_millis(300), server.write(&sent[written..])).await
        {
            written += part?;
        }
        let _ = tell.send(written);
        server.write_all(&sent[written..]).await?;
        server.shutdown().await?;
        anyhow::Ok(server)
    });
    let before = full.await?;
    let mut received = Vec::new();
    client.read_to_end(&mut received).await?;
    let server = writing.await??;
    assert!(
        before < 1_000_000,
        "{before} bytes were taken while nobody read"
    );
    assert!(received == data, "{} bytes came", received.len());
    client.shutdown().await?;
    client.ended().await?;
    server.ended().await.context("the other end")?;
    Ok(())
}

#[tokio::test]
async fn a_stream_that_is_dropped_is_an_error_at_the_other_end() -> Result<()> {
    let (mut server, client) = streams().await?;
    drop(client);
    let error = server
        .read(&mut [0])
        .await
        .err()
        .context("an end was read")?;
    assert!(
        error.to_string().contains("its application gave it up"),
        "{error}"
    );
    Ok(())
}
