//! The implementations, each in a folder of its own with an authority of its own.

use std::fs;
use std::net::TcpListener;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use test_support::sockets::is_listened_at;

/// One implementation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// That of the distribution, 0.7.1.
    Old,
    /// 0.10.2 or newer, unpacked.
    New,
    Ours,
}

pub(crate) const ALL: [Peer; 3] = [Peer::Old, Peer::New, Peer::Ours];
/// Those whose command line has what 0.8 to 0.10 brought.
pub(crate) const NEWER: [Peer; 2] = [Peer::New, Peer::Ours];

/// Longer than anything takes on a machine that does other things.
const PATIENCE: Duration = Duration::from_secs(20);

impl Peer {
    fn programs(&self) -> Result<PathBuf> {
        let ours = Path::new(env!("CARGO_BIN_EXE_swtpm"))
            .parent()
            .context("our programs are nowhere")?;
        let programs = match self {
            Self::Old => "/usr/bin".into(),
            Self::New => ours.with_file_name("peers").join("swtpm/bin"),
            Self::Ours => ours.to_owned(),
        };
        ensure!(
            programs.join("swtpm").exists(),
            "{} has no swtpm: `make peers` fetches it",
            programs.display()
        );
        Ok(programs)
    }
}

/// A folder in which one implementation works.
pub(crate) struct Place {
    pub(crate) peer: Peer,
    pub(crate) folder: TempDir,
}

/// A process that ends with the test.
pub(crate) struct Served(pub(crate) Child);

impl Place {
    pub(crate) fn of(peer: &Peer) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let root = folder.path().display();
        let settings = format!(
            "create_certs_tool = /usr/bin/swtpm_localca\n\
             create_certs_tool_config = {root}/swtpm-localca.conf\n\
             create_certs_tool_options = {root}/swtpm-localca.options\n\
             active_pcr_banks = sha256\n"
        );
        fs::write(folder.path().join("swtpm_setup.conf"), settings)?;
        let authority = format!(
            "statedir = {root}/ca\nsigningkey = {root}/ca/signkey.pem\n\
             issuercert = {root}/ca/issuercert.pem\ncertserial = {root}/ca/certserial\n"
        );
        fs::write(folder.path().join("swtpm-localca.conf"), authority)?;
        let platform = "--platform-manufacturer x\n--platform-version 1\n--platform-model x\n";
        fs::write(folder.path().join("swtpm-localca.options"), platform)?;
        fs::create_dir(folder.path().join("ca"))?;
        fs::create_dir(folder.path().join("state"))?;
        fs::write(
            folder.path().join("secret"),
            "a passphrase of 32 bytes, or so.",
        )?;
        Ok(Self {
            peer: peer.clone(),
            folder,
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A command line: DIR is the folder, words are apart by blanks, and the files `secret` come as
    /// descriptors 7 and 8.
    fn command(&self, line: &str) -> Result<Command> {
        self.command_of(&self.peer, line, "")
    }

    fn command_of(&self, peer: &Peer, line: &str, limit: &str) -> Result<Command> {
        let root = self.folder.path().to_string_lossy().into_owned();
        let line = line.replace("DIR", &root);
        let mut words = line.split(' ');
        let program = words.next().context("an empty command line")?;
        let programs = peer.programs()?;
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("exec {limit}\"$@\" 7<secret 8<secret"), "sh"])
            .arg(programs.join(program))
            .args(words)
            .current_dir(self.folder.path())
            .env("PATH", format!("{}:/usr/bin:/bin", programs.display()))
            .env("XDG_CONFIG_HOME", self.folder.path())
            .env("HOME", self.folder.path())
            .stdin(Stdio::null());
        Ok(command)
    }

    pub(crate) fn run(&self, line: &str) -> Result<Output> {
        self.run_with(&self.peer, line)
    }

    /// The same with the programs of another implementation.
    pub(crate) fn run_with(&self, peer: &Peer, line: &str) -> Result<Output> {
        let mut command = self.command_of(peer, line, "timeout 60 ")?;
        command
            .output()
            .with_context(|| format!("{peer:?}: {line}"))
    }

    /// Runs what is to succeed; gives what it says.
    pub(crate) fn good(&self, line: &str) -> Result<String> {
        let output = self.run(line)?;
        ensure!(
            output.status.success(),
            "{:?}: {line}: {}: {}{}",
            self.peer,
            output.status,
            String::from_utf8_lossy(&output.stderr),
            fs::read_to_string(self.path("log")).unwrap_or_default()
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs what is to be refused; gives why.
    pub(crate) fn refused(&self, line: &str) -> Result<String> {
        let output = self.run(line)?;
        ensure!(
            !output.status.success(),
            "{:?}: {line}: this was not refused",
            self.peer
        );
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// The same as JSON.
    pub(crate) fn json(&self, line: &str) -> Result<Value> {
        let said = self.good(line)?;
        serde_json::from_str(&said).with_context(|| format!("{:?}: {line}: {said}", self.peer))
    }

    /// Starts what serves in the foreground, and waits for its socket.
    pub(crate) fn serve(&self, line: &str, socket: &str) -> Result<Served> {
        let served = Served(self.command(line)?.spawn()?);
        self.wait_for(socket)?;
        Ok(served)
    }

    pub(crate) fn wait_for(&self, socket: &str) -> Result<()> {
        let path = self.path(socket);
        let there = until(|| match fs::symlink_metadata(&path) {
            Ok(found) if found.file_type().is_socket() => is_listened_at(&path),
            found => found.is_ok(),
        });
        ensure!(there, "{:?}: {socket} did not appear", self.peer);
        Ok(())
    }

    /// Permissions of a file.
    pub(crate) fn mode(&self, name: &str) -> Result<u32> {
        let found = fs::symlink_metadata(self.path(name));
        let found = found.with_context(|| format!("{:?}: {name}", self.peer))?;
        Ok(found.permissions().mode() & 0o777)
    }

    /// Names in a folder.
    pub(crate) fn names(&self, folder: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.path(folder))? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }
}

impl Served {
    /// Waits for its end; whether it was a success.
    pub(crate) fn ended(&mut self) -> Result<bool> {
        let mut status = None;
        until(|| {
            status = self.0.try_wait().ok().flatten();
            status.is_some()
        });
        Ok(status.context("it does not end")?.success())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// So many ports in a row, the first of them, that nothing has. They lie before those that the system
/// gives away by itself (`ip_local_port_range`), so no other test comes to have them meanwhile.
pub(crate) fn free_ports(count: u16) -> Result<u16> {
    const PORTS: Range<u16> = 20_000..30_000;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    // Another run of these tests may be under way: each begins elsewhere.
    let begin = std::process::id().wrapping_mul(61);
    for _ in 0..1000 {
        let at = begin.wrapping_add(TAKEN.fetch_add(count.into(), Ordering::Relaxed));
        let first = PORTS.start + u16::try_from(at % u32::from(PORTS.end - PORTS.start))?;
        if (first..first + count).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return Ok(first);
        }
    }
    anyhow::bail!("there are no {count} free ports in a row")
}

/// Waits until something holds; false if it does not come to that.
pub(crate) fn until(mut holds: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if holds() {
            return true;
        }
        sleep(Duration::from_millis(5));
    }
    false
}
