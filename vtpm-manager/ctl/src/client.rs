//! A client of the API: one request, one connection.

use std::fs::File;
use std::io::{ErrorKind, IoSlice};
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use api_types::wire::HostView;
use api_types::{OPENING, Problem};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use program_output::console::complain;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::sleep;

use crate::error::CtlError;

/// Reaches the manager at its socket.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    socket: PathBuf,
}

/// Where the host is.
pub(crate) const HOST: &str = "/v1/host";
/// How long a place in the daemon's queue is tried for.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
const CONNECT_PAUSE: Duration = Duration::from_millis(20);
/// How long a manager that was just started is waited for: a thousand vRoTs and a slow TPM take
/// seconds.
const OPENING_DEADLINE: Duration = Duration::from_secs(120);
/// Shorter than what `Retry-After` can say: a launch waits for it.
const OPENING_PAUSE: Duration = Duration::from_millis(200);
/// A list of ten thousand vRoTs has some 5 MB.
const MAX_RESPONSE: usize = 64 * 1024 * 1024;

impl Client {
    pub(crate) fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// Where the manager listens.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CtlError> {
        parse(&self.call(Method::GET, path, Bytes::new(), &[])?)
    }

    /// What is found out with a client, unless the manager takes longer than this.
    pub(crate) fn within<T: Send + 'static>(
        &self,
        time: Duration,
        ask: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, CtlError> {
        let (done, said) = mpsc::channel();
        let client = self.clone();
        // Once it is given up, this program ends, and the thread with it.
        thread::spawn(move || done.send(ask(&client)));
        (said.recv_timeout(time)).map_err(|_| CtlError::Silent { time })
    }

    /// Gets a text.
    pub(crate) fn text(&self, path: &str) -> Result<String, CtlError> {
        let text = self.call(Method::GET, path, Bytes::new(), &[])?;
        String::from_utf8(text).map_err(|error| CtlError::Response(error.into()))
    }

    pub(crate) fn delete(&self, path: &str) -> Result<(), CtlError> {
        self.call(Method::DELETE, path, Bytes::new(), &[]).map(drop)
    }

    pub(crate) fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, CtlError> {
        self.with_files(Method::POST, path, body, &[])
    }

    /// Sends JSON, with files, which the manager reads by the rights with which they were opened.
    pub(crate) fn with_files<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        files: &[File],
    ) -> Result<T, CtlError> {
        parse(&self.call(method, path, json(body)?, files)?)
    }

    /// Deletes something of which there is something to be told.
    pub(crate) fn forget<T: DeserializeOwned>(&self, path: &str) -> Result<T, CtlError> {
        parse(&self.call(Method::DELETE, path, Bytes::new(), &[])?)
    }

    /// Posts JSON as it is, and returns the answer as it is.
    pub(crate) fn post_message(
        &self,
        path: &str,
        json: impl Into<Vec<u8>>,
    ) -> Result<Vec<u8>, CtlError> {
        self.call(Method::POST, path, Bytes::from(json.into()), &[])
    }

    fn call(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        files: &[File],
    ) -> Result<Vec<u8>, CtlError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| CtlError::Response(error.into()))?;
        runtime.block_on(self.call_patiently(method, path, body, files))
    }

    /// A manager that was just started is asked again, for a while, until it has opened its store.
    async fn call_patiently(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        files: &[File],
    ) -> Result<Vec<u8>, CtlError> {
        let begun = Instant::now();
        let mut is_told = false;
        loop {
            let exchange = self.exchange(method.clone(), path, body.clone(), files);
            let (status, body) = exchange.await?;
            if status.is_success() {
                return Ok(body);
            }
            let problem: Problem = parse(&body)?;
            if problem.code() != OPENING || begun.elapsed() > OPENING_DEADLINE {
                return Err(CtlError::Refused(problem));
            }
            if !is_told {
                complain(format_args!(
                    "vtpmctl: the manager is opening its store: waiting …"
                ));
                is_told = true;
            }
            sleep(OPENING_PAUSE).await;
        }
    }

    /// A daemon that many connect to at once takes some of them a moment later: then the kernel
    /// says `EAGAIN` (unix(7)).
    async fn connect(&self) -> Result<UnixStream, CtlError> {
        let deadline = Instant::now() + CONNECT_DEADLINE;
        loop {
            match UnixStream::connect(&self.socket).await {
                Err(error)
                    if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline =>
                {
                    sleep(CONNECT_PAUSE).await;
                }
                connected => {
                    return connected.map_err(|source| CtlError::Unreachable {
                        socket: self.socket.clone(),
                        source,
                    });
                }
            }
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        files: &[File],
    ) -> Result<(StatusCode, Vec<u8>), CtlError> {
        let response = self.request(method, path, body, files).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_RESPONSE)
            .collect()
            .await
            .map_err(CtlError::Response)?;
        Ok((status, body.to_bytes().to_vec()))
    }

    /// An answer that goes on for as long as there is something to tell.
    pub(crate) async fn follow(&self, path: &str) -> Result<Incoming, CtlError> {
        let request = self.request(Method::GET, path, Bytes::new(), &[]);
        let response = request.await?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        let body = Limited::new(response.into_body(), MAX_RESPONSE);
        let body = body.collect().await.map_err(CtlError::Response)?;
        Err(CtlError::Refused(parse(&body.to_bytes())?))
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        files: &[File],
    ) -> Result<Response<Incoming>, CtlError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| CtlError::Response(error);
        let stream = self.connect().await?;
        if !files.is_empty() {
            send_files(&stream, files).map_err(|error| failed(error.into()))?;
        }
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(error.into()))?;
        // Ends with the response; what goes wrong shows there.
        tokio::spawn(async move { connection.await.ok() });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| failed(error.into()))?;
        let response = sender.send_request(request).await;
        response.map_err(|error| failed(error.into()))
    }
}

/// What a server passes over before a request (RFC 9112 §2.2).
const EMPTY_LINE: &[u8] = b"\r\n";

/// Sends files ahead of a request: they come along with its first bytes. A new connection has room.
fn send_files(stream: &UnixStream, files: &[File]) -> Result<(), nix::Error> {
    let descriptors: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(EMPTY_LINE)],
        &[ControlMessage::ScmRights(&descriptors)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .map(drop)
}

fn json(body: &impl Serialize) -> Result<Bytes, CtlError> {
    let json = serde_json::to_vec(body).map_err(|error| CtlError::Response(error.into()))?;
    Ok(json.into())
}

/// Reads an answer.
pub(crate) fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, CtlError> {
    serde_json::from_slice(json).map_err(|error| CtlError::Response(error.into()))
}

/// Keys alone make no host: with a store that is refused, no vRoT can be started.
pub(crate) fn store_is_not_refused(host: &HostView) -> Result<(), CtlError> {
    match &host.store.refusal {
        None => Ok(()),
        Some(_) => Err(CtlError::StoreRefused {
            problem: host.store.problem.clone().unwrap_or_default(),
        }),
    }
}
