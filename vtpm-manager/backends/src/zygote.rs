//! Where backends come from: a process of the backend's program that forks one for each vRoT
//! ([`backend_link::zygote`]).

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use backend_link::frame;
use backend_link::transport::Transport;
use backend_link::zygote::{FromZygote, ToZygote};
use cert_chain::Digest32;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, OnceCell, mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::BackendError;
use super::connection::read_frame;
use super::folder::RuntimeFolder;
use super::process::Process;
use super::users::Isolation;
use super::vmms::Vmms;
use crate::background::Background;

/// Starts backends. The process that does it is started with the first of them, and again if it ends.
#[derive(Debug)]
pub struct Zygote {
    program: PathBuf,
    vmms: Vmms,
    isolation: Isolation,
    line: Mutex<Option<Line>>,
    background: Arc<Background>,
}

/// The program that backends are: the file that was loaded, wherever it is by now.
#[derive(Clone, Debug)]
pub struct Executable {
    /// A path that leads to it while backends are started from it.
    pub path: PathBuf,
    /// Its digest, once it was taken: what is loaded does not change.
    pub digest: Arc<OnceCell<Digest32>>,
}

#[derive(Clone, Debug)]
struct Line {
    process: u32,
    digest: Arc<OnceCell<Digest32>>,
    requests: mpsc::Sender<Request>,
}

#[derive(Debug)]
struct Request {
    spawn: ToZygote,
    spawned: oneshot::Sender<io::Result<Process>>,
}

/// Requests that may wait to be written.
const QUEUE: usize = 64;
/// What the backend takes its log level from.
const BACKEND_LOG: &str = "VTPM_BACKEND_LOG";

impl Zygote {
    /// Backends of this program, for VMMs of these users, kept apart like this.
    pub fn of(
        program: &Path,
        vmms: Vmms,
        isolation: Isolation,
        background: Arc<Background>,
    ) -> Self {
        Self {
            program: program.to_owned(),
            vmms,
            isolation,
            line: Mutex::default(),
            background,
        }
    }

    /// What keeps the backends apart.
    pub fn isolation(&self) -> &Isolation {
        &self.isolation
    }

    /// The program that backends are.
    pub async fn executable(&self) -> Result<Executable, BackendError> {
        let line = self.line().await?;
        Ok(Executable {
            path: format!("/proc/{}/exe", line.process).into(),
            digest: line.digest,
        })
    }

    /// Lets VMMs of other users as far as a backend's socket, now that it has a guest. Before, and
    /// beside it, no other program may put anything into a TPM.
    pub(super) fn let_vmms_in(&self, folder: &RuntimeFolder) -> Result<(), BackendError> {
        self.vmms.gid.map_or(Ok(()), |gid| folder.let_group_in(gid))
    }

    /// Ends the process that starts backends; they go on.
    pub async fn close(&self) {
        *self.line.lock().await = None;
    }

    /// Starts a backend in a folder that was just made.
    pub(super) async fn spawn(
        &self,
        folder: &RuntimeFolder,
        transport: Transport,
    ) -> Result<Process, BackendError> {
        let uid = self.isolation.user_of(folder)?;
        let line = self.line().await?;
        let (spawned, answer_to_come) = oneshot::channel();
        let request = Request {
            spawn: ToZygote::Spawn {
                runtime: folder.path().display().to_string(),
                lock: folder.lock().map(|lock| lock.display().to_string()),
                admission: self.vmms.admission.clone(),
                uid,
                transport,
            },
            spawned,
        };
        let gone = || io::Error::other("the process that starts backends has ended");
        let sent = line.requests.send(request).await.map_err(|_| gone());
        let answered = match sent {
            Ok(()) => answer_to_come.await.unwrap_or_else(|_| Err(gone())),
            Err(error) => Err(error),
        };
        answered.map_err(|source| self.failed(source))
    }

    async fn line(&self) -> Result<Line, BackendError> {
        let mut line = self.line.lock().await;
        if let Some(line) = line.as_ref().filter(|line| !line.requests.is_closed()) {
            return Ok(line.clone());
        }
        let new = start(&self.program, &self.background).map_err(|source| self.failed(source))?;
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

/// A group of its own keeps signals away that are meant for the manager.
fn start(program: &Path, background: &Background) -> io::Result<Line> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let stream = UnixStream::from_std(ours)?;
    let child = Command::new(program)
        .arg("--zygote")
        .env_clear()
        .envs(std::env::var_os(BACKEND_LOG).map(|level| (BACKEND_LOG, level)))
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .process_group(0)
        .kill_on_drop(false)
        .spawn()?;
    let process = child.id().unwrap_or_default();
    let (requests, received) = mpsc::channel(QUEUE);
    background.spawn(serve(stream, child, received));
    Ok(Line {
        process,
        digest: Arc::default(),
        requests,
    })
}

async fn serve(stream: UnixStream, mut child: Child, mut requests: mpsc::Receiver<Request>) {
    let (mut reader, mut writer) = stream.into_split();
    let (sender, mut messages) = mpsc::channel(QUEUE);
    // A task of its own, because reading a frame must not be given up half-way.
    let _reader = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok(Some(message)) = read_frame(&mut reader).await {
            if sender.send(message).await.is_err() {
                return;
            }
        }
    }));
    let mut waiting = VecDeque::new();
    let mut alive = HashMap::new();
    loop {
        tokio::select! {
            request = requests.recv() => {
                let Some(Request { spawn, spawned }) = request else {
                    break;
                };
                waiting.push_back(spawned);
                if let Err(error) = ask(&mut writer, &spawn).await {
                    tracing::error!(%error, "no backend can be started");
                    break;
                }
            }
            message = messages.recv() => match message {
                Some(FromZygote::Spawned { process }) => {
                    let (ends, ended) = oneshot::channel();
                    alive.insert(process, ends);
                    let spawned = Process::spawned(process, ended).and_then(|spawned| {
                        spawned.ok_or_else(|| io::Error::other("it ended at once"))
                    });
                    answer(&mut waiting, spawned);
                }
                Some(FromZygote::NotSpawned { reason }) => {
                    answer(&mut waiting, Err(io::Error::other(reason)));
                }
                Some(FromZygote::Ended { process, status }) => {
                    if let Some(ends) = alive.remove(&process) {
                        // Where the receiver was dropped, the backend was released.
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

async fn ask(writer: &mut OwnedWriteHalf, spawn: &ToZygote) -> io::Result<()> {
    let frame = frame::encode(spawn).map_err(io::Error::other)?;
    writer.write_all(&frame).await
}

fn answer(
    waiting: &mut VecDeque<oneshot::Sender<io::Result<Process>>>,
    spawned: io::Result<Process>,
) {
    let Some(Err(Ok(unwanted))) = waiting.pop_front().map(|waiting| waiting.send(spawned)) else {
        return;
    };
    // The caller has given up.
    unwanted.kill();
}
