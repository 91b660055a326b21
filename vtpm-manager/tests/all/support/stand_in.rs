//! A launcher that knows swtpm: a folder for a VM, and the process that it takes for the VM's swtpm.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use uuid::Uuid;
use vrot_handover::HandoverError;
use vrot_handover::message::Lock;
use vrot_handover::set_up::{Existing, Order, Vrot, set_up};
use vrot_handover::stand_in::{StandIn, VmmSocket};

use super::{Host, wait_until};

/// A VM as such a launcher keeps it.
pub(crate) struct Domain {
    pub(crate) folder: PathBuf,
    pub(crate) vm: Uuid,
    pub(crate) manager: PathBuf,
    /// What the launcher encrypts the state with, as it believes.
    pub(crate) secret: Option<&'static str>,
}

/// The process; killed when dropped.
pub(crate) struct Process {
    child: Child,
    /// Where VMMs attach.
    pub(crate) socket: PathBuf,
}

/// What the process is told, and its name among the tests.
const ORDER: &str = "VROT_TEST_STAND_IN";
const NAME: &str = "support::stand_in::stands_in_where_it_is_told_to";

impl Domain {
    /// A VM with an empty folder.
    pub(crate) fn new(host: &Host, name: &str) -> Result<Self> {
        let folder = PathBuf::from(host.path(name));
        fs::create_dir(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
        Ok(Self {
            folder,
            vm: Uuid::new_v4(),
            manager: host.path("run/swtpm.sock").into(),
            secret: None,
        })
    }

    /// The same VM in another folder.
    pub(crate) fn in_folder(&self, folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            vm: self.vm,
            manager: self.manager.clone(),
            secret: self.secret,
        }
    }

    /// What swtpm_setup does.
    pub(crate) fn set_up(&self, existing: Existing) -> Result<Vrot, HandoverError> {
        let order = Order {
            existing,
            vm: Some(self.vm),
            name: Some("a domain".to_owned()),
            lock: self.secret.map(|secret| Lock::of(secret.as_bytes())),
        };
        set_up(&self.manager, &self.folder, &order)
    }

    /// Why it is not set up.
    pub(crate) fn refused(&self, existing: Existing) -> Result<String> {
        let refused = self.set_up(existing).err().context("it was set up")?;
        Ok(refused.to_string())
    }

    /// What swtpm does: the process, once a VMM can attach.
    pub(crate) fn start(&self) -> Result<Process> {
        let mut process = self.begin(false)?;
        process.wait_until_ready()?;
        Ok(process)
    }

    /// The same with a process that ends with its VMM.
    pub(crate) fn start_ending_with_vmm(&self) -> Result<Process> {
        let mut process = self.begin(true)?;
        process.wait_until_ready()?;
        Ok(process)
    }

    /// Why it does not start.
    pub(crate) fn start_refused(&self) -> Result<String> {
        self.start_refused_to(0)
    }

    /// Why a user's process does not start it.
    pub(crate) fn start_refused_to(&self, uid: u32) -> Result<String> {
        let mut process = self.begin_as(uid, false)?;
        let said = process.said()?;
        ensure!(!said.contains("ready"), "it was started");
        process.ended()?;
        Ok(said)
    }

    /// The process, on its way.
    pub(crate) fn begin(&self, ends_with_vmm: bool) -> Result<Process> {
        self.begin_as(0, ends_with_vmm)
    }

    /// The same as a process of this user.
    fn begin_as(&self, uid: u32, ends_with_vmm: bool) -> Result<Process> {
        let socket = self.folder.with_extension("sock");
        let order = [
            self.manager.display().to_string(),
            self.folder.display().to_string(),
            socket.display().to_string(),
            ends_with_vmm.to_string(),
            self.secret.unwrap_or_default().to_owned(),
        ];
        let mut command = match uid {
            // The signal is for the test's own thread, which waits for it, not for its others.
            0 => {
                let mut command = Command::new("env");
                let program = std::env::current_exe()?;
                command.args(["--block-signal=TERM", "--"]).arg(program);
                command
            }
            // Another user does not get as far as this program by its path.
            uid => {
                let mut command = Command::new("/proc/self/exe");
                command.uid(uid).gid(uid);
                command
            }
        };
        let child = command
            .args([NAME, "--exact", "--nocapture"])
            .env(ORDER, order.join("\n"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .current_dir("/")
            .process_group(0)
            .spawn()?;
        Ok(Process { child, socket })
    }
}

impl Process {
    fn wait_until_ready(&mut self) -> Result<()> {
        let said = self.said()?;
        ensure!(said.contains("ready"), "{said}");
        Ok(())
    }

    /// The line that it says first.
    fn said(&mut self) -> Result<String> {
        let stderr = self.child.stderr.take().context("it was heard before")?;
        let mut line = String::new();
        BufReader::new(stderr).read_line(&mut line)?;
        Ok(line)
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id().try_into()?), signal)?)
    }

    /// Waits for its end.
    pub(crate) fn ended(&mut self) -> Result<ExitStatus> {
        let mut status = None;
        wait_until("the process that stands in to end", || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })?;
        status.context("a status")
    }

    /// Whether it is there.
    pub(crate) fn is_alive(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// No test of its own: run once more as a process, it is what a launcher takes for swtpm.
#[test]
fn stands_in_where_it_is_told_to() {
    let Ok(order) = std::env::var(ORDER) else {
        return;
    };
    let order: Vec<&str> = order.split('\n').collect();
    let [manager, folder, socket, ends_with_vmm, secret] = order.as_slice() else {
        panic!("{order:?}");
    };
    let ends_with_vmm = *ends_with_vmm == "true";
    let lock = Some(secret.as_bytes()).filter(|secret| !secret.is_empty());
    let lock = lock.map(Lock::of);
    let started = StandIn::start(Path::new(manager), Path::new(folder), lock);
    let served = started.and_then(|stand_in| {
        let _ = fs::remove_file(socket);
        let listener = UnixListener::bind(socket).map_err(HandoverError::Listener)?;
        let _ = writeln!(std::io::stderr(), "ready");
        stand_in.serve(VmmSocket::Listening(listener), ends_with_vmm)
    });
    match served {
        Ok(_) => std::process::exit(0),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            std::process::exit(1)
        }
    }
}
