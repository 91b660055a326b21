//! A guest whose TPM is behind virtio-i2c: QEMU as it is, and Linux' own drivers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use test_support::process::Process;
use test_support::programs::program;
use test_support::run_folder::RunFolder;
use test_support::tool::Tool;
use uuid::Uuid;
use vrot_tests::accelerator::Accelerator;
use vrot_tests::device;
use vrot_tests::guest::{Guest, GuestSpec, READY, TpmDevice};
use vrot_tests::guest_image::I2cGuest;
use vrot_tests::guest_shell::GuestShell;
use vrot_tests::scene::{Scene, TENANT};

const PATIENCE: Duration = Duration::from_secs(30);
const BOOT_PATIENCE: Duration = Duration::from_secs(180);
const ONES: &str = "1111111111111111111111111111111111111111111111111111111111111111";

struct Backend {
    process: Process,
    control: PathBuf,
    socket: PathBuf,
}

impl Backend {
    fn start(folder: &RunFolder, number: u32) -> Result<Self> {
        let (control, socket) = (folder.join("control"), folder.join("vhost-user"));
        let mut command = Command::new(program("vtpm-backend")?);
        command.arg("--control").arg(&control);
        command.arg("--vhost-user").arg(&socket);
        command.args(["--device", "virtio-i2c"]);
        command.arg("--state").arg(folder.join("state"));
        let log = folder.log(&format!("backend-{number}.log"));
        let mut process = Process::start("vtpm-backend", command, &log)?;
        process.wait_until("the backend to be ready", PATIENCE, || {
            Ok(std::fs::read_to_string(&log)?
                .contains("ready")
                .then_some(()))
        })?;
        Ok(Self {
            process,
            control,
            socket,
        })
    }
}

/// QEMU's device connects once, when it is made. For it to connect again, the socket has to be
/// connected before the device is made, which takes `-preconfig`.
fn connecting_again(socket: &Path) -> Vec<String> {
    let socket = format!("socket,id=tpm,reconnect=1,path={}", socket.display());
    let device = "vhost-user-i2c-pci,chardev=tpm,addr=0x10";
    let words = ["-chardev", &socket, "-device", device, "-preconfig"];
    words.map(ToOwned::to_owned).into()
}

fn pcr(shell: &mut GuestShell) -> Result<String> {
    let text = shell.text("tpm2_pcrread -T device:/dev/tpmrm0 sha256:16")?;
    let value = text.rsplit("0x").next().unwrap_or_default();
    Ok(value.trim().to_ascii_lowercase())
}

fn wait_for_connection(guest: &mut Guest, connected: bool) -> Result<()> {
    test_support::deadline::wait_for("QEMU and the backend", PATIENCE, || {
        let is = guest.monitor().is_connected("tpm")?;
        Ok((is == connected).then_some(()))
    })
}

#[test]
fn a_guest_finds_its_tpm_behind_virtio_i2c_and_only_the_host_resets_it() -> Result<()> {
    let folder = RunFolder::create("virtio-i2c")?;
    let mut backend = Backend::start(&folder, 1)?;
    let i2c = I2cGuest::build()?;
    let spec = GuestSpec::new(&i2c.image)
        .seabios()
        .tpm(connecting_again(&backend.socket))
        .more(i2c.surroundings())
        .with_shell();
    let mut guest = Guest::start_with(&folder, "guest", &spec, Accelerator::choose()?)?;
    wait_for_connection(&mut guest, true)?;
    guest.monitor().leave_preconfig()?;
    guest.wait_for_line(READY, BOOT_PATIENCE)?;
    let console = guest.console()?;
    ensure!(console.contains("tpm present"), "{console}");
    ensure!(console.contains("event log missing"), "{console}");

    let mut shell = guest.shell()?;
    let fresh = pcr(&mut shell)?;
    assert_eq!(fresh, "0".repeat(64));
    // RSA-2048, which the TPM goes on with while the driver asks how it stands.
    shell.run("tpm2_createprimary -Q -T device:/dev/tpmrm0 -C o -G rsa -c /tmp/primary")?;
    shell.run(&format!(
        "tpm2_pcrextend -T device:/dev/tpmrm0 16:sha256={ONES}"
    ))?;
    let extended = pcr(&mut shell)?;
    assert_ne!(extended, fresh);

    // A guest that starts anew, and resets the device thereby, has the PCRs that it had.
    guest.reset()?;
    assert_eq!(pcr(&mut shell)?, extended);
    // The host resets the TPM with the machine.
    Tool::new("swtpm_ioctl")
        .arg("--unix")
        .arg(&backend.control)
        .arg("-i")
        .run()?;
    guest.reset()?;
    assert_eq!(pcr(&mut shell)?, fresh);

    // A new backend has a TPM that is to be started, under drivers that go on.
    shell.run(&format!(
        "tpm2_pcrextend -T device:/dev/tpmrm0 16:sha256={ONES}"
    ))?;
    backend.process.stop()?;
    wait_for_connection(&mut guest, false)?;
    let _backend = Backend::start(&folder, 2)?;
    wait_for_connection(&mut guest, true)?;
    let (status, _, errors) = shell.outcome("tpm2_getrandom -T device:/dev/tpm0 --hex 8")?;
    let errors = String::from_utf8_lossy(&errors).into_owned();
    ensure!(
        status != 0 && errors.contains("0x100"),
        "{status}: {errors}"
    );
    shell.run("tpm2_startup -T device:/dev/tpm0 -c")?;
    assert_eq!(pcr(&mut shell)?, fresh);
    guest.power_off()
}

