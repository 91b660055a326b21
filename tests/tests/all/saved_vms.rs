//! VMs that are saved and go on, here or from what was saved: real QEMU, by itself and under
//! libvirt, on vRoTs of a manager and on a stand-alone backend.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use test_support::deadline::wait_for;
use test_support::process::{Process, tail};
use test_support::programs::program;
use test_support::run_folder::RunFolder;
use test_support::tool::Tool;
use uuid::Uuid;
use vrot_tests::accelerator::Accelerator;
use vrot_tests::guest::{Guest, GuestSpec, TpmDevice};
use vrot_tests::guest_image::{Contents, GuestImage};
use vrot_tests::guest_shell::GuestShell;
use vrot_tests::libvirt::Libvirt;
use vrot_tests::scene::{Scene, TENANT};

/// What a guest sees of its TPM: PCR 16 and what it wrote to NV memory.
type Seen = (String, String);

const PATIENCE: Duration = Duration::from_secs(30);
const UNTOUCHED: &str = "0000000000000000000000000000000000000000000000000000000000000000";

#[test]
fn libvirt_saves_a_vm_of_a_manager_and_restores_it_once() -> Result<()> {
    let mut scene = Scene::set("saved-by-libvirt")?;
    let vm = Uuid::new_v4();
    scene.host.create(vm, TENANT)?;
    scene.host.start_vrot(vm)?;
    let control = control_of(&scene.host.qemu_arguments(vm, TpmDevice::Crb)?)?;
    let libvirt = Libvirt::create(&scene.run)?;
    let image = GuestImage::build(Contents::ServiceAndTools)?;
    let domain = libvirt.define("vm", vm, &image, &control)?;
    domain.virsh("start", &[])?;
    domain.wait_until_ready()?;
    define_index(&mut domain.shell()?)?;
    let [first, second, third] =
        ["first", "second", "third"].map(|name| scene.run.join(format!("{name}.save")));

    let seen = change(&mut domain.shell()?, "a")?;
    // libtpms writes its clock down every 4,096 ms, with the next change of the permanent state.
    domain.shell()?.run("sleep 5; tpm2_getrandom 4")?;
    domain.virsh("save", &[text(&first)?])?;
    domain.restore(&first)?;
    assert_eq!(look(&mut domain.shell()?)?, seen);

    // The vRoT is stopped meanwhile, and its manager another one.
    let seen = change(&mut domain.shell()?, "b")?;
    domain.virsh("save", &[text(&second)?])?;
    scene.host.stop_vrot(vm)?;
    scene.host.crash_manager()?;
    scene.host.start_vrot(vm)?;
    // An old one first: that costs the new one nothing.
    let refused = domain.restore_refused(&first)?;
    ensure!(refused.contains("stateblob"), "{refused}");
    domain.restore(&second)?;
    assert_eq!(look(&mut domain.shell()?)?, seen);

    // One that libvirt keeps itself.
    let seen = change(&mut domain.shell()?, "c")?;
    domain.virsh("managedsave", &[])?;
    domain.virsh("start", &[])?;
    assert_eq!(look(&mut domain.shell()?)?, seen);

    // What could not be restored is refused before the VM is gone.
    let (_, nv) = scene.host.without_manager(|| {
        let seen = change(&mut domain.shell()?, "d")?;
        domain.refused("save", &[text(&third)?])?;
        assert_eq!(domain.state()?, "running");
        assert_eq!(look(&mut domain.shell()?)?, seen);
        Ok(seen)
    })?;

    domain.reset()?;
    assert_eq!(look(&mut domain.shell()?)?, (UNTOUCHED.to_owned(), nv));
    Ok(())
}

