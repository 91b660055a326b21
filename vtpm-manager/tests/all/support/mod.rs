//! A host of one's own for each test: a software TPM as the physical one, an issuer that trusts
//! its maker, and the daemon on top. Everything ends with the test.

pub(crate) mod bus;
mod daemon;
pub(crate) mod enrolment;
pub(crate) mod evidence;
pub(crate) mod follower;
pub(crate) mod http;
pub(crate) mod identity;
mod processes;
pub(crate) mod records;
pub(crate) mod stand_in;
pub(crate) mod tenant;
pub(crate) mod tls_client;
pub(crate) mod unit;
pub(crate) mod vmm;
pub(crate) mod writer;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bus::Bus;
use cert_chain::HashAlgorithm;
use daemon::{
    daemon_in, log_of, start_daemon, start_daemon_logging_to, start_daemon_with, wait_for_daemon,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
pub(crate) use processes::kill_processes_in;
use processes::{end_processes_of, processes_in};
use serde_json::Value;
use tempfile::TempDir;
use test_support::software_tpm::{MadeTpm, SoftwareTpm};
use unit::Unit;
use uuid::Uuid;

pub(crate) const DOMAIN: &str = "test.example";
pub(crate) const TENANT: &str = "acme";
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The PCR banks of a host's physical TPM.
const BANKS: &[&str] = &["sha256"];

/// A host whose daemon runs.
pub(crate) struct Host {
    daemon: Child,
    tpm: SoftwareTpm,
    /// What the daemon runs as, unless it is the test's own user.
    unit: Option<Unit>,
    // Last: it holds the sockets of all the others.
    folder: TempDir,
}

/// What a command said and how it ended.
pub(crate) struct Said {
    pub(crate) status: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Host {
    /// A host with a manufactured TPM and a running daemon, and nothing else. All hosts have copies
    /// of one TPM.
    pub(crate) fn start() -> Result<Self> {
        Self::start_with("")
    }

    /// The same with a TPM of another maker.
    pub(crate) fn start_on_another_makers_tpm() -> Result<Self> {
        Self::start_in(new_folder()?, &MadeTpm::of_another_maker(BANKS)?, "")
    }

    /// The same, with more lines in the daemon's configuration.
    pub(crate) fn start_with(more: &str) -> Result<Self> {
        Self::start_in(new_folder()?, &MadeTpm::first(BANKS)?, more)
    }

    fn start_in(folder: TempDir, made: &MadeTpm, more: &str) -> Result<Self> {
        program("vtpmctl")?;
        let tpm = prepare(folder.path(), made, &program("vtpm-backend")?, more)?;
        let daemon = start_daemon(folder.path(), None)?;
        Ok(Self {
            daemon,
            tpm,
            unit: None,
            folder,
        })
    }

    /// A host with keys, an approval and a certificate, whose daemon runs as this unit says.
    pub(crate) fn of_unit(unit: Unit) -> Result<Self> {
        let (folder, backend) = unit::folder_with(&manager_program(), &program("vtpm-backend")?)?;
        let tpm = prepare(folder.path(), &MadeTpm::first(BANKS)?, &backend, "")?;
        unit.prepare(folder.path())?;
        let daemon = start_daemon(folder.path(), Some(&unit))?;
        let host = Self {
            daemon,
            tpm,
            unit: Some(unit),
            folder,
        };
        host.enrol()
    }

    /// A host with keys, an approval and a certificate.
    pub(crate) fn enrolled() -> Result<Self> {
        Self::enrolled_with("")
    }

    /// The same, with more lines in the daemon's configuration.
    pub(crate) fn enrolled_with(more: &str) -> Result<Self> {
        Self::start_with(more)?.enrol()
    }

    /// The same, with a disk of its own for the manager's state: 16 MiB.
    pub(crate) fn enrolled_on_small_disk(more: &str) -> Result<Self> {
        let folder = new_folder()?;
        let state = folder.path().join("state");
        fs::create_dir(&state)?;
        tool(&format!(
            "mount -t tmpfs -o size=16m,mode=700 tmpfs {}",
            state.display()
        ))
        .context("this test mounts a disk: run it as root")?;
        Self::start_in(folder, &MadeTpm::first(BANKS)?, more)?.enrol()
    }

    fn enrol(self) -> Result<Self> {
        let host = self;
        host.make_operator_key()?;
        host.make_issuer()?;
        host.initialise()?;
        host.ctl([
            "host",
            "enrol",
            "--name",
            "host-1",
            "--issuer",
            &host.path("issuer"),
        ])?;
        Ok(host)
    }

    /// An operator's key, `operator.pem` and `operator.pem.pub`.
    pub(crate) fn make_operator_key(&self) -> Result<()> {
        let operator = self.path("operator.pem");
        self.ctl(["host", "policy", "keygen", "--out", &operator])?;
        Ok(())
    }

    /// Keys in the physical TPM, and the operator's approval of what the host booted.
    pub(crate) fn initialise(&self) -> Result<()> {
        self.ctl([
            "host",
            "init",
            "--policy-key",
            &self.path("operator.pem.pub"),
        ])?;
        self.approve_from_host()
    }

    /// The operator's approval of the host's present state.
    pub(crate) fn approve_from_host(&self) -> Result<()> {
        self.ctl([
            "host",
            "policy",
            "sign",
            "--from-host",
            "--approve",
            "--key",
            &self.path("operator.pem"),
        ])?;
        Ok(())
    }

    /// Has the operator's key sign an approval; the file of it.
    pub(crate) fn signed_approval(&self, more: &[&str]) -> Result<String> {
        let (key, out) = (self.path("operator.pem"), self.path("approval.json"));
        let sign = ["host", "policy", "sign", "--key", &key, "--out", &out];
        self.ctl(sign.iter().chain(more))?;
        Ok(out)
    }

    /// An issuer that trusts the maker of this host's TPM and this host's operator.
    pub(crate) fn make_issuer(&self) -> Result<()> {
        self.ctl([
            "issuer",
            "init",
            "--domain",
            DOMAIN,
            "--dir",
            &self.path("issuer"),
            "--tpm-roots",
            &self.path("makers.pem"),
            "--operator-keys",
            &self.path("operator.pem.pub"),
        ])
        .map(drop)
    }

    /// Takes the identity key out of the physical TPM, as its owner can.
    pub(crate) fn evict_identity_key(&self) -> Result<()> {
        let tcti = format!("swtpm:path={}", self.path("tpm.sock"));
        let mut command = Command::new("tpm2_evictcontrol");
        let said = said(command.args(["-T", &tcti, "-C", "o", "-c", "0x81000100"]))?;
        ensure!(said.status == 0, "{}", said.err);
        Ok(())
    }

    /// A file of this host.
    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// The API's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("run/api.sock")
    }

    /// `vtpmctl`, pointed at this host.
    pub(crate) fn vtpmctl<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = Command::new(beside_daemon("vtpmctl"));
        command.arg("--socket").arg(self.socket()).args(arguments);
        command
    }

    /// Runs a command of `vtpmctl` that must succeed.
    pub(crate) fn ctl<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<String> {
        let mut command = self.vtpmctl(arguments);
        let line = format!("{command:?}");
        let said = said(&mut command)?;
        ensure!(said.status == 0, "{line}: {}", said.err);
        Ok(said.out)
    }

    /// The same, with what it says as JSON.
    pub(crate) fn json<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Value> {
        let mut command = self.vtpmctl(["--output", "json"]);
        command.args(arguments);
        let line = format!("{command:?}");
        let said = said(&mut command)?;
        ensure!(said.status == 0, "{line}: {}", said.err);
        Ok(serde_json::from_str(&said.out)?)
    }

    /// Runs a command of `vtpmctl` that must be refused; what it said on standard error.
    pub(crate) fn refused<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<String> {
        let mut command = self.vtpmctl(arguments);
        let line = format!("{command:?}");
        let said = said(&mut command)?;
        ensure!(said.status == 1, "{line}: status {}", said.status);
        Ok(said.err)
    }

    /// Creates a vRoT for a new VM.
    pub(crate) fn create(&self) -> Result<String> {
        self.create_for(TENANT)
    }

    /// The same for a VM of this tenant.
    pub(crate) fn create_for(&self, tenant: &str) -> Result<String> {
        let vm = Uuid::new_v4().to_string();
        self.ctl(["create", "--vm", &vm, "--tenant", tenant])?;
        Ok(vm)
    }

    /// The process of a running vRoT's backend.
    pub(crate) fn backend(&self, vm: &str) -> Result<i32> {
        let process = self.json(["show", vm])?["backend"]["process"].as_i64();
        Ok(i32::try_from(process.context("it does not run")?)?)
    }

    /// The socket where a VMM attaches.
    pub(crate) fn control(&self, vm: &str) -> Result<PathBuf> {
        let view = self.json(["show", vm])?;
        let control = view["backend"]["control"].as_str();
        Ok(control.context("it does not run")?.into())
    }

    /// The daemon's process.
    pub(crate) fn manager(&self) -> Result<i32> {
        Ok(self.daemon.id().try_into()?)
    }

    /// Has everything between this host's manager and its TPM pass by somebody.
    pub(crate) fn put_bus_between(&mut self) -> Result<Bus> {
        let bus = Bus::between(&self.path("bus.sock"), &self.path("tpm.sock"))?;
        self.shut_down()?;
        let config = fs::read_to_string(self.path("config.toml"))?;
        let config = config.replace(&self.path("tpm.sock"), &self.path("bus.sock"));
        fs::write(self.path("config.toml"), config)?;
        self.start_again()?;
        Ok(bus)
    }

    /// Ends the daemon as a crash would.
    pub(crate) fn crash(&mut self) -> Result<()> {
        self.daemon.kill()?;
        self.daemon.wait()?;
        Ok(())
    }

    /// Ends the daemon as an administrator would.
    pub(crate) fn shut_down(&mut self) -> Result<ExitStatus> {
        kill(Pid::from_raw(self.daemon.id().try_into()?), Signal::SIGTERM)?;
        let mut ended = None;
        wait_until("the daemon's end", || {
            ended = self.daemon.try_wait()?;
            Ok(ended.is_some())
        })?;
        ended.context("it ended")
    }

    /// Sends the daemon a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.daemon.id().try_into()?), signal)?)
    }

    /// Measures data into a PCR of the physical TPM, which the daemon must not be using.
    pub(crate) fn extend_pcr(&self, pcr: u8, data: &[u8]) -> Result<()> {
        let digest = hex::encode(HashAlgorithm::Sha256.hash(&[data]).as_bytes());
        let tpm = self.path("tpm.sock");
        tool(&format!(
            "tpm2_pcrextend -T swtpm:path={tpm} {pcr}:sha256={digest}"
        ))
    }

    /// The process that is the physical TPM.
    pub(crate) fn tpm(&self) -> Result<i32> {
        Ok(self.tpm.id().try_into()?)
    }

    /// The host loses power, and comes up again.
    pub(crate) fn lose_power(&mut self) -> Result<()> {
        self.crash()?;
        self.kill_backends()?;
        self.reset_tpm()?;
        self.start_again()
    }

    /// Resets the physical TPM, as a reset of the host does. The daemon must not be using it.
    pub(crate) fn reset_tpm(&mut self) -> Result<()> {
        let process = Pid::from_raw(self.tpm()?);
        self.take_tpm_away()?;
        wait_until("the end of the TPM", || {
            // Its end is not waited for as long as its value is there.
            let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
            Ok(stat.is_empty() || stat.contains(") Z "))
        })?;
        self.tpm = switch_on_again(self.folder.path())?;
        Ok(())
    }

    /// Processes that live in folders of vRoTs.
    pub(crate) fn all_instances(&self) -> Vec<i32> {
        processes_in(&self.folder.path().join("run"))
    }

    /// Takes the physical TPM away.
    pub(crate) fn take_tpm_away(&self) -> Result<()> {
        tool(&format!(
            "swtpm_ioctl --unix {} -s",
            self.path("tpm.sock.ctrl")
        ))
    }

    /// Fills the small disk; the file to be removed when there is to be room again.
    pub(crate) fn fill_disk(&self) -> Result<PathBuf> {
        let filling = self.folder.path().join("state/filling");
        let mut file = fs::File::create(&filling)?;
        while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
        Ok(filling)
    }

    /// Kills every backend of this host.
    pub(crate) fn kill_backends(&self) -> Result<()> {
        kill_processes_in(self.folder.path());
        Ok(())
    }

    /// The processes that live in the folder of a vRoT.
    pub(crate) fn instances_of(&self, vm: &str) -> Result<Vec<i32>> {
        let vrot = self.json(["show", vm])?["vrot"].clone();
        let vrot = vrot.as_str().context("a vRoT")?;
        Ok(processes_in(&self.folder.path().join("run").join(vrot)))
    }

    /// Starts the daemon again.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        self.daemon = start_daemon(self.folder.path(), self.unit.as_ref())?;
        Ok(())
    }

    /// The same, with a clock that is ahead, in the notation of libfaketime: `+8h`.
    pub(crate) fn start_again_with_clock(&mut self, offset: &str) -> Result<()> {
        self.daemon =
            start_daemon_with(self.folder.path(), log_of(self.folder.path())?, |daemon| {
                daemon
                    .env("LD_PRELOAD", "/usr/$LIB/faketime/libfaketimeMT.so.1")
                    .env("FAKETIME", offset)
                    .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
                    .env("FAKETIME_DISABLE_SHM", "1");
            })?;
        Ok(())
    }

    /// The same, without waiting for more than that somebody listens.
    pub(crate) fn begin_again(&mut self) -> Result<()> {
        let folder = self.folder.path();
        let daemon = daemon_in(folder).stderr(log_of(folder)?).spawn()?;
        let socket = self.socket();
        self.daemon = wait_for_daemon(daemon, folder, "the daemon's socket", || {
            UnixStream::connect(&socket).is_ok()
        })?;
        Ok(())
    }

    /// The same, telling a service manager that listens there (sd_notify(3)).
    pub(crate) fn start_again_notifying(&mut self, socket: &str) -> Result<()> {
        let folder = self.folder.path();
        self.daemon = start_daemon_with(folder, log_of(folder)?, |daemon| {
            daemon.env("NOTIFY_SOCKET", socket);
        })?;
        Ok(())
    }

    /// The same, with its log going somewhere else.
    pub(crate) fn start_again_logging_to(&mut self, log: Stdio) -> Result<()> {
        self.daemon = start_daemon_logging_to(self.folder.path(), log)?;
        Ok(())
    }

    /// The lines of the audit log.
    pub(crate) fn audit(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.path("state/audit.jsonl"))?;
        let lines = text.lines().map(serde_json::from_str);
        Ok(lines.collect::<Result<_, _>>()?)
    }

    /// The value of a metric.
    pub(crate) fn metric(&self, name: &str) -> Result<f64> {
        let metrics = http::ask(&self.socket(), "GET", "/metrics", "")?.body;
        let mut lines = metrics.lines().filter_map(|line| line.split_once(' '));
        let line = lines.find(|(found, _)| *found == name);
        Ok(line.with_context(|| format!("no {name}"))?.1.parse()?)
    }

    /// What the daemon said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("daemon.log")).unwrap_or_default()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        end_processes_of(self.folder.path());
        // Where it is a disk of its own.
        let _ = said(Command::new("umount").arg(self.folder.path().join("state")));
    }
}

