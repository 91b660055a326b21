//! Connections and paths: everything that is served is read with GET.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cert_chain::VrotId;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::access::{self, Admitted};
use crate::follow::Follower;
use crate::hub::Hub;
use crate::listen::{Listen, ListenError, Listener};
use crate::manager::{Manager, ManagerError};
use crate::places::{Place, Places};
use crate::response::{self, Answer};
use crate::stream::Stream;
use crate::token::Token;
use crate::{assets, chain};

/// The page of some hosts, where it is listened for.
#[derive(Debug)]
pub struct Page {
    listener: Listener,
    at: Listen,
    shared: Arc<Shared>,
    /// Within this time a request's head must be there.
    head: Duration,
}

#[derive(Debug)]
struct Shared {
    token: Token,
    managers: Vec<Manager>,
    hub: Arc<Hub>,
}

/// Pages at a time.
const PAGES: usize = 32;
/// For the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// Of a request; the page's have some 700 bytes.
const BUFFER: usize = 16 * 1024;
/// After a connection could not be accepted, e.g. for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);
const STREAM: &str = "/api/stream";
const CHAINS: &str = "/api/hosts/";

impl Page {
    /// Listens for browsers. The managers are those that listen at `sockets`.
    pub async fn open(
        listen: &Listen,
        sockets: &[PathBuf],
        token: Token,
    ) -> Result<Self, ListenError> {
        let (listener, at) = listen.open().await?;
        let shared = Shared {
            token,
            managers: sockets.iter().map(|socket| Manager::new(socket)).collect(),
            hub: Hub::new(sockets),
        };
        Ok(Self {
            listener,
            at,
            shared: Arc::new(shared),
            head: HEAD,
        })
    }

    /// Where the page is, with the port that was free.
    pub fn at(&self) -> &Listen {
        &self.at
    }

    /// Serves until it is dropped.
    pub async fn serve(self) -> Infallible {
        let mut followers = JoinSet::new();
        for (host, manager) in self.shared.managers.iter().enumerate() {
            let follower = Follower {
                manager: manager.clone(),
                host,
                hub: Arc::clone(&self.shared.hub),
            };
            followers.spawn(follower.follow());
        }
        let places = Places::new();
        let mut connections = JoinSet::new();
        loop {
            let shared = Arc::clone(&self.shared);
            match &self.listener {
                Listener::Loopback(tcp) => {
                    let Ok((stream, _)) = tcp.accept().await else {
                        sleep(PAUSE).await;
                        continue;
                    };
                    // Lines are small, and none waits for the next one.
                    let _ = stream.set_nodelay(true);
                    connections.spawn(connection(shared, stream, places.enter(), self.head));
                }
                Listener::Socket(socket) => {
                    let Ok((stream, _)) = socket.accept().await else {
                        sleep(PAUSE).await;
                        continue;
                    };
                    connections.spawn(connection(shared, stream, places.enter(), self.head));
                }
            }
            while connections.try_join_next().is_some() {}
        }
    }
}