#[test]
fn libvirt_saves_a_vm_of_a_stand_alone_backend_and_restores_it() -> Result<()> {
    let run = RunFolder::create("saved-stand-alone")?;
    let backend = Backend::start(&run)?;
    let libvirt = Libvirt::create(&run)?;
    let image = GuestImage::build(Contents::ServiceAndTools)?;
    let domain = libvirt.define("vm", Uuid::new_v4(), &image, &backend.control)?;
    domain.virsh("start", &[])?;
    domain.wait_until_ready()?;
    define_index(&mut domain.shell()?)?;
    let saved = run.join("saved");
    let seen = change(&mut domain.shell()?, "a")?;
    domain.virsh("save", &[text(&saved)?])?;
    domain.restore(&saved)?;
    assert_eq!(look(&mut domain.shell()?)?, seen);
    let seen = change(&mut domain.shell()?, "b")?;
    domain.virsh("managedsave", &[])?;
    domain.virsh("start", &[])?;
    assert_eq!(look(&mut domain.shell()?)?, seen);
    domain.reset()?;
    assert_eq!(look(&mut domain.shell()?)?, (UNTOUCHED.to_owned(), seen.1));
    Ok(())
}

#[test]
fn a_vm_of_a_manager_that_was_saved_and_goes_on_does_not_come_back_as_it_was() -> Result<()> {
    let scene = Scene::set("saved-and-gone-on")?;
    let vm = Uuid::new_v4();
    scene.host.create(vm, TENANT)?;
    scene.host.start_vrot(vm)?;
    let tpm = scene.host.qemu_arguments(vm, TpmDevice::Tis)?;
    let spec = spec(&scene.run, tpm)?;
    let mut guest = Guest::boot(&scene.run, "vm", &spec)?;
    define_index(&mut guest.shell()?)?;

    // Migrated to a file, and on.
    change(&mut guest.shell()?, "a")?;
    let file = scene.run.join("migrated");
    save(&mut guest, &file)?;
    guest.monitor().say("cont")?;
    let (_, nv) = change(&mut guest.shell()?, "b")?;
    guest.reset()?;
    let boot = (UNTOUCHED.to_owned(), nv);
    assert_eq!(look(&mut guest.shell()?)?, boot);
    guest.power_off()?;
    let name = "old";
    let refused = incoming(&scene.run, name, &spec, &file)?.wait_until_running();
    ensure!(refused.is_err(), "an old state came back");
    let log = tail(&scene.run.log(&format!("{name}-qemu.log")));
    ensure!(log.contains("Setting the stateblob"), "{log}");

    // A snapshot is of no use once the VM has gone on; then it boots, and finds what it wrote last.
    let mut guest = Guest::boot(&scene.run, "next", &spec)?;
    change(&mut guest.shell()?, "c")?;
    assert_eq!(guest.monitor().say("savevm one")?, "");
    let (_, nv) = change(&mut guest.shell()?, "d")?;
    let refused = guest.monitor().say("loadvm one")?;
    ensure!(refused.contains("Error"), "{refused}");
    guest.monitor().say("cont")?;
    guest.reset()?;
    assert_eq!(look(&mut guest.shell()?)?, (UNTOUCHED.to_owned(), nv));

    // One that is saved and put aside comes back.
    let seen = change(&mut guest.shell()?, "e")?;
    save(&mut guest, &file)?;
    guest.power_off()?;
    let mut guest = incoming(&scene.run, "back", &spec, &file)?;
    guest.wait_until_running()?;
    assert_eq!(look(&mut guest.shell()?)?, seen);
    guest.power_off()
}

#[test]
fn a_vm_of_a_stand_alone_backend_goes_back_to_its_snapshot() -> Result<()> {
    let run = RunFolder::create("snapshot-stand-alone")?;
    let backend = Backend::start(&run)?;
    let spec = spec(&run, TpmDevice::Crb.arguments(&backend.control))?;
    let mut guest = Guest::boot(&run, "vm", &spec)?;
    define_index(&mut guest.shell()?)?;
    let seen = change(&mut guest.shell()?, "a")?;
    assert_eq!(guest.monitor().say("savevm one")?, "");
    change(&mut guest.shell()?, "b")?;
    assert_eq!(guest.monitor().say("loadvm one")?, "");
    guest.wait_until_running()?;
    assert_eq!(look(&mut guest.shell()?)?, seen);
    guest.reset()?;
    assert_eq!(look(&mut guest.shell()?)?, (UNTOUCHED.to_owned(), seen.1));
    guest.power_off()
}

