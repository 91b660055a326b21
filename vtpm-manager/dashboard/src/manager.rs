//! A manager's API on its Unix socket, of which only questions are asked.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api_types::Problem;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::text::shown;

/// A manager.
#[derive(Clone, Debug)]
pub(crate) struct Manager {
    socket: PathBuf,
}

/// Why a manager did not answer a question.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManagerError {
    /// It does not listen, or not to this user.
    #[error("the manager cannot be reached at `{}`: {source}", socket.display())]
    Unreachable {
        /// Where.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It has no answer to this.
    #[error("{}", .0.detail)]
    Refused(Problem),
    /// Its answer is not understood.
    #[error("the manager's answer cannot be understood: {0}")]
    Answer(Box<dyn std::error::Error + Send + Sync>),
    /// It takes too long.
    #[error("the manager did not answer within {} s", PATIENCE.as_secs())]
    Late,
}

/// Lines of JSON, as they come.
#[derive(Debug)]
pub(crate) struct Lines {
    body: Incoming,
    read: Vec<u8>,
}

const PATIENCE: Duration = Duration::from_secs(20);
/// A list of ten thousand vRoTs has some 8 MB.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// An event has a few hundred bytes.
const MAX_LINE: usize = 64 * 1024;

impl Manager {
    pub(crate) fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// Its answer as JSON.
    pub(crate) async fn json<T: DeserializeOwned>(&self, path: &str) -> Result<T, ManagerError> {
        serde_json::from_slice(&self.answer(path).await?).map_err(not_understood)
    }

    /// Its answer as text.
    pub(crate) async fn text(&self, path: &str) -> Result<String, ManagerError> {
        let bytes = self.answer(path).await?;
        String::from_utf8(bytes.to_vec()).map_err(not_understood)
    }

    /// Its answer line by line, without an end.
    pub(crate) async fn lines(&self, path: &str) -> Result<Lines, ManagerError> {
        let response = timeout(PATIENCE, self.ask(path)).await;
        let response = response.map_err(|_| ManagerError::Late)??;
        match response.status() {
            StatusCode::OK => Ok(Lines {
                body: response.into_body(),
                read: Vec::new(),
            }),
            status => Err(refused(status, &whole(response).await?)),
        }
    }

    async fn answer(&self, path: &str) -> Result<Bytes, ManagerError> {
        let exchange = async {
            let response = self.ask(path).await?;
            Ok((response.status(), whole(response).await?))
        };
        let answered = timeout(PATIENCE, exchange).await;
        match answered.map_err(|_| ManagerError::Late)?? {
            (StatusCode::OK, body) => Ok(body),
            (status, body) => Err(refused(status, &body)),
        }
    }

    async fn ask(&self, path: &str) -> Result<Response<Incoming>, ManagerError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| {
            let socket = self.socket.clone();
            ManagerError::Unreachable { socket, source }
        })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(not_understood)?;
        // Ends with the answer; what goes wrong shows there.
        tokio::spawn(async move { connection.await.ok() });
        let request = Request::get(path)
            .header(header::HOST, "localhost")
            .body(Empty::<Bytes>::new())
            .map_err(not_understood)?;
        sender.send_request(request).await.map_err(not_understood)
    }
}

impl Lines {
    /// The next line that has anything in it; none at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<u8>>, ManagerError> {
        loop {
            while let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let rest = self.read.split_off(end.saturating_add(1));
                let line = std::mem::replace(&mut self.read, rest);
                let line = line.trim_ascii();
                if !line.is_empty() {
                    return Ok(Some(line.to_vec()));
                }
            }
            if self.read.len() > MAX_LINE {
                return Err(not_understood("a line without an end"));
            }
            match self.body.frame().await {
                Some(frame) => {
                    let data = frame.map_err(not_understood)?.into_data();
                    self.read.extend_from_slice(&data.unwrap_or_default());
                }
                None => return Ok(None),
            }
        }
    }
}

async fn whole(response: Response<Incoming>) -> Result<Bytes, ManagerError> {
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect();
    Ok(body.await.map_err(ManagerError::Answer)?.to_bytes())
}

fn refused(status: StatusCode, body: &[u8]) -> ManagerError {
    match serde_json::from_slice::<Problem>(body) {
        Ok(mut problem) => {
            problem.detail = shown(&problem.detail);
            ManagerError::Refused(problem)
        }
        Err(_) => not_understood(format!("HTTP status {status}")),
    }
}

fn not_understood(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ManagerError {
    ManagerError::Answer(error.into())
}