fn new_folder() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("vm-").tempdir()?)
}

/// Runs a command to its end.
pub(crate) fn said(command: &mut Command) -> Result<Said> {
    let output = command.stdin(Stdio::null()).output()?;
    Ok(Said {
        status: output.status.code().context("ended by a signal")?,
        out: String::from_utf8(output.stdout)?,
        err: String::from_utf8(output.stderr)?,
    })
}

/// Waits until something is the case.
pub(crate) fn wait_until(what: &str, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is()? {
        ensure!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// TPM, event log and configuration of a host.
fn prepare(folder: &Path, made: &MadeTpm, backend: &Path, more: &str) -> Result<SoftwareTpm> {
    // Other users must get as far as the API's socket.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    let tpm = switch_on(folder, made)?;
    fs::write(folder.join("event-log"), [])?;
    let at = |name: &str| folder.join(name).display().to_string();
    let config = format!(
        "tpm = \"swtpm:path={}\"\nstate_dir = \"{}\"\nruntime_dir = \"{}\"\n\
         backend = \"{}\"\nevent_log = \"{}\"\n{more}",
        at("tpm.sock"),
        at("state"),
        at("run"),
        backend.display(),
        at("event-log"),
    );
    fs::write(folder.join("config.toml"), config)?;
    Ok(tpm)
}

fn manager_program() -> PathBuf {
    env!("CARGO_BIN_EXE_vtpm-managerd").into()
}

/// The host's physical TPM, switched on, and the certificates of its maker, `makers.pem`.
fn switch_on(folder: &Path, made: &MadeTpm) -> Result<SoftwareTpm> {
    made.copy_to(&folder.join("tpm"))?;
    fs::write(folder.join("makers.pem"), made.maker_certificates()?)?;
    switch_on_again(folder)
}

fn switch_on_again(folder: &Path) -> Result<SoftwareTpm> {
    SoftwareTpm::start(
        "the host's TPM",
        &folder.join("tpm"),
        &folder.join("tpm.sock"),
        &folder.join("tpm.log"),
    )
}

fn tool(line: &str) -> Result<()> {
    let mut words = line.split_whitespace();
    let program = words.next().context("a program")?;
    let said = said(Command::new(program).args(words))
        .with_context(|| format!("{program} is needed for this test"))?;
    ensure!(said.status == 0, "{line}: {}{}", said.out, said.err);
    Ok(())
}

/// A program of another package, beside the daemon. Tests build nothing, and cargo does not build
/// another package's programs for a test: `make test` builds all of them first.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    let program = beside_daemon(name);
    ensure!(
        program.is_file(),
        "{} is missing: build the programs first, with `cargo build --workspace --bins`",
        program.display()
    );
    Ok(program)
}

fn beside_daemon(name: &str) -> PathBuf {
    manager_program().with_file_name(name)
}