/// A stand-alone backend.
struct Backend {
    _process: Process,
    control: PathBuf,
}

impl Backend {
    fn start(run: &RunFolder) -> Result<Self> {
        let control = run.join("control.sock");
        let mut command = Command::new(program("vtpm-backend")?);
        command.arg("--control").arg(&control);
        command.arg("--state").arg(run.join("state"));
        let mut process = Process::start("vtpm-backend", command, &run.log("backend.log"))?;
        process.wait_until("its socket", PATIENCE, || {
            Ok(control.exists().then_some(()))
        })?;
        Ok(Self {
            _process: process,
            control,
        })
    }
}

/// A quick guest with a disk that can hold snapshots.
fn spec<A: Into<OsString>>(run: &RunFolder, tpm: impl IntoIterator<Item = A>) -> Result<GuestSpec> {
    let disk = run.join("disk.qcow2");
    Tool::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&disk)
        .arg("16M")
        .run()?;
    let image = GuestImage::build(Contents::ServiceAndTools)?;
    let drive = format!("if=virtio,format=qcow2,file={}", disk.display());
    Ok(GuestSpec::new(&image)
        .seabios()
        .tpm(tpm)
        .with_shell()
        .more(["-drive".to_owned(), drive]))
}

/// Migrates a guest to a file. It stands still then.
fn save(guest: &mut Guest, file: &Path) -> Result<()> {
    let monitor = guest.monitor();
    let said = monitor.say(&format!("migrate -d \"exec:cat > {}\"", file.display()))?;
    ensure!(said.is_empty(), "{said}");
    wait_for("the guest to be saved", PATIENCE, || {
        let told = monitor.say("info migrate")?;
        ensure!(!told.contains("failed"), "{told}");
        Ok(told.contains("Migration status: completed").then_some(()))
    })
}

/// Starts a guest that goes on where a file has it.
fn incoming(run: &RunFolder, name: &str, spec: &GuestSpec, file: &Path) -> Result<Guest> {
    let from = format!("exec:cat {}", file.display());
    let spec = spec.clone().more(["-incoming".to_owned(), from]);
    Guest::start_with(run, name, &spec, Accelerator::choose()?)
}

fn control_of(arguments: &[String]) -> Result<PathBuf> {
    let path = arguments
        .iter()
        .find_map(|argument| argument.split_once("path="));
    let (_, path) = path.context("no socket")?;
    Ok(path.split(',').next().unwrap_or_default().into())
}

fn define_index(shell: &mut GuestShell) -> Result<()> {
    shell.run("tpm2_nvdefine 0x1500001 -C o -s 1 -a 'ownerread|ownerwrite'")?;
    Ok(())
}

/// Changes NV memory and, after that, PCR 16: the last change leaves the permanent state alone but
/// for the TPM's clock.
fn change(shell: &mut GuestShell, text: &str) -> Result<Seen> {
    shell.run(&format!(
        "printf {text} > /tmp/text; tpm2_nvwrite 0x1500001 -C o -i /tmp/text; \
         tpm2_pcrextend 16:sha256={}",
        "07".repeat(32)
    ))?;
    let seen = look(shell)?;
    ensure!(seen.1 == text, "{seen:?}");
    Ok(seen)
}

fn look(shell: &mut GuestShell) -> Result<Seen> {
    let pcr = shell.text("tpm2_pcrread sha256:16")?;
    let pcr = pcr.split_once("0x").context("no value")?.1;
    let nv = shell.text("tpm2_nvread 0x1500001 -C o -s 1")?;
    Ok((pcr.trim().to_lowercase(), nv))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path of text")
}
