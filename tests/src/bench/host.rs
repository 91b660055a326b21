//! The host whose figures are taken: its physical TPM is slow, its state lies on a real disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use cert_chain::HashAlgorithm;
use test_support::deadline::wait_for;
use test_support::process::Process;
use test_support::programs::program;
use test_support::run_folder::RunFolder;
use test_support::software_tpm::{SoftwareTpm, TpmMaker};
use test_support::tool::Tool;

use super::api::Api;
use super::disk::Disk;
use super::slow_tpm::SlowTpm;
use crate::host::switch_on;
use crate::host_boot_log::HostBootLog;
use crate::issuer::IssuerFolder;

/// An enrolled host whose manager runs.
#[derive(Debug)]
pub(super) struct BenchHost {
    manager: Process,
    tpm: SlowTpm,
    // Outlives the manager, which is connected to it.
    _swtpm: SoftwareTpm,
    api: Api,
    config: PathBuf,
    fixed_lines: String,
    log: PathBuf,
    starts: u32,
    issuer_root: PathBuf,
    certified_name: String,
}

const DOMAIN: &str = "bench.example";
const START: Duration = Duration::from_secs(300);

impl BenchHost {
    /// Manufactures a TPM, starts a manager with these further lines in its configuration, and
    /// enrols the host.
    pub(super) fn start(
        run: &RunFolder,
        disk: &Disk,
        name: &str,
        signature: Duration,
        settings: &str,
    ) -> Result<Self> {
        let folder = disk.join(name);
        fs::create_dir_all(&folder)?;
        let maker = TpmMaker::create(&folder.join("tpm-maker"))?;
        let state = folder.join("tpm-state");
        maker.manufacture(&state, &[HashAlgorithm::Sha256.name()])?;
        let swtpm = switch_on(run, name, &state)?;
        let boot_log = HostBootLog::of_debian_server("6.1.0-30-amd64");
        boot_log.measure_into(&swtpm)?;
        fs::write(folder.join("event-log"), boot_log.bytes())?;
        let upstream = swtpm.tcti();
        let upstream = upstream.strip_prefix("swtpm:path=").context("a socket")?;
        let tpm = SlowTpm::open(
            run.join(format!("{name}.slow")),
            Path::new(upstream),
            signature,
        )?;
        let runtime = run.join(name);
        // On the manager's command line, by which it is found and ended if this run is killed.
        let config = run.join(format!("{name}.toml"));
        let fixed_lines = format!(
            "tpm = \"{}\"\nstate_dir = \"{}\"\nruntime_dir = \"{}\"\nbackend = \"{}\"\n\
             event_log = \"{}\"\n\
             # What the disk can do is measured, not a vRoT's share of it.\n\
             state_changes_per_second = 100000\n",
            tpm.tcti(),
            folder.join("state").display(),
            runtime.display(),
            program("vtpm-backend")?.display(),
            folder.join("event-log").display(),
        );
        fs::write(&config, fixed_lines.clone() + settings)?;
        let log = run.log(&format!("{name}-manager.log"));
        let api = Api::new(runtime.join("api.sock"));
        let manager = spawn(&config, &log)?;
        let mut host = Self {
            manager,
            tpm,
            _swtpm: swtpm,
            api,
            config,
            fixed_lines,
            log,
            starts: 1,
            issuer_root: folder.join("issuer/root.pem"),
            certified_name: format!("{name}.{DOMAIN}"),
        };
        host.wait_for_api()?;
        host.enrol(name, &folder, &maker.certificates()?)?;
        Ok(host)
    }

    /// The manager's API.
    pub(super) fn api(&self) -> &Api {
        &self.api
    }

    /// The certificate of the issuer that enrolled the host.
    pub(super) fn issuer_root(&self) -> &Path {
        &self.issuer_root
    }

    /// The host's name in certificates.
    pub(super) fn certified_name(&self) -> &str {
        &self.certified_name
    }

    /// The physical TPM.
    pub(super) fn tpm(&self) -> &SlowTpm {
        &self.tpm
    }

    /// The manager's process.
    pub(super) fn manager(&self) -> u32 {
        self.manager.id()
    }

    /// Ends the manager as an administrator would and starts it with these further lines in its
    /// configuration. vRoTs go on.
    pub(super) fn restart_with(&mut self, settings: &str) -> Result<()> {
        self.manager.stop()?;
        fs::write(&self.config, self.fixed_lines.clone() + settings)?;
        self.start_manager()?;
        self.wait_for_api()
    }

    /// Ends the manager as a crash would and starts it again at once, without waiting for it.
    pub(super) fn crash(&mut self) -> Result<()> {
        self.manager.kill()?;
        self.start_manager()
    }

    /// Ends the manager as an administrator would, and starts it again as soon as it has ended,
    /// without waiting for it.
    pub(super) fn restart(&mut self) -> Result<()> {
        self.manager.stop()?;
        self.start_manager()
    }

    fn start_manager(&mut self) -> Result<()> {
        self.starts += 1;
        let log = self.log.with_extension(format!("{}.log", self.starts));
        self.manager = spawn(&self.config, &log)?;
        Ok(())
    }

    /// Fails, with the end of its log, when the manager is no longer there.
    pub(super) fn must_run(&mut self) -> Result<()> {
        self.manager.must_run()
    }

    fn wait_for_api(&mut self) -> Result<()> {
        let api = self.api.clone();
        self.manager.wait_until("the manager to serve", START, || {
            // One that does not answer yet has not opened its store either.
            let metrics = api.metrics().ok();
            let opening = metrics.and_then(|metrics| metrics.find("vrot_store_opening"));
            Ok((opening == Some(0.0)).then_some(()))
        })
    }

    fn enrol(&self, name: &str, folder: &Path, makers: &str) -> Result<()> {
        let issuer = IssuerFolder::create(&folder.join("issuer"), DOMAIN, makers)?;
        let operator = folder.join("operator-key.pem");
        self.vtpmctl(["host", "policy", "keygen", "--out"])?
            .arg(&operator)
            .run()?;
        let public = operator.with_extension("pem.pub");
        issuer.accept_operator(&public)?;
        self.vtpmctl(["host", "init", "--policy-key"])?
            .arg(&public)
            .run()?;
        self.vtpmctl([
            "host",
            "policy",
            "sign",
            "--from-host",
            "--approve",
            "--key",
        ])?
        .arg(&operator)
        .run()?;
        self.vtpmctl(["host", "enrol", "--name", name, "--issuer"])?
            .arg(issuer.folder())
            .run()?;
        Ok(())
    }

    fn vtpmctl<const N: usize>(&self, arguments: [&str; N]) -> Result<Tool> {
        Ok(Tool::new(program("vtpmctl")?)
            .arg("--socket")
            .arg(self.api.socket())
            .args(arguments))
    }
}

impl Drop for BenchHost {
    /// Backends outlive their manager, which is their purpose; here they end with it.
    fn drop(&mut self) {
        let processes = super::launch::processes(&self.api).unwrap_or_default();
        let _ = self.manager.kill();
        for process in &processes {
            let _ = nix::sys::signal::kill(*process, nix::sys::signal::Signal::SIGKILL);
        }
        let _ = wait_for("backends to end", Duration::from_secs(30), || {
            let left = processes
                .iter()
                .any(|process| nix::sys::signal::kill(*process, None).is_ok());
            Ok((!left).then_some(()))
        });
    }
}

fn spawn(config: &Path, log: &Path) -> Result<Process> {
    let mut command = Command::new(program("vtpm-managerd")?);
    command.arg("--config").arg(config);
    Process::start("vtpm-managerd", command, log)
}
