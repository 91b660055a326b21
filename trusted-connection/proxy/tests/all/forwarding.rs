//! Data that pass through.

use std::time::Duration;

use anyhow::{Context, Result};
use connection_proxy::{Side, Traffic, forward};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Both ends of one connection.
async fn pair() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let client = TcpStream::connect(listener.local_addr()?).await?;
    Ok((client, listener.accept().await?.0))
}

type Forwarding = JoinHandle<(Result<(), connection_proxy::Broken>, Traffic)>;

/// The two far ends of a proxy, and the proxy.
async fn proxied() -> Result<(TcpStream, TcpStream, Forwarding)> {
    let (client, mut first) = pair().await?;
    let (mut second, server) = pair().await?;
    let forwarding = tokio::spawn(async move {
        let mut traffic = Traffic::default();
        let outcome = forward(&mut first, &mut second, &mut traffic).await;
        if outcome.is_err() {
            let _ = (first.set_zero_linger(), second.set_zero_linger());
        }
        (outcome, traffic)
    });
    Ok((client, server, forwarding))
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

#[tokio::test]
async fn each_direction_can_end_long_before_the_other() -> Result<()> {
    for reverse in [false, true] {
        let (client, server, forwarding) = proxied().await?;
        let (mut early, mut late) = if reverse {
            (server, client)
        } else {
            (client, server)
        };
        early.write_all(b"a question").await?;
        early.shutdown().await?;
        let mut question = String::new();
        late.read_to_string(&mut question).await?;
        assert_eq!(question, "a question");
        for _ in 0..3 {
            late.write_all(b"answer ").await?;
            let mut answer = [0; 7];
            early.read_exact(&mut answer).await?;
        }
        late.shutdown().await?;
        assert_eq!(early.read(&mut [0]).await?, 0);
        let (outcome, traffic) = forwarding.await?;
        outcome?;
        let (there, back) = if reverse { (21, 10) } else { (10, 21) };
        assert_eq!((traffic.from_first, traffic.from_second), (there, back));
    }
    Ok(())
}

#[tokio::test]
async fn a_reader_that_rests_slows_its_writer_and_loses_nothing_and_the_other_direction_goes_on()
-> Result<()> {
    let (mut client, mut server, forwarding) = proxied().await?;
    let data = pattern(24_000_000);
    let sent = data.clone();
    let (tell, full) = oneshot::channel();
    let (hear, heard) = oneshot::channel();
    let writing = tokio::spawn(async move {
        let mut written = 0;
        while let Ok(part) = timeout(
            Duration::from_millis(500),
            client.write(sent.get(written..).unwrap_or_default()),
        )
        .await
        {
            written += part?;
        }
        // Nothing is taken; the other direction is free all the same.
        let _ = tell.send(written);
        let mut word = [0; 5];
        client.read_exact(&mut word).await?;
        let _ = hear.send(word);
        client
            .write_all(sent.get(written..).unwrap_or_default())
            .await?;
        client.shutdown().await?;
        anyhow::Ok(client)
    });
    let before = full.await?;
    server.write_all(b"hello").await?;
    assert_eq!(&heard.await?, b"hello");
    let mut received = Vec::new();
    server.read_to_end(&mut received).await?;
    let client = writing.await??;
    assert!(before < data.len(), "all was taken while nobody read");
    assert!(received == data, "{} bytes came", received.len());
    drop((client, server));
    forwarding.await?.0?;
    Ok(())
}

#[tokio::test]
async fn what_breaks_off_at_one_side_does_at_the_other() -> Result<()> {
    let (client, mut server, forwarding) = proxied().await?;
    client.set_zero_linger()?;
    drop(client);
    let error = server
        .read(&mut [0])
        .await
        .err()
        .context("an end was read")?;
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let broken = forwarding.await?.0.err().context("no error")?;
    assert_eq!(broken.side, Side::First);
    Ok(())
}