#[test]
fn a_managed_vrot_behind_virtio_i2c_is_known_by_its_launch_and_reset_by_its_manager() -> Result<()>
{
    let scene = Scene::set("managed-virtio-i2c")?;
    let vm = Uuid::new_v4();
    let create = scene.host.create_command(vm, TENANT)?;
    create.args(["--transport", "virtio-i2c"]).run()?;
    let i2c = I2cGuest::with_service()?;
    let spec = GuestSpec::new(&i2c.image)
        .seabios()
        .tpm(scene.host.qemu_arguments(vm, TpmDevice::Crb)?)
        .more(i2c.surroundings())
        .with_shell();
    scene.host.start_measured(vm, &spec)?;
    let mut guest = Guest::boot(&scene.run, "guest", &spec)?;
    attested_without_a_boot_log(&scene, &mut guest, vm)?;
    let mut shell = guest.shell()?;
    shell.run("tpm2_nvread -T device:/dev/tpmrm0 -C o 0x01c10002")?;
    let fresh = pcr(&mut shell)?;
    shell.run(&format!(
        "tpm2_pcrextend -T device:/dev/tpmrm0 16:sha256={ONES}"
    ))?;
    assert_ne!(pcr(&mut shell)?, fresh);
    scene.host.vtpmctl(["reset", &vm.to_string()])?.run()?;
    guest.reset()?;
    assert_eq!(pcr(&mut shell)?, fresh);
    guest.power_off()
}

/// The VM's service gives evidence without a boot log; a device affirms it by its measured launch, where
/// its policy says so, and not otherwise.
fn attested_without_a_boot_log(scene: &Scene, guest: &mut Guest, vm: Uuid) -> Result<()> {
    let folder = scene.run.join("device");
    let policy = scene.policy_for(guest, vm, &folder)?;
    let service = guest.service()?;
    let judged = |text: &str| -> Result<(i32, String)> {
        fs::write(&policy, text)?;
        let (status, result) = device::judge(device::challenge_command(service, &policy)?)?;
        Ok((status, result.to_string()))
    };
    let text = fs::read_to_string(&policy)?;
    let (status, result) = judged(&text)?;
    ensure!(
        status == 1 && result.contains("firmware-not-measured"),
        "{result}"
    );
    ensure!(!result.contains("boot-log-absent"), "{result}");
    let accepting = text.replace("[expect]", "[expect]\nfirmware_not_measured = \"accept\"");
    let (status, result) = judged(&accepting)?;
    ensure!(status == 0 && result.contains("pcrs-alone"), "{result}");
    let digest = scene.host.launch(vm)?["digest"].to_string();
    let other = accepting.replace(&digest, &format!("\"{ONES}\""));
    let (status, result) = judged(&other)?;
    ensure!(
        status == 1 && result.contains("launch-unexpected"),
        "{result}"
    );
    let (host, _) = accepting
        .split_once("# Nothing was measured")
        .unwrap_or_default();
    let pinned = format!("{host}[vm.reference.pcrs]\n4 = [\"sha256:{ONES}\"]\n");
    let (status, result) = judged(&pinned)?;
    ensure!(
        status == 1 && result.contains("boot-log-absent"),
        "{result}"
    );
    Ok(())
}
