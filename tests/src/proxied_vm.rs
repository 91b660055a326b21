//! A VM with `vrot-service proxy` in it, and nothing else: the VM is [bare](BareVm).

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use test_support::process::Process;
use test_support::programs::program;
use uuid::Uuid;

use crate::bare_vm::BareVm;
use crate::device;
use crate::guest::TpmDevice;
use crate::host::Host;
use crate::scene::{DOMAIN, Scene, TENANT};

/// A VM on a scene's host.
#[derive(Debug)]
pub struct ProxiedVm {
    /// Its id.
    pub vm: Uuid,
    /// Its TPM.
    pub bare: BareVm,
    folder: PathBuf,
}

/// `vrot-service proxy`, which takes connections.
#[derive(Debug)]
pub struct Proxy {
    /// The program.
    pub process: Process,
    /// Where it takes attested connections.
    pub attested: SocketAddr,
    /// Where it answers challenges.
    pub challenges: SocketAddr,
    /// What it says.
    pub log: PathBuf,
}

/// Until the host has certified the VM's keys.
const CERTIFIED: Duration = Duration::from_secs(60);

impl ProxiedVm {
    /// Creates a vRoT on `host` and boots a VM with it, whose files are in `folder`.
    pub fn boot(host: &Host, folder: &Path) -> Result<Self> {
        let vm = Uuid::new_v4();
        host.create(vm, TENANT)?;
        Self::boot_again(host, vm, folder)
    }

    /// Boots a VM that is off and has a vRoT.
    pub fn boot_again(host: &Host, vm: Uuid, folder: &Path) -> Result<Self> {
        host.start_vrot(vm)?;
        Ok(Self {
            vm,
            bare: BareVm::boot(&Self::control(host, vm)?, folder)?,
            folder: folder.to_owned(),
        })
    }

    /// Where a VMM attaches to a vRoT that runs.
    pub fn control(host: &Host, vm: Uuid) -> Result<PathBuf> {
        let arguments = host.qemu_arguments(vm, TpmDevice::Crb)?;
        arguments
            .iter()
            .flat_map(|argument| argument.split(','))
            .find_map(|option| option.strip_prefix("path="))
            .map(PathBuf::from)
            .context("a socket among QEMU's arguments")
    }

    /// Starts a proxy before the service at `forward`, with these options beside; `name` is its own.
    pub fn proxy(&self, name: &str, forward: SocketAddr, options: &[&str]) -> Result<Proxy> {
        self.proxy_by(
            Command::new(program("vrot-service")?),
            name,
            forward,
            options,
        )
    }

    /// The same, started by `command`, whose last argument is the program.
    pub fn proxy_by(
        &self,
        mut command: Command,
        name: &str,
        forward: SocketAddr,
        options: &[&str],
    ) -> Result<Proxy> {
        command
            .args(["proxy", "--listen", "127.0.0.1:0"])
            .args(["--challenges", "127.0.0.1:0", "--forward"])
            .arg(forward.to_string())
            .args(["--tpm", &self.bare.tpm(), "--event-log"])
            .arg(self.bare.event_log())
            .args(options);
        let log = self.folder.join(format!("{name}.log"));
        let mut process = Process::start(name, command, &log)?;
        let mut listening = |doing: &str| {
            process.wait_until("that it listens", CERTIFIED, || {
                let said = fs::read_to_string(&log)?;
                Ok(said.lines().find_map(|line| {
                    let (_, behind) = line.split_once("listen=")?;
                    let address = behind.split_whitespace().next()?;
                    line.contains(doing).then(|| address.parse().ok())?
                }))
            })
        };
        let attested = listening("taking attested connections")?;
        let challenges = listening("answering challenges")?;
        Ok(Proxy {
            process,
            attested,
            challenges,
            log,
        })
    }

    /// Writes a policy, with its roots beside it, that accepts this VM as it is running now.
    pub fn policy(&self, scene: &Scene, proxy: &Proxy) -> Result<PathBuf> {
        let roots = self.folder.join("roots.pem");
        fs::copy(scene.issuer.root(), &roots).context("copying the issuer's root")?;
        let reference = device::reference_command(proxy.challenges, &roots)?.text()?;
        let policy = self.folder.join("policy.toml");
        let host = format!("{}.{DOMAIN}", scene.host.name());
        fs::write(
            &policy,
            device::policy_text(self.vm, TENANT, &host, &reference),
        )?;
        Ok(policy)
    }
}

impl Proxy {
    /// Whether the log has said this.
    pub fn said(&self, text: &str) -> Result<bool> {
        Ok(fs::read_to_string(&self.log)?.contains(text))
    }
}
