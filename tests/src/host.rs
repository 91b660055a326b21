//! A host: its physical TPM (swtpm), its boot log, and `vtpm-managerd` on top of them.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use cert_chain::HashAlgorithm;
use serde_json::Value;
use test_support::process::Process;
use test_support::programs::program;
use test_support::run_folder::RunFolder;
use test_support::software_tpm::{MadeTpm, SoftwareTpm};
use test_support::tool::Tool;
use uuid::Uuid;

use crate::guest::{GuestSpec, TpmDevice};
use crate::host_boot_log::HostBootLog;
use crate::issuer::IssuerFolder;

/// A running host.
#[derive(Debug)]
pub struct Host {
    // Dropped first: it holds the connection to the TPM.
    manager: Process,
    tpm: Option<SoftwareTpm>,
    boot_log: HostBootLog,
    name: String,
    folder: PathBuf,
    config: PathBuf,
    log: PathBuf,
    starts: u32,
}

impl Host {
    /// Gives a host a TPM that was made, measures a boot into all of its PCR banks and starts the
    /// manager.
    ///
    /// `name` is the host's label in the issuer's domain.
    pub fn start(
        run: &RunFolder,
        name: &str,
        made: &MadeTpm,
        banks: &[HashAlgorithm],
    ) -> Result<Self> {
        let state = run.join(name).join("tpm-state");
        made.copy_to(&state)?;
        let tpm = switch_on(run, name, &state)?;
        let boot_log = HostBootLog::in_banks("6.1.0-30-amd64", banks);
        boot_log.measure_into(&tpm)?;
        Self::on_tpm(run, name, tpm, &boot_log)
    }

    /// Starts the manager of a host whose TPM is on and whose boot is measured.
    pub fn on_tpm(
        run: &RunFolder,
        name: &str,
        tpm: SoftwareTpm,
        boot_log: &HostBootLog,
    ) -> Result<Self> {
        let folder = run.join(name);
        let event_log = folder.join("event-log");
        fs::create_dir_all(&folder)?;
        fs::write(&event_log, boot_log.bytes())?;
        let config = folder.join("config.toml");
        fs::write(
            &config,
            format!(
                "tpm = \"{}\"\nstate_dir = \"{}\"\nruntime_dir = \"{}\"\nbackend = \"{}\"\n\
                 event_log = \"{}\"\n",
                tpm.tcti(),
                folder.join("state").display(),
                folder.join("run").display(),
                program("vtpm-backend")?.display(),
                event_log.display(),
            ),
        )?;
        let log = run.log(&format!("{name}-manager.log"));
        let manager = start_manager(name, &config, &folder, &log)?;
        Ok(Self {
            manager,
            tpm: Some(tpm),
            boot_log: boot_log.clone(),
            name: name.to_owned(),
            folder,
            config,
            log,
            starts: 1,
        })
    }

