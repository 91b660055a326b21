//! A launcher that knows swtpm: a folder for a VM, and the process that it takes for the VM's swtpm.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use test_support::programs::install;
use uuid::Uuid;
use vrot_handover::HandoverError;
use vrot_handover::message::Lock;
use vrot_handover::set_up::{Existing, Order, Vrot, set_up};

use super::{Host, program, wait_until};

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
    /// Is there once it serves.
    ready: PathBuf,
    said: PathBuf,
}

static PROCESSES: AtomicU32 = AtomicU32::new(0);

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

    /// The configuration of the programs.
    pub(crate) fn configuration(&self) -> Result<PathBuf> {
        let file = self.folder.with_extension("toml");
        let manager = self.manager.display();
        let anchored = format!("mode = \"anchored\"\nsocket = \"{manager}\"\n");
        fs::write(&file, anchored)?;
        Ok(file)
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
        ensure!(!process.is_ready_or_ended()?, "it was started");
        process.said()
    }

    /// The process, on its way.
    pub(crate) fn begin(&self, ends_with_vmm: bool) -> Result<Process> {
        self.begin_as(0, ends_with_vmm)
    }

    /// The same as a process of this user.
    fn begin_as(&self, uid: u32, ends_with_vmm: bool) -> Result<Process> {
        // Each has a socket of its own: one that was killed leaves its socket behind.
        let number = PROCESSES.fetch_add(1, Ordering::Relaxed);
        let socket = self.folder.with_extension(format!("sock{number}"));
        let ready = self.folder.with_extension(format!("pid{number}"));
        let config = self.configuration()?;
        let mut program = program("swtpm")?;
        let said = self.folder.with_extension("said");
        let mut command = match uid {
            0 => Command::new(&program),
            uid => {
                // Where that user gets as far.
                let reached = self.folder.with_extension("program");
                install(&program, &reached)?;
                program = reached;
                let mut command = Command::new(&program);
                command.uid(uid).gid(uid);
                command
            }
        };
        command
            .args(["socket", "--tpm2", "--tpmstate"])
            .arg(format!("dir={},mode=0600", self.folder.display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={},mode=0600", socket.display()))
            .arg("--pid")
            .arg(format!("file={}", ready.display()))
            .args(ends_with_vmm.then_some("--terminate"));
        if let Some(secret) = self.secret {
            let key = self.folder.with_extension("key");
            fs::write(&key, secret)?;
            command
                .arg("--key")
                .arg(format!("pwdfile={},mode=aes-256-cbc", key.display()));
        }
        let child = command
            .env("VROT_SWTPM_CONFIG", config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&said)?)
            .current_dir("/")
            .process_group(0)
            .spawn()?;
        Ok(Process {
            child,
            socket,
            ready,
            said,
        })
    }
}

impl Process {
    fn wait_until_ready(&mut self) -> Result<()> {
        ensure!(self.is_ready_or_ended()?, "{}", self.said()?);
        Ok(())
    }

    /// Waits until a VMM can attach, or it has ended; whether a VMM can.
    fn is_ready_or_ended(&mut self) -> Result<bool> {
        let mut is_alive = true;
        wait_until("the process that stands in to be ready, or to end", || {
            is_alive = self.is_alive()?;
            Ok(!is_alive || self.ready.exists())
        })?;
        Ok(is_alive)
    }

    /// What it complained about.
    fn said(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.said)?)
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
