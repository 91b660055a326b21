//! A whole scene for tests: TPM maker, issuer, enrolled host, a booted VM, and a device's policy.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cert_chain::HashAlgorithm;
use test_support::run_folder::RunFolder;
use test_support::software_tpm::MadeTpm;
use uuid::Uuid;

use crate::device::{self, Attestation};
use crate::guest::{Guest, GuestSpec, TpmDevice};
use crate::guest_image::{Contents, GuestImage};
use crate::host::Host;
use crate::issuer::IssuerFolder;

/// The issuer's domain in every scene.
pub const DOMAIN: &str = "test.example";
/// The tenant in every scene.
pub const TENANT: &str = "acme";

/// An enrolled host and what belongs to it; no VM yet.
#[derive(Debug)]
pub struct Scene {
    // In the order in which they end.
    /// The host.
    pub host: Host,
    /// The issuer that enrolled it.
    pub issuer: IssuerFolder,
    /// The run's folder.
    pub run: RunFolder,
}

impl Scene {
    /// Sets up a host called `host-1` and enrols it.
    pub fn set(name: &str) -> Result<Self> {
        Self::set_with(name, &[HashAlgorithm::Sha256])
    }

    /// The same with a TPM that has these PCR banks.
    pub fn set_with(name: &str, banks: &[HashAlgorithm]) -> Result<Self> {
        let run = RunFolder::create(name)?;
        let names: Vec<&str> = banks.iter().map(|bank| bank.name()).collect();
        let made = MadeTpm::first(&names)?;
        let host = Host::start(&run, "host-1", &made, banks)?;
        let makers = made.maker_certificates()?;
        let issuer = IssuerFolder::create(&run.join("issuer"), DOMAIN, &makers)?;
        host.enrol(&issuer)?;
        Ok(Self { host, issuer, run })
    }

    /// A second host of the same issuer, with another TPM of the same maker.
    pub fn another_host(&self, name: &str) -> Result<Host> {
        let banks = [HashAlgorithm::Sha256];
        let made = MadeTpm::second(&[HashAlgorithm::Sha256.name()])?;
        let host = Host::start(&self.run, name, &made, &banks)?;
        host.enrol(&self.issuer)?;
        Ok(host)
    }

    /// What a test guest boots with a VM's vRoT: stock tools and a shell.
    pub fn spec(&self, host: &Host, vm: Uuid, device: TpmDevice) -> Result<GuestSpec> {
        let image = GuestImage::build(Contents::ServiceAndTools)?;
        Ok(GuestSpec::new(&image)
            .tpm(host.qemu_arguments(vm, device)?)
            .with_shell())
    }

    /// Creates a vRoT on `host` and boots a VM with it.
    pub fn boot(&self, host: &Host, name: &str, vm: Uuid, device: TpmDevice) -> Result<Guest> {
        host.create(vm, TENANT)?;
        let spec = self.spec(host, vm, device)?;
        host.start_measured(vm, &spec)?;
        Guest::boot(&self.run, name, &spec)
    }

    /// Writes a policy (with its roots beside it) that accepts the VM as it is running now.
    pub fn policy_for(&self, guest: &mut Guest, vm: Uuid, folder: &Path) -> Result<PathBuf> {
        fs::create_dir_all(folder)?;
        let roots = folder.join("roots.pem");
        fs::copy(self.issuer.root(), &roots).context("copying the issuer's root")?;
        let reference = device::reference_command(guest.service()?, &roots)?.text()?;
        let policy = folder.join("policy.toml");
        let host = format!("{}.{DOMAIN}", self.host.name());
        fs::write(&policy, device::policy_text(vm, TENANT, &host, &reference))?;
        Ok(policy)
    }
}

/// A VM that was booted and attested once, with everything that left.
#[derive(Debug)]
pub struct AttestedVm {
    /// The running machine.
    pub guest: Guest,
    /// Its id.
    pub vm: Uuid,
    /// Where its service answers.
    pub service: SocketAddr,
    /// The device's policy, which accepts it.
    pub policy: PathBuf,
    /// The evidence and its nonce.
    pub attestation: Attestation,
    /// Exit status of `vrot-device attest`.
    pub status: i32,
    /// The result that it printed.
    pub result: serde_json::Value,
    /// The scene it plays in.
    pub scene: Scene,
}

impl AttestedVm {
    /// Sets a scene, boots a VM in it and attests it.
    pub fn start(name: &str) -> Result<Self> {
        Self::start_in(Scene::set(name)?)
    }

    /// Boots a VM in a scene and attests it.
    pub fn start_in(scene: Scene) -> Result<Self> {
        let vm = Uuid::new_v4();
        let mut guest = scene.boot(&scene.host, "vm", vm, TpmDevice::Crb)?;
        let folder = scene.run.join("device");
        let policy = scene.policy_for(&mut guest, vm, &folder)?;
        let attestation = Attestation::in_folder(&folder);
        let service = guest.service()?;
        let attest = device::attest_command(service, &policy, &attestation)?;
        let (status, result) = device::judge(attest)?;
        Ok(Self {
            guest,
            vm,
            service,
            policy,
            attestation,
            status,
            result,
            scene,
        })
    }
}