async fn connection(
    shared: Arc<Shared>,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    place: Place,
    head: Duration,
) {
    let service = service_fn(|request: Request<Incoming>| {
        let (shared, place) = (&shared, &place);
        async move { Ok::<_, Infallible>(shared.answer(&request, place).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // One that ends early is the browser's business.
        _ = served => {}
        () = place.gave_way() => {}
    }
}

impl Shared {
    async fn answer(&self, request: &Request<Incoming>, place: &Place) -> Answer {
        if let Err(refusal) = access::check_host(request) {
            return response::refused(refusal);
        }
        if request.method() != Method::GET {
            let detail = "this page only looks: it is read with GET";
            return response::problem(StatusCode::METHOD_NOT_ALLOWED, "method", detail);
        }
        let path = request.uri().path();
        if let Some(asset) = assets::find(path) {
            return response::asset(asset);
        }
        match access::admit(request, &self.token) {
            Ok(_) if !place.admit() => {
                let detail = "as many connections are open as may be: close a page";
                response::problem(StatusCode::SERVICE_UNAVAILABLE, "connections", detail)
            }
            Ok(admitted) => self.data(path, admitted).await,
            Err(refusal) => response::refused(refusal),
        }
    }

    async fn data(&self, path: &str, _: Admitted) -> Answer {
        if path == STREAM {
            return self.stream();
        }
        let Some((manager, vrot)) = self.chain_at(path) else {
            return response::problem(StatusCode::NOT_FOUND, "path", "there is no such path");
        };
        match chain::of(manager, vrot).await {
            Ok(chain) => response::json(&chain),
            Err(ManagerError::Refused(problem)) if problem.status == 404 => {
                response::problem(StatusCode::NOT_FOUND, "vrot", &problem.detail)
            }
            Err(error) => response::problem(StatusCode::BAD_GATEWAY, "manager", &error.to_string()),
        }
    }

    fn stream(&self) -> Answer {
        match self.hub.view(PAGES) {
            Some(viewer) => response::stream(Stream::of(viewer)),
            None => {
                let detail = "as many pages are open as may be: close one";
                response::problem(StatusCode::SERVICE_UNAVAILABLE, "pages", detail)
            }
        }
    }

    /// Which vRoT of which host: `/api/hosts/0/vrots/UUID`.
    fn chain_at(&self, path: &str) -> Option<(&Manager, VrotId)> {
        let (host, vrot) = path.strip_prefix(CHAINS)?.split_once("/vrots/")?;
        let manager = self.managers.get(host.parse::<usize>().ok()?)?;
        Some((manager, vrot.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, Result};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    /// A page of no host, served until this is dropped.
    struct Served {
        at: std::net::SocketAddr,
        bearer: String,
        _serving: JoinSet<Infallible>,
    }

    impl Served {
        async fn new(head: Duration) -> Result<Self> {
            let token = Token::new()?;
            let bearer = format!("Authorization: Bearer {}\r\n", token.expose());
            let mut page = Page::open(&"127.0.0.1:0".parse()?, &[], token).await?;
            page.head = head;
            let Listen::Loopback(at) = *page.at() else {
                anyhow::bail!("a loopback address");
            };
            let mut serving = JoinSet::new();
            serving.spawn(page.serve());
            Ok(Self {
                at,
                bearer,
                _serving: serving,
            })
        }

        async fn connect(&self) -> Result<TcpStream> {
            Ok(TcpStream::connect(self.at).await?)
        }
    }

    /// The status of the answer to this request, of which nothing else is read.
    async fn status(stream: &mut TcpStream, path: &str, headers: &str) -> Result<String> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let head = String::from_utf8(head)?;
        let length = (head.lines())
            .find_map(|line| line.strip_prefix("content-length: "))
            .context("a length")?;
        let mut body = vec![0; length.parse()?];
        stream.read_exact(&mut body).await?;
        Ok(head.split(' ').nth(1).context("a status")?.to_owned())
    }

    #[tokio::test]
    async fn a_browser_keeps_its_connection_and_the_oldest_stranger_loses_its_own() -> Result<()> {
        const MANY: usize = 200;
        // Nobody is given up for being slow.
        let page = Served::new(Duration::from_secs(3600)).await?;
        let mut oldest = page.connect().await?;
        let mut browser = page.connect().await?;
        let path = "/api/anything";
        assert_eq!(status(&mut browser, path, &page.bearer).await?, "404");
        let mut strangers = Vec::new();
        for _ in 0..MANY {
            strangers.push(page.connect().await?);
        }
        assert_eq!(oldest.read(&mut [0]).await?, 0, "the end of it");
        assert_eq!(status(&mut browser, path, &page.bearer).await?, "404");
        let newest = strangers.last_mut().context("a stranger")?;
        assert_eq!(status(newest, path, "").await?, "401");
        Ok(())
    }

    #[tokio::test]
    async fn who_says_nothing_for_too_long_is_given_up() -> Result<()> {
        let page = Served::new(Duration::from_millis(20)).await?;
        let mut silent = page.connect().await?;
        assert_eq!(silent.read(&mut [0]).await?, 0, "the end of it");
        Ok(())
    }

    #[tokio::test]
    async fn there_are_as_many_streams_as_may_be_and_no_more() -> Result<()> {
        let page = Served::new(Duration::from_secs(3600)).await?;
        let mut streams = Vec::new();
        for _ in 0..PAGES {
            let mut stream = page.connect().await?;
            let request = format!(
                "GET {STREAM} HTTP/1.1\r\nHost: localhost\r\n{}\r\n",
                page.bearer
            );
            stream.write_all(request.as_bytes()).await?;
            let mut begin = [0; 12];
            stream.read_exact(&mut begin).await?;
            assert_eq!(&begin, b"HTTP/1.1 200");
            streams.push(stream);
        }
        let mut late = page.connect().await?;
        assert_eq!(status(&mut late, STREAM, &page.bearer).await?, "503");
        Ok(())
    }
}
