//! Where backends come from: a process of the backend's program that forks one for each vRoT
//! (`vtpm_backend::nursery`).

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, mpsc, oneshot};
use vtpm_backend::message;
use vtpm_backend::nursery::{FromNursery, ToNursery};

use super::BackendError;
use super::connection::read_frame;
use super::folder::RuntimeFolder;
use super::users::Isolation;

/// Starts backends. The process that does it is started with the first of them, and again if it ends.
#[derive(Debug)]
pub struct Nursery {
    program: PathBuf,
    isolation: Isolation,
    line: Mutex<Option<Line>>,
}

/// A backend that this manager started.
#[derive(Debug)]
pub(super) struct Offspring {
    process: Pid,
    ended: oneshot::Receiver<String>,
    status: Option<String>,
}

#[derive(Clone, Debug)]
struct Line {
    process: u32,
    requests: mpsc::Sender<Request>,
}

#[derive(Debug)]
struct Request {
    runtime: String,
    uid: Option<u32>,
    born: oneshot::Sender<io::Result<Offspring>>,
}

/// Requests that may wait to be written.
const QUEUE: usize = 64;
/// What the backend takes its log level from.
const BACKEND_LOG: &str = "VTPM_BACKEND_LOG";

impl Nursery {
    /// Backends of this program.
    pub fn of(program: &Path, isolation: Isolation) -> Self {
        Self {
            program: program.to_owned(),
            isolation,
            line: Mutex::default(),
        }
    }

    /// What keeps the backends apart.
    pub fn isolation(&self) -> &Isolation {
        &self.isolation
    }

    /// The program that backends are: the file that was loaded, wherever it is by now.
    pub async fn executable(&self) -> Result<PathBuf, BackendError> {
        let line = self.line().await?;
        Ok(format!("/proc/{}/exe", line.process).into())
    }

    /// Starts a backend in a folder that was just made.
    pub(super) async fn bear(&self, folder: &RuntimeFolder) -> Result<Offspring, BackendError> {
        let uid = self.isolation.user_of(folder)?;
        let line = self.line().await?;
        let (born, birth) = oneshot::channel();
        let request = Request {
            runtime: folder.path().display().to_string(),
            uid,
            born,
        };
        let gone = || io::Error::other("the process that starts backends has ended");
        let sent = line.requests.send(request).await.map_err(|_| gone());
        let answered = match sent {
            Ok(()) => birth.await.unwrap_or_else(|_| Err(gone())),
            Err(error) => Err(error),
        };
        answered.map_err(|source| self.failed(source))
    }

    async fn line(&self) -> Result<Line, BackendError> {
        let mut line = self.line.lock().await;
        if let Some(line) = line.as_ref().filter(|line| !line.requests.is_closed()) {
            return Ok(line.clone());
        }
        let new = start(&self.program).map_err(|source| self.failed(source))?;
        *line = Some(new.clone());
        Ok(new)
    }

    fn failed(&self, source: io::Error) -> BackendError {
        BackendError::Spawn {
            program: self.program.clone(),
            source,
        }
    }
}

impl Offspring {
    /// Waits for its end: how it ended, in words. May be given up and called again.
    pub(super) async fn wait(&mut self) -> String {
        if let Some(status) = &self.status {
            return status.clone();
        }
        match (&mut self.ended).await {
            Ok(status) => self.status.insert(status).clone(),
            Err(_) => "nobody saw how it ended".to_owned(),
        }
    }

    /// Ends it.
    pub(super) fn kill(&self) {
        // Once it was waited for, its number may be another's.
        if self.status.is_none()
            && let Err(error) = kill(self.process, Signal::SIGKILL)
        {
            tracing::debug!(process = %self.process, %error, "the backend was gone already");
        }
    }
}

/// A group of its own keeps signals away that are meant for the manager.
fn start(program: &Path) -> io::Result<Line> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let stream = UnixStream::from_std(ours)?;
    let child = Command::new(program)
        .arg("--nursery")
        .env_clear()
        .envs(std::env::var_os(BACKEND_LOG).map(|level| (BACKEND_LOG, level)))
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .process_group(0)
        .kill_on_drop(false)
        .spawn()?;
    let process = child.id().unwrap_or_default();
    let (requests, received) = mpsc::channel(QUEUE);
    tokio::spawn(serve(stream, child, received));
    Ok(Line { process, requests })
}

async fn serve(stream: UnixStream, mut child: Child, mut requests: mpsc::Receiver<Request>) {
    let (mut reader, mut writer) = stream.into_split();
    let (sender, mut messages) = mpsc::channel(QUEUE);
    // A task of its own, because reading a frame must not be given up half-way.
    tokio::spawn(async move {
        while let Ok(Some(message)) = read_frame(&mut reader).await {
            if sender.send(message).await.is_err() {
                return;
            }
        }
    });
    let mut waiting = VecDeque::new();
    let mut alive = HashMap::new();
    loop {
        tokio::select! {
            request = requests.recv() => {
                let Some(Request { runtime, uid, born }) = request else {
                    break;
                };
                waiting.push_back(born);
                if let Err(error) = ask(&mut writer, runtime, uid).await {
                    tracing::error!(%error, "no backend can be started");
                    break;
                }
            }
            message = messages.recv() => match message {
                Some(FromNursery::Born { process }) => {
                    let (ends, ended) = oneshot::channel();
                    alive.insert(process, ends);
                    let born = Offspring {
                        process: Pid::from_raw(process),
                        ended,
                        status: None,
                    };
                    answer(&mut waiting, Ok(born));
                }
                Some(FromNursery::NotBorn { reason }) => {
                    answer(&mut waiting, Err(io::Error::other(reason)));
                }
                Some(FromNursery::Ended { process, status }) => {
                    if let Some(ends) = alive.remove(&process) {
                        // Who let it go does not want to know.
                        let _ = ends.send(status);
                    }
                }
                None => break,
            },
        }
    }
    drop((requests, writer));
    match child.wait().await {
        Ok(status) if status.success() => {}
        status => tracing::error!(?status, "the process that starts backends has ended"),
    }
}

async fn ask(writer: &mut OwnedWriteHalf, runtime: String, uid: Option<u32>) -> io::Result<()> {
    let frame = message::encode(&ToNursery::Bear { runtime, uid }).map_err(io::Error::other)?;
    writer.write_all(&frame).await
}

fn answer(
    waiting: &mut VecDeque<oneshot::Sender<io::Result<Offspring>>>,
    born: io::Result<Offspring>,
) {
    let Some(Err(Ok(unwanted))) = waiting.pop_front().map(|waiting| waiting.send(born)) else {
        return;
    };
    // Nobody waits for it any more.
    unwanted.kill();
}
