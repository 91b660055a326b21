//! A libvirt daemon of a test's own, with hooks: in a mount namespace in which libvirt's folders are
//! the test's, and a network namespace without a network.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use test_support::deadline::wait_for;
use test_support::process::{Process, tail};
use test_support::programs::{install_script, workspace_folder};
use test_support::run_folder::RunFolder;
use test_support::tool::Tool;

use crate::libvirt::{CONFIGURATION, refused, virsh};

/// A running daemon; its domains end with it.
#[derive(Debug)]
pub struct LibvirtDaemon {
    process: Process,
    root: PathBuf,
    path: String,
    log: PathBuf,
    starts: u32,
}

/// libvirt's folders, and what they are in the root of a daemon.
const FOLDERS: [(&str, &str); 5] = [
    ("etc", "/etc/libvirt"),
    ("run", "/run/libvirt"),
    ("lib", "/var/lib/libvirt"),
    ("log", "/var/log/libvirt"),
    ("cache", "/var/cache/libvirt"),
];
const DAEMON: &str = "auth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\n";
/// Names a folder into which the packages of another version of libvirt are unpacked, which is used
/// instead of the installed one.
const OTHER_LIBVIRT: &str = "VROT_LIBVIRT";
const PATIENCE: Duration = Duration::from_secs(60);

impl LibvirtDaemon {
    /// Starts a daemon that calls the packaged hook; `vtpmctl` is what the hook finds under that name.
    pub fn start(run: &RunFolder, vtpmctl: &str) -> Result<Self> {
        let root = run.join("lv");
        for (folder, _) in FOLDERS {
            fs::create_dir_all(root.join(folder))?;
        }
        let etc = root.join("etc");
        fs::write(etc.join("qemu.conf"), CONFIGURATION)?;
        fs::write(etc.join("libvirtd.conf"), DAEMON)?;
        let hooks = etc.join("hooks").join("qemu.d");
        fs::create_dir_all(&hooks)?;
        let packaged = "vtpm-manager/packaging/vrot-host/libvirt-hook";
        let packaged = fs::read_to_string(workspace_folder()?.join(packaged))?;
        install_script(&packaged, &hooks.join("vrot"))?;
        let programs = root.join("bin");
        fs::create_dir_all(&programs)?;
        install_script(vtpmctl, &programs.join("vtpmctl"))?;

        let path = format!(
            "{}:{}",
            programs.display(),
            std::env::var("PATH").unwrap_or_default()
        );
        let log = run.log("libvirtd.log");
        let process = start(&root, &path, &log)?;
        Ok(Self {
            process,
            root,
            path,
            log,
            starts: 1,
        })
    }

    /// Ends the daemon, lets something happen without it, and starts it again. Its domains run on.
    pub fn without<T>(&mut self, meanwhile: impl FnOnce() -> Result<T>) -> Result<T> {
        self.process.kill()?;
        let outcome = meanwhile();
        self.starts += 1;
        let log = self.log.with_extension(format!("{}.log", self.starts));
        self.process = start(&self.root, &self.path, &log)?;
        outcome
    }

    /// How it is reached.
    pub fn uri(&self) -> String {
        uri_of(&self.root)
    }

    /// Has `virsh` do something, which must succeed.
    pub fn virsh(&self, arguments: &[&str]) -> Result<String> {
        self.command(arguments)
            .text()
            .with_context(|| tail(&self.log))
    }

    /// Has `virsh` try something that must be refused: why it was.
    pub fn refused(&self, arguments: &[&str]) -> Result<String> {
        refused(self.command(arguments))
    }

    /// The process of a domain's QEMU, while there is one.
    pub fn vmm(&self, domain: &str) -> Result<Pid> {
        let file = self.root.join("run/qemu").join(format!("{domain}.pid"));
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        Ok(Pid::from_raw(text.trim().parse()?))
    }

    fn command(&self, arguments: &[&str]) -> Tool {
        virsh(&self.uri(), arguments)
    }
}

impl Drop for LibvirtDaemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        for entry in fs::read_dir(self.root.join("run/qemu"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name();
            if let Some(domain) = name.to_str().and_then(|name| name.strip_suffix(".pid"))
                && let Ok(vmm) = self.vmm(domain)
            {
                let _ = kill(vmm, Signal::SIGKILL);
            }
        }
    }
}

fn start(root: &Path, path: &str, log: &Path) -> Result<Process> {
    let mut script = String::from("set -e; cd \"$0\"; ");
    for (folder, place) in FOLDERS {
        script.push_str(&format!(
            "mkdir -p {place}; mount --bind {folder} {place}; "
        ));
    }
    if let Ok(other) = std::env::var(OTHER_LIBVIRT) {
        for folder in ["/usr/lib/x86_64-linux-gnu/libvirt", "/usr/share/libvirt"] {
            script.push_str(&format!("mount --bind '{other}{folder}' {folder}; "));
        }
        script.push_str(&format!(
            "export LD_LIBRARY_PATH='{other}/usr/lib/x86_64-linux-gnu' PATH='{other}/usr/sbin':\"$PATH\"; "
        ));
    }
    script.push_str("exec libvirtd --pid \"$0/libvirtd.pid\"");
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--net", "sh", "-c", &script])
        .arg(root)
        .env("PATH", path);
    let mut process = Process::start("libvirtd", command, log)?;
    process.wait_until("libvirtd", PATIENCE, || {
        let asked = virsh(&uri_of(root), &["list", "--name"]).outcome()?;
        Ok(asked.status.success().then_some(()))
    })?;
    Ok(process)
}

fn uri_of(root: &Path) -> String {
    let socket = root.join("run").join("libvirt-sock");
    format!("qemu+unix:///system?socket={}", socket.display())
}

/// Waits until a domain is in a state, in libvirt's words.
pub fn wait_for_state(daemon: &LibvirtDaemon, domain: &str, state: &str) -> Result<()> {
    let mut last = String::new();
    wait_for("a domain's state", PATIENCE, || {
        last = daemon.virsh(&["domstate", domain])?.trim().to_owned();
        Ok((last == state).then_some(()))
    })
    .or_else(|error| bail!("{error}: {domain} is {last}, not {state}"))
}
