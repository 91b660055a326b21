//! Connections that are taken, refused and ended.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use connection_proxy::{Accepted, Handler, Limits, Stop, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Keeps connections that say a word, and sends everything back.
#[derive(Default)]
struct Echo {
    refused: AtomicUsize,
}

impl Handler for Echo {
    async fn handle(&self, mut connection: Accepted) {
        let mut word = [0];
        if connection.stream.read_exact(&mut word).await.is_err() || !connection.place.keep() {
            return;
        }
        let (mut read, mut write) = connection.stream.split();
        let echo = async {
            write.write_all(&word).await?;
            copy(&mut read, &mut write).await
        };
        tokio::select! {
            _ = echo => {}
            () = connection.stop.closing() => {}
        }
    }

    fn refuse(&self, _: TcpStream) {
        self.refused.fetch_add(1, Ordering::SeqCst);
    }
}

struct Served {
    address: SocketAddr,
    stop: Stop,
    echo: Arc<Echo>,
    serving: JoinHandle<()>,
}

async fn served(limits: Limits, drain: Duration) -> Result<Served> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let stop = Stop::after(drain);
    let echo = Arc::<Echo>::default();
    let (theirs, handler) = (stop.clone(), Arc::clone(&echo));
    let serving = tokio::spawn(async move { serve(listener, limits, &theirs, handler).await });
    Ok(Served {
        address,
        stop,
        echo,
        serving,
    })
}

/// A connection that was kept.
async fn talking(address: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"x").await?;
    stream.read_exact(&mut [0]).await?;
    Ok(stream)
}

#[tokio::test]
async fn silent_connections_give_way_and_those_that_talk_stay() -> Result<()> {
    let limits = Limits {
        connections: 4,
        of_a_peer: 4,
    };
    let served = served(limits, Duration::ZERO).await?;
    let mut kept = talking(served.address).await?;
    let mut silent = Vec::new();
    for _ in 0..6 {
        silent.push(TcpStream::connect(served.address).await?);
        sleep(Duration::from_millis(20)).await;
    }
    for stream in silent.iter_mut().take(3) {
        let read = timeout(Duration::from_secs(20), stream.read(&mut [0])).await;
        assert_eq!(read.context("the oldest did not give way")??, 0);
    }
    kept.write_all(b"y").await?;
    assert_eq!(kept.read(&mut [0]).await?, 1);
    // Three more that talk; then there is no place for anybody.
    let mut others = Vec::new();
    for _ in 0..3 {
        others.push(talking(served.address).await?);
    }
    assert!(talking(served.address).await.is_err());
    assert_eq!(served.echo.refused.load(Ordering::SeqCst), 1);
    // A place that was given back is free again.
    others.pop();
    let again = async {
        while talking(served.address).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(20), again).await?;
    Ok(())
}

#[tokio::test]
async fn at_the_end_open_connections_have_their_time_and_no_more() -> Result<()> {
    let limits = Limits {
        connections: 10,
        of_a_peer: 10,
    };
    let served = served(limits, Duration::from_secs(1)).await?;
    let mut ends = talking(served.address).await?;
    let mut stays = talking(served.address).await?;
    let begin = Instant::now();
    served.stop.stop();
    let refused = async {
        while TcpStream::connect(served.address).await.is_ok() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(20), refused).await?;
    ends.write_all(b"still served").await?;
    ends.shutdown().await?;
    let mut last = String::new();
    ends.read_to_string(&mut last).await?;
    assert_eq!(last, "still served");
    assert_eq!(stays.read(&mut [0]).await?, 0);
    assert!(begin.elapsed() >= Duration::from_secs(1), "it had its time");
    served.serving.await?;
    Ok(())
}

#[tokio::test]
async fn without_open_connections_the_end_comes_at_once() -> Result<()> {
    let limits = Limits {
        connections: 10,
        of_a_peer: 10,
    };
    let served = served(limits, Duration::from_secs(3600)).await?;
    drop(talking(served.address).await?);
    served.stop.stop();
    timeout(Duration::from_secs(20), served.serving).await??;
    Ok(())
}
