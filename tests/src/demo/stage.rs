//! What the demo sets up before the first challenge.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use cert_chain::HashAlgorithm;
use test_support::run_folder::RunFolder;
use test_support::software_tpm::TpmMaker;
use uuid::Uuid;

use crate::accelerator::Accelerator;
use crate::device::{self, Attestation};
use crate::guest::{Guest, GuestSpec, TpmDevice};
use crate::guest_image::{Contents, GuestImage};
use crate::host::{Host, switch_on};
use crate::host_boot_log::HostBootLog;
use crate::issuer::IssuerFolder;
use crate::narrator::Narrator;

/// Everything that plays a part.
pub(super) struct Stage {
    // In the order in which they end: the hosts before the folder that holds their sockets.
    pub(super) host: Host,
    pub(super) image: GuestImage,
    pub(super) issuer: IssuerFolder,
    pub(super) maker: TpmMaker,
    pub(super) vm: Uuid,
    pub(super) run: RunFolder,
    output: PathBuf,
}

/// The identity issuer's domain; the hosts are named below it.
const DOMAIN: &str = "demo.example";
pub(super) const TENANT: &str = "demo";

impl Stage {
    /// Steps 1 to 4: image, physical TPM, issuer, enrolment, vRoT.
    pub(super) fn prepare(narrator: &mut Narrator) -> Result<Self> {
        let output = super::output_folder()?;
        let run = RunFolder::with_logs(super::logs()?)?;

        narrator.step(
            "The guest's image",
            "Debian's cloud kernel, and an initramfs with busybox and vrot-service.",
        );
        let image = narrator.wait("fetching the kernel and building the initramfs", || {
            GuestImage::build(Contents::Service)
        })?;
        let accelerator = narrator
            .wait("finding out whether KVM can carry a guest here", || {
                Accelerator::choose()
            })?;
        narrator.note(match accelerator {
            Accelerator::Kvm => "it can",
            Accelerator::Tcg => "it cannot: QEMU emulates the machine, a boot takes ten seconds",
        });

        narrator.step(
            "A software TPM plays the host's physical TPM",
            "Its endorsement key has a certificate from a TPM maker, as a real one has. The\n\
             host's boot (firmware, shim, GRUB, kernel) is measured into it.",
        );
        let maker = TpmMaker::create(&run.join("maker"))?;
        let host = start_host(narrator, &run, "host-1", &maker)?;

        narrator.step(
            "The host is enrolled with an identity issuer",
            "The host makes its identity key (IK) in the physical TPM; it works only while the\n\
             operator's key approves what the host booted. The issuer checks that key and the TPM\n\
             maker's certificate, and challenges the TPM (TPM2_MakeCredential); only the TPM that\n\
             holds both keys can answer (TPM2_ActivateCredential). Then it certifies the IK.",
        );
        narrator.quote(&narrator.run(host.operator_key_command()?)?);
        let operators = [host.operator_public_key()];
        let issuer =
            IssuerFolder::prepare(&run.join("issuer"), &maker.certificates()?, &operators)?;
        narrator.quote(&narrator.run(issuer.init_command(DOMAIN)?)?);
        fs::copy(issuer.root(), output.join("roots.pem")).context("copying the issuer's root")?;
        narrator.quote(&narrator.run(host.init_command()?)?);
        narrator.quote(&narrator.run(host.approve_command()?)?);
        narrator.quote(&narrator.run(host.enrol_command(&issuer)?)?);

        let vm = Uuid::new_v4();
        Ok(Self {
            host,
            image,
            issuer,
            maker,
            vm,
            run,
            output,
        })
    }

    /// Step: a golden boot, from whose evidence the policy's reference values come.
    pub(super) fn take_reference_values(&self, narrator: &Narrator) -> Result<()> {
        let golden = Uuid::new_v4();
        self.host.create(golden, TENANT)?;
        self.host.start_vrot(golden)?;
        let mut guest = narrator.wait("booting", || self.boot(&self.host, "golden", golden))?;
        let service = guest.service()?;
        let reference = narrator.run(device::reference_command(
            service,
            &self.output("roots.pem"),
        )?)?;
        guest.power_off()?;
        self.host.stop_vrot(golden)?;

        let policy = device::policy_text(self.vm, TENANT, &format!("host-1.{DOMAIN}"), &reference);
        fs::write(self.policy(), policy)?;
        narrator.note(&format!("policy: {}", self.policy().display()));
        Ok(())
    }

    /// Step: the VM that the device means.
    pub(super) fn start_vm(&self, narrator: &Narrator) -> Result<Guest> {
        narrator.quote(&narrator.run(self.host.create_command(self.vm, TENANT)?)?);
        self.host.start_vrot(self.vm)?;
        narrator.command(&self.host.qemu_arguments_command(self.vm, TpmDevice::Crb)?);
        narrator.wait("booting", || self.boot(&self.host, "vm", self.vm))
    }

    /// Boots the demo's image with a VM's vRoT.
    pub(super) fn boot(&self, host: &Host, name: &str, vm: Uuid) -> Result<Guest> {
        Guest::boot(&self.run, name, &self.spec(host, vm)?)
    }

    /// The demo's image with a VM's vRoT.
    pub(super) fn spec(&self, host: &Host, vm: Uuid) -> Result<GuestSpec> {
        let tpm = host.qemu_arguments(vm, TpmDevice::Crb)?;
        Ok(GuestSpec::new(&self.image).tpm(tpm).with_web_server())
    }

    /// A second host of the same issuer.
    pub(super) fn another_host(&self, narrator: &Narrator) -> Result<Host> {
        let host = start_host(narrator, &self.run, "host-2", &self.maker)?;
        host.enrol(&self.issuer)?;
        Ok(host)
    }

    /// The genuine evidence.
    pub(super) fn attestation(&self) -> Attestation {
        Attestation::in_folder(&self.output)
    }

    /// The device's policy.
    pub(super) fn policy(&self) -> PathBuf {
        self.output("policy.toml")
    }

    /// A file that the demo leaves.
    pub(super) fn output(&self, name: &str) -> PathBuf {
        self.output.join(name)
    }
}

fn start_host(narrator: &Narrator, run: &RunFolder, name: &str, maker: &TpmMaker) -> Result<Host> {
    let state = run.join(name).join("tpm-state");
    fs::create_dir_all(&state)?;
    narrator.run(maker.manufacture_command(&state, &[HashAlgorithm::Sha256.name()]))?;
    let tpm = switch_on(run, name, &state)?;
    let log = HostBootLog::of_debian_server("6.1.0-30-amd64");
    log.measure_into(&tpm)?;
    narrator.note(&format!(
        "{name}: {} events measured, TPM at {}",
        log.measurements().len(),
        tpm.tcti()
    ));
    let host = Host::on_tpm(run, name, tpm, &log)?;
    ensure!(host.name() == name, "a host keeps its name");
    Ok(host)
}