    /// The host's label.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The host's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where its manager listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("run").join("api.sock")
    }

    /// `vtpmctl`, pointed at this host's manager.
    pub fn vtpmctl<I, S>(&self, arguments: I) -> Result<Tool>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        Ok(Tool::new(program("vtpmctl")?)
            .arg("--socket")
            .arg(self.socket())
            .args(arguments))
    }

    /// Provisions the physical TPM and enrols the host with an issuer, in one go.
    pub fn enrol(&self, issuer: &IssuerFolder) -> Result<()> {
        self.operator_key_command()?.run()?;
        issuer.accept_operator(&self.operator_public_key())?;
        self.init_command()?.run()?;
        self.approve_command()?.run()?;
        self.enrol_command(issuer)?.run()?;
        Ok(())
    }

    /// The command that makes the operator's key, with which PCR values are approved.
    pub fn operator_key_command(&self) -> Result<Tool> {
        Ok(self
            .vtpmctl(["host", "policy", "keygen", "--out"])?
            .arg(self.operator_key()))
    }

    /// The command that makes the host's keys.
    pub fn init_command(&self) -> Result<Tool> {
        Ok(self
            .vtpmctl(["host", "init", "--policy-key"])?
            .arg(self.operator_public_key()))
    }

    /// The command with which the operator approves what the host has booted. In earnest it is
    /// two, on two machines, and the values and the approval travel between them as files.
    pub fn approve_command(&self) -> Result<Tool> {
        Ok(self
            .vtpmctl([
                "host",
                "policy",
                "sign",
                "--from-host",
                "--approve",
                "--key",
            ])?
            .arg(self.operator_key()))
    }

    /// The operator's private key; in earnest it is not on the host's machine.
    pub fn operator_key(&self) -> PathBuf {
        self.folder.join("operator-key.pem")
    }

    /// The public half of the operator's key.
    pub fn operator_public_key(&self) -> PathBuf {
        self.folder.join("operator-key.pem.pub")
    }

    /// The command that enrols with a local issuer.
    pub fn enrol_command(&self, issuer: &IssuerFolder) -> Result<Tool> {
        Ok(self
            .vtpmctl(["host", "enrol", "--name", &self.name])?
            .arg("--issuer")
            .arg(issuer.folder()))
    }

    /// Manufactures a vRoT for a VM.
    pub fn create(&self, vm: Uuid, tenant: &str) -> Result<()> {
        self.create_command(vm, tenant)?.run()?;
        Ok(())
    }

    /// The command of [`Host::create`].
    pub fn create_command(&self, vm: Uuid, tenant: &str) -> Result<Tool> {
        self.vtpmctl(["create", "--vm", &vm.to_string(), "--tenant", tenant])
    }

    /// Starts a VM's vRoT.
    pub fn start_vrot(&self, vm: Uuid) -> Result<()> {
        self.vtpmctl(["start", &vm.to_string()])?.run()?;
        Ok(())
    }

    /// Starts a VM's vRoT, and has measured what the VM is launched with.
    pub fn start_measured(&self, vm: Uuid, spec: &GuestSpec) -> Result<()> {
        let start = self.vtpmctl(["start", &vm.to_string(), "--machine", "q35"])?;
        start
            .args(["--memory-mib", "512", "--command-line", &spec.command_line])
            .arg("--kernel")
            .arg(&spec.kernel)
            .arg("--initramfs")
            .arg(&spec.initramfs)
            .run()?;
        Ok(())
    }

    /// What was measured of the VM's launch.
    pub fn launch(&self, vm: Uuid) -> Result<Value> {
        let measure = self.vtpmctl(["--output", "json", "measure", &vm.to_string()])?;
        Ok(serde_json::from_slice(&measure.run()?)?)
    }

    /// Stops a VM's vRoT.
    pub fn stop_vrot(&self, vm: Uuid) -> Result<()> {
        self.vtpmctl(["stop", &vm.to_string()])?.run()?;
        Ok(())
    }

    /// What the manager tells about a VM's vRoT.
    pub fn show(&self, vm: Uuid) -> Result<Value> {
        let show = self.vtpmctl(["--output", "json", "show", &vm.to_string()])?;
        Ok(serde_json::from_slice(&show.run()?)?)
    }

    /// What the manager tells about a VM's identity.
    pub fn identity(&self, vm: Uuid) -> Result<Value> {
        let text = self
            .vtpmctl(["--output", "json", "identity", &vm.to_string()])?
            .run()?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// QEMU's arguments for a VM's TPM.
    pub fn qemu_arguments(&self, vm: Uuid, device: TpmDevice) -> Result<Vec<String>> {
        let text = self.qemu_arguments_command(vm, device)?.text()?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    }

    /// The command of [`Host::qemu_arguments`].
    pub fn qemu_arguments_command(&self, vm: Uuid, device: TpmDevice) -> Result<Tool> {
        let device = match device {
            TpmDevice::Crb => "tpm-crb",
            TpmDevice::Tis => "tpm-tis",
        };
        self.vtpmctl(["qemu-args", &vm.to_string(), "--device", device])
    }

    /// Stops the manager as an administrator would and starts it again.
    pub fn restart_manager(&mut self) -> Result<()> {
        self.manager.stop()?;
        self.start_again()
    }

    /// Ends the manager as a crash would and starts it again.
    pub fn crash_manager(&mut self) -> Result<()> {
        self.manager.kill()?;
        self.start_again()
    }

    /// Stops the manager, lets somebody at its state folder, and starts it again.
    pub fn restart_manager_after(
        &mut self,
        meanwhile: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        self.manager.stop()?;
        meanwhile(&self.folder.join("state"))?;
        self.start_again()
    }

    /// Ends the manager as a crash would, lets something happen without one, and starts it again.
    pub fn without_manager<T>(&mut self, meanwhile: impl FnOnce() -> Result<T>) -> Result<T> {
        self.manager.kill()?;
        let outcome = meanwhile();
        self.start_again()?;
        outcome
    }

    /// Switches the host off, in order, and on again. It boots as before. No vRoT may be running.
    pub fn reboot(&mut self, run: &RunFolder) -> Result<()> {
        self.manager.stop()?;
        if let Some(tpm) = self.tpm.take() {
            tpm.switch_off()?;
        }
        let tpm = switch_on(run, &self.name, &self.folder.join("tpm-state"))?;
        self.boot_log.measure_into(&tpm)?;
        self.tpm = Some(tpm);
        self.start_again()
    }

    fn start_again(&mut self) -> Result<()> {
        self.starts += 1;
        let log = self.log.with_extension(format!("{}.log", self.starts));
        self.manager = start_manager(&self.name, &self.config, &self.folder, &log)?;
        Ok(())
    }
}

/// Switches the TPM of a host on that was manufactured into `state`.
pub fn switch_on(run: &RunFolder, name: &str, state: &Path) -> Result<SoftwareTpm> {
    SoftwareTpm::start(
        name,
        state,
        &run.join(format!("{name}.tpm")),
        &run.log(&format!("{name}-swtpm.log")),
    )
}

fn start_manager(name: &str, config: &Path, folder: &Path, log: &Path) -> Result<Process> {
    let mut command = Command::new(program("vtpm-managerd")?);
    command.arg("--config").arg(config);
    let mut manager = Process::start(&format!("{name} (vtpm-managerd)"), command, log)?;
    let socket = folder.join("run").join("api.sock");
    manager
        .wait_until("the manager's socket", Duration::from_secs(30), || {
            Ok(UnixStream::connect(&socket).ok().map(drop))
        })
        .with_context(|| format!("configuration {}", config.display()))?;
    Ok(manager)
}
