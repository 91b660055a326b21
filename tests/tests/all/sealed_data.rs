//! Data that a VM seals to its vRoT, to a boot, or to approved boots: who opens them, and when.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use cert_chain::HashAlgorithm;
use serde_json::Value;
use tempfile::TempDir;
use test_support::deadline::wait_for;
use test_support::process::Process;
use test_support::programs::program;
use test_support::tool::Tool;
use uuid::Uuid;
use vrot_service::sealing::{ContentKey, Header, stream};
use vrot_tests::bare_vm::BareVm;
use vrot_tests::format_judge::described;
use vrot_tests::host::Host;
use vrot_tests::proxied_vm::ProxiedVm;
use vrot_tests::scene::Scene;
use vrot_tests::vmm::Control;

const SECRET: &str = "the disk's key";
/// `TPM_CC_Unseal`
const UNSEAL: u32 = 0x0000_015e;

static SCENE: LazyLock<Result<Scene>> = LazyLock::new(|| Scene::set("sealed-data"));

fn host() -> Result<&'static Host> {
    let scene = SCENE.as_ref().map_err(|error| anyhow!("{error:#}"))?;
    Ok(&scene.host)
}

/// A VM, and what it keeps on its disk.
struct Vm {
    booted: ProxiedVm,
    disk: TempDir,
}

impl Vm {
    fn boot(host: &Host) -> Result<Self> {
        let disk = tempfile::tempdir()?;
        Ok(Self {
            booted: ProxiedVm::boot(host, disk.path())?,
            disk,
        })
    }

    /// The VM, switched off and on.
    fn boot_again(self, host: &Host) -> Result<Self> {
        let Self { booted, disk } = self;
        let vm = booted.vm;
        drop(booted);
        host.stop_vrot(vm)?;
        Ok(Self {
            booted: ProxiedVm::boot_again(host, vm, disk.path())?,
            disk,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.disk.path().join(name)
    }

    fn command(&self, command: &[&str]) -> Result<Tool> {
        Ok(Tool::new(program("vrot-service")?)
            .args(command)
            .args(["--tpm", &self.booted.bare.tpm()])
            .folder(self.disk.path()))
    }

    fn tool(&self, line: &str) -> Result<Vec<u8>> {
        let mut words = line.split_whitespace();
        Tool::new(words.next().context("a program")?)
            .args(words)
            .env("TPM2TOOLS_TCTI", self.booted.bare.tpm())
            .folder(self.disk.path())
            .run()
    }

    /// Seals the secret.
    fn seal(&self, to: &str, options: &[&str]) -> Result<()> {
        fs::write(self.path("secret"), SECRET)?;
        self.command(&["seal", "--from", "secret", "--to", to])?
            .args(options)
            .run()?;
        fs::remove_file(self.path("secret"))?;
        Ok(())
    }

    /// Whether the secret comes back.
    fn opens(&self, from: &Path, options: &[&str]) -> Result<()> {
        let data = self.command(&["unseal"])?.args(options).arg("--from");
        assert_eq!(data.arg(from).text()?, SECRET);
        Ok(())
    }

    /// Why nothing comes back.
    fn refused(&self, from: &Path, options: &[&str]) -> Result<String> {
        let command = self.command(&["unseal"])?.args(options).arg("--from");
        let output = command.arg(from).outcome()?;
        ensure!(output.status.code() == Some(1), "{}", output.status);
        ensure!(output.stdout.is_empty(), "something was given out");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn mode(path: &Path) -> Result<u32> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o777)
}

#[test]
fn data_open_in_the_vm_that_sealed_them_and_in_no_other() -> Result<()> {
    let (vm, other) = (Vm::boot(host()?)?, Vm::boot(host()?)?);
    vm.seal("sealed", &[])?;
    let sealed = vm.path("sealed");
    vm.opens(&sealed, &[])?;
    // To a file, which only its owner reads.
    vm.command(&["unseal", "--from", "sealed", "--to", "out"])?
        .run()?;
    assert_eq!(fs::read(vm.path("out"))?, SECRET.as_bytes());
    assert_eq!((mode(&vm.path("out"))?, mode(&sealed)?), (0o600, 0o600));
    let said = other.refused(&sealed, &[])?;
    ensure!(said.contains("sealed by another vRoT"), "{said}");
    // As a VM that was cloned has the disk, and not the vRoT. Nor does one whose owner was changed.
    vm.tool("tpm2_clear -c l")?;
    let said = vm.refused(&sealed, &[])?;
    ensure!(said.contains("TPM2_Clear"), "{said}");
    Ok(())
}

#[test]
fn data_that_are_sealed_to_a_boot_open_after_no_other() -> Result<()> {
    let vm = Vm::boot(host()?)?;
    vm.seal("sealed", &["--boot"])?;
    let sealed = vm.path("sealed");
    vm.opens(&sealed, &[])?;
    // What a running system extends is no part of the boot.
    vm.booted.bare.extend(10, b"a file that was opened")?;
    vm.opens(&sealed, &[])?;
    vm.booted.bare.extend(9, b"another initramfs")?;
    let said = vm.refused(&sealed, &[])?;
    ensure!(said.contains("PCRs 9 (sha256)"), "{said}");
    let vm = vm.boot_again(host()?)?;
    vm.opens(&sealed, &[])
}

#[test]
fn data_that_are_sealed_to_approved_boots_open_after_an_approved_upgrade() -> Result<()> {
    let vm = Vm::boot(host()?)?;
    let sealed = vm.path("sealed");
    // The tenant's key, which is not in the VM.
    let keys = tempfile::tempdir()?;
    let key = |name: &str| keys.path().join(name);
    for name in ["key.pem", "other.pem"] {
        Tool::new("openssl")
            .args(["genpkey", "-algorithm", "EC", "-out"])
            .arg(key(name))
            .args(["-pkeyopt", "ec_paramgen_curve:P-256"])
            .run()?;
    }
    Tool::new("openssl")
        .args(["pkey", "-pubout", "-in"])
        .arg(key("key.pem"))
        .arg("-out")
        .arg(vm.path("key.pub"))
        .run()?;
    let approve = |signer: &str, label: &str, to: &str| -> Result<()> {
        fs::write(vm.path("values"), vm.command(&["boot-values"])?.run()?)?;
        Tool::new(program("vrot-service")?)
            .args(["approve-boot", "--values", "values", "--label", label])
            .args(["--to", to, "--key"])
            .arg(key(signer))
            .folder(vm.disk.path())
            .run()
            .map(drop)
    };
    vm.seal("sealed", &["--policy-key", "key.pub"])?;
    approve("key.pem", "release 1", "1.json")?;
    let said = vm.refused(&sealed, &[])?;
    ensure!(said.contains("none of the 0 approvals"), "{said}");
    vm.opens(&sealed, &["--approval", "1.json"])?;
    // The upgrade: nobody has approved it yet, or somebody else has.
    vm.booted.bare.extend(9, b"another initramfs")?;
    let said = vm.refused(&sealed, &["--approval", "1.json"])?;
    ensure!(said.contains("PCRs 9 differ from `release 1`"), "{said}");
    approve("other.pem", "release 2", "others.json")?;
    let said = vm.refused(&sealed, &["--approval", "others.json"])?;
    ensure!(said.contains("is not signed by"), "{said}");
    // What an operator approves of hosts with the same key is none for data.
    let approval = fs::read_to_string(vm.path("others.json"))?;
    fs::write(
        vm.path("hosts.json"),
        approval.replace("sealed-data-approval", "host-policy-approval"),
    )?;
    let said = vm.refused(&sealed, &["--approval", "hosts.json"])?;
    ensure!(said.contains("`sealed-data-approval`"), "{said}");
    approve("key.pem", "release 2", "2.json")?;
    let both = ["--approval", "1.json", "--approval", "2.json"];
    vm.opens(&sealed, &both)?;
    let vm = vm.boot_again(host()?)?;
    vm.opens(&sealed, &both)
}

#[test]
fn a_pcr_that_changes_while_data_are_opened_is_no_reason_to_give_up_unless_it_counts() -> Result<()>
{
    let vm = Vm::boot(host()?)?;
    vm.seal("sealed", &["--boot"])?;
    let sealed = vm.path("sealed");
    vm.booted.bare.extend_before(UNSEAL, 10);
    vm.opens(&sealed, &[])?;
    ensure!(vm.booted.bare.happened());
    vm.booted.bare.extend_before(UNSEAL, 9);
    let said = vm.refused(&sealed, &[])?;
    ensure!(said.contains("PCRs 9 (sha256)"), "{said}");
    ensure!(vm.booted.bare.happened());
    Ok(())
}

#[test]
fn data_are_not_sealed_to_pcrs_that_no_boot_determines() -> Result<()> {
    let vm = Vm::boot(host()?)?;
    fs::write(vm.path("secret"), SECRET)?;
    let seal = ["seal", "--from", "secret", "--to", "sealed", "--boot"];
    for (options, said) in [
        (&["--pcrs", "16"][..], "measures no boot"),
        (&["--pcrs", "12,13"], "no boot was measured"),
        (&["--pcrs", "24"], "there is no PCR 24"),
        (&["--pcr-bank", "sha1"], "sha256, sha384 or sha512"),
        // The TPM has the bank, and the firmware measured into another one.
        (&["--pcr-bank", "sha384"], "no boot was measured"),
    ] {
        let output = vm.command(&seal)?.args(options).outcome()?;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            !output.status.success() && errors.contains(said),
            "{errors}"
        );
        ensure!(!vm.path("sealed").exists());
    }
    Ok(())
}

#[test]
fn what_a_running_system_extends_is_no_boot_to_seal_to() -> Result<()> {
    let vm = Vm::boot(host()?)?;
    // Its firmware measured into another bank.
    let bank = HashAlgorithm::Sha384;
    vm.booted
        .bare
        .extend_in(bank, 14, b"a constant of a script")?;
    fs::write(vm.path("secret"), SECRET)?;
    let seal = [
        "seal",
        "--from",
        "secret",
        "--to",
        "sealed",
        "--boot",
        "--pcr-bank",
        "sha384",
    ];
    for options in [&[][..], &["--pcrs", "14"]] {
        let output = vm.command(&seal)?.args(options).outcome()?;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            !output.status.success() && errors.contains("no boot was measured"),
            "{errors}"
        );
        ensure!(!vm.path("sealed").exists());
    }
    Ok(())
}

#[test]
fn nothing_is_lost_and_nothing_is_left_when_data_cannot_be_opened() -> Result<()> {
    let vm = Vm::boot(host()?)?;
    vm.seal("sealed", &[])?;
    let sealed = vm.path("sealed");
    let genuine = fs::read(&sealed)?;
    fs::write(vm.path("out"), "precious")?;
    let to = ["--to", "out"];
    let said = vm.refused(&sealed, &to)?;
    ensure!(
        said.contains("out exists") && said.contains("--replace"),
        "{said}"
    );
    let names = |vm: &Vm| -> Result<usize> { Ok(fs::read_dir(vm.disk.path())?.count()) };
    let before = names(&vm)?;
    let altered = vm.path("altered");
    for position in 0..genuine.len() {
        // The TPM is asked about some; the rest of what is in a TPM's object changes as well.
        if position % 16 != 0 && position + 32 < genuine.len() {
            continue;
        }
        let mut bytes = genuine.clone();
        if let Some(byte) = bytes.get_mut(position) {
            *byte ^= 0x04;
        }
        fs::write(&altered, bytes)?;
        vm.refused(&altered, &["--to", "out", "--replace"])
            .with_context(|| format!("byte {position}"))?;
    }
    for length in [0, 5, 60, genuine.len() - 16, genuine.len() - 1] {
        fs::write(&altered, genuine.get(..length).context("a part")?)?;
        vm.refused(&altered, &["--to", "out", "--replace"])?;
        vm.refused(&altered, &[])?;
    }
    assert_eq!(fs::read(vm.path("out"))?, b"precious");
    assert_eq!(names(&vm)?, before + 1, "temporary files are left");
    vm.opens(&sealed, &[])
}

#[test]
fn large_data_pass_in_little_memory() -> Result<()> {
    const LENGTH: usize = 96 << 20;
    let vm = Vm::boot(host()?)?;
    let data: Vec<u8> = (0..LENGTH).map(|n| (n >> 10).to_le_bytes()[0]).collect();
    fs::write(vm.path("data"), &data)?;
    let limited = |words: &[&str]| -> Result<Command> {
        let mut command = Command::new("prlimit");
        command.arg(format!("--data={}", 48 << 20));
        command.arg(program("vrot-service")?).args(words);
        command.args(["--tpm", &vm.booted.bare.tpm()]);
        command.current_dir(vm.disk.path());
        Ok(command)
    };
    let status = limited(&["seal", "--to", "sealed"])?
        .stdin(fs::File::open(vm.path("data"))?)
        .status()?;
    ensure!(status.success(), "{status}");
    let out = fs::File::create(vm.path("out"))?;
    let status = limited(&["unseal", "--from", "sealed"])?
        .stdout(Stdio::from(out))
        .status()?;
    ensure!(status.success(), "{status}");
    ensure!(fs::read(vm.path("out"))? == data, "other data came back");
    // Cut off behind a part, of which all are genuine: that is known before the first of them is given out.
    let sealed = fs::OpenOptions::new().write(true).open(vm.path("sealed"))?;
    let header = Header::read(&mut fs::File::open(vm.path("sealed"))?)?;
    let parts = 100 * (stream::CHUNK + stream::TAG);
    sealed.set_len(u64::try_from(header.to_bytes().len() + parts)?)?;
    let said = vm.refused(&vm.path("sealed"), &[])?;
    ensure!(said.contains("at part 99"), "{said}");
    Ok(())
}

#[test]
fn a_storage_hierarchy_with_an_owner_is_used_through_the_key_that_is_kept_there() -> Result<()> {
    let vm = Vm::boot(host()?)?;
    fs::write(vm.path("secret"), SECRET)?;
    vm.tool("tpm2_changeauth -c owner owned")?;
    let seal = ["seal", "--from", "secret", "--to", "sealed"];
    let output = vm.command(&seal)?.outcome()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(said.contains("tpm2_evictcontrol"), "{said}");
    vm.tool("tpm2_createprimary -Q -C o -P owned -G ecc -c kept.ctx")?;
    vm.tool("tpm2_evictcontrol -Q -C o -P owned -c kept.ctx 0x81000001")?;
    vm.tool("tpm2_flushcontext -t")?;
    vm.command(&seal)?.run()?;
    vm.opens(&vm.path("sealed"), &[])?;
    // A key that did not stay in this TPM is not used.
    vm.tool("tpm2_evictcontrol -Q -C o -P owned -c 0x81000001")?;
    vm.tool(
        "tpm2_createprimary -Q -C o -P owned -G ecc256:ecdsa-sha256:null -c other.ctx -a \
             fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign",
    )?;
    vm.tool("tpm2_evictcontrol -Q -C o -P owned -c other.ctx 0x81000001")?;
    vm.tool("tpm2_flushcontext -t")?;
    fs::remove_file(vm.path("sealed"))?;
    let output = vm.command(&seal)?.outcome()?;
    ensure!(!output.status.success() && !vm.path("sealed").exists());
    Ok(())
}

/// By the steps of `docs/guest.md`.
#[test]
fn tpm2_tools_load_the_object_and_what_they_unseal_opens_the_data() -> Result<()> {
    let vm = Vm::boot(host()?)?;
    // Of eight PCRs at most, with these tools.
    vm.seal("sealed", &["--boot", "--pcrs", "0,2,4,7,9"])?;
    let shown = Tool::new(program("vrot-service")?)
        .args(["show-sealed", "--json", "--export", "object", "sealed"])
        .folder(vm.disk.path())
        .run()?;
    let shown: Value = serde_json::from_slice(&shown)?;
    let point = [&[32, 0][..], &[0; 128], &[32, 0], &[0; 128]].concat();
    fs::write(vm.path("unique"), point)?;
    vm.tool(
        "tpm2_createprimary -Q -C o -G ecc256:aes128cfb -u unique -c srk.ctx -a \
         fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt",
    )?;
    vm.tool("tpm2_readpublic -Q -c srk.ctx -n srk.name")?;
    let name = hex::encode(fs::read(vm.path("srk.name"))?);
    assert_eq!(shown["storage_key"], name);
    vm.tool("tpm2_flushcontext -t")?;
    vm.tool("tpm2_load -Q -C srk.ctx -u object/object.pub -r object/object.priv -c object.ctx")?;
    vm.tool("tpm2_flushcontext -t")?;
    let pcrs = shown["pcrs"].as_object().context("PCRs")?;
    let list: Vec<&str> = pcrs.keys().map(String::as_str).collect();
    let unseal = format!("tpm2_unseal -c object.ctx -p pcr:sha256:{}", list.join(","));
    let key = vm.tool(&unseal)?;
    vm.tool("tpm2_flushcontext -t")?;
    // It is the TPM that keeps it: neither an empty password nor another boot opens it.
    ensure!(vm.tool("tpm2_unseal -c object.ctx").is_err());
    vm.tool("tpm2_flushcontext -t")?;
    vm.booted.bare.extend(9, b"another initramfs")?;
    ensure!(vm.tool(&unseal).is_err());
    let sealed = fs::read(vm.path("sealed"))?;
    let header = Header::read(&mut sealed.as_slice())?;
    let offset = usize::try_from(shown["data_offset"].as_u64().context("an offset")?)?;
    let mut data = Vec::new();
    stream::open(
        &ContentKey::from_bytes(&key).context("a key")?,
        &header.digest(),
        &mut sealed.get(offset..).context("data")?,
        &mut data,
    )?;
    assert_eq!(data, SECRET.as_bytes());
    Ok(())
}

#[test]
fn the_beginning_of_sealed_data_is_as_described_in_cddl() -> Result<()> {
    let vm = Vm::boot(host()?)?;
    let description = include_str!("../../../trusted-connection/service/sealed-data.cddl");
    for (name, options) in [("vrot", &[][..]), ("boot", &["--boot"])] {
        vm.seal(name, options)?;
        let sealed = fs::read(vm.path(name))?;
        let (frame, rest) = sealed.split_at_checked(10).context("a frame")?;
        let length = usize::from(u16::from_be_bytes([frame[8], frame[9]]));
        let header = rest.get(..length).context("a header")?;
        described(description, header)?.map_err(|fault| anyhow!(fault))?;
    }
    Ok(())
}

/// What becomes of sealed data, by the table in `docs/guest.md`.
#[test]
fn sealed_data_outlive_what_happens_to_a_vrot_on_its_host() -> Result<()> {
    let mut scene = Scene::set("sealed-data-outlive")?;
    let vm = Vm::boot(&scene.host)?;
    vm.seal("sealed", &[])?;
    vm.seal("to-boot", &["--boot"])?;
    let (sealed, to_boot) = (vm.path("sealed"), vm.path("to-boot"));
    let opens = |vm: &Vm| -> Result<()> {
        vm.opens(&sealed, &[])?;
        vm.opens(&to_boot, &[])
    };

    // Suspended and resumed: the boot goes on.
    let id = vm.booted.vm.to_string();
    vm.booted.bare.set_aside(|| {
        scene.host.vtpmctl(["suspend", &id])?.run()?;
        scene.host.vtpmctl(["resume", &id])?.run()?;
        let control = ProxiedVm::control(&scene.host, vm.booted.vm)?;
        Control::connect(&control)?.attach_running()
    })?;
    opens(&vm)?;

    // The manager restarted, also by a crash; the VM switched off and on.
    scene.host.restart_manager()?;
    opens(&vm)?;
    scene.host.crash_manager()?;
    opens(&vm)?;
    let vm = vm.boot_again(&scene.host)?;
    opens(&vm)?;

    // The host, switched off and on.
    let Vm { booted, disk } = vm;
    let id = booted.vm;
    drop(booted);
    scene.host.stop_vrot(id)?;
    scene.host.reboot(&scene.run)?;
    let booted = ProxiedVm::boot_again(&scene.host, id, disk.path())?;
    let vm = Vm { booted, disk };
    opens(&vm)?;

    // A store that was put back and accepted: another generation of the same vRoT.
    let Vm { booted, disk } = vm;
    drop(booted);
    scene.host.stop_vrot(id)?;
    let mut backup = Vec::new();
    scene.host.restart_manager_after(|state| {
        backup = fs::read(state.join("store.redb"))?;
        Ok(())
    })?;
    scene.host.create(Uuid::new_v4(), "acme")?;
    scene
        .host
        .restart_manager_after(|state| Ok(fs::write(state.join("store.redb"), &backup)?))?;
    let recover = ["host", "recover", "--accept", "restored-store", "--yes"];
    // A manager answers before it has looked at its store.
    wait_for("the store to be refused", Duration::from_secs(30), || {
        let host = scene.host.vtpmctl(["host", "show", "--output", "json"])?;
        let host: Value = serde_json::from_slice(&host.run()?)?;
        Ok((host["store"]["state"] == "refused").then_some(()))
    })?;
    scene.host.vtpmctl(recover)?.run()?;
    let booted = ProxiedVm::boot_again(&scene.host, id, disk.path())?;
    assert_eq!(scene.host.identity(id)?["generation"], 2);
    let vm = Vm { booted, disk };
    opens(&vm)?;

    // The vRoT deleted and made anew for the same VM: gone for good.
    let Vm { booted, disk } = vm;
    drop(booted);
    scene.host.stop_vrot(id)?;
    scene.host.vtpmctl(["delete", &id.to_string()])?.run()?;
    scene.host.create(id, "acme")?;
    let booted = ProxiedVm::boot_again(&scene.host, id, disk.path())?;
    let vm = Vm { booted, disk };
    let said = vm.refused(&sealed, &[])?;
    ensure!(said.contains("sealed by another vRoT"), "{said}");
    Ok(())
}

/// A TPM that no manager keeps is a file: it goes where its state goes, and so do the data.
#[test]
fn sealed_data_go_along_with_a_stand_alone_tpm_its_copy_and_its_import() -> Result<()> {
    let scene = Scene::set("sealed-data-imported")?;
    let (disk, id) = (tempfile::tempdir()?, Uuid::new_v4());
    let place = scene.run.join(id.to_string()).join("tpm2");
    let copy = scene.run.join("copy");
    let (mut process, bare) = stand_alone(&scene, "first", &place, disk.path())?;
    let sealing = |bare: &BareVm, command: &[&str]| -> Result<Tool> {
        let tool = Tool::new(program("vrot-service")?).args(command);
        Ok(tool.args(["--tpm", &bare.tpm()]).folder(disk.path()))
    };
    fs::write(disk.path().join("secret"), SECRET)?;
    let seal = ["seal", "--from", "secret", "--to", "sealed", "--boot"];
    sealing(&bare, &seal)?.run()?;
    let unseal = ["unseal", "--from", "sealed"];
    drop(bare);
    process.stop()?;
    fs::create_dir_all(&copy)?;
    for file in fs::read_dir(&place)? {
        let file = file?;
        fs::copy(file.path(), copy.join(file.file_name()))?;
    }

    let (mut process, bare) = stand_alone(&scene, "second", &copy, disk.path())?;
    assert_eq!(sealing(&bare, &unseal)?.text()?, SECRET);
    drop(bare);
    process.stop()?;

    let import = scene.host.vtpmctl(["import", "--tenant", "acme"])?;
    import.arg(&place).run()?;
    let booted = ProxiedVm::boot_again(&scene.host, id, disk.path())?;
    assert_eq!(sealing(&booted.bare, &unseal)?.text()?, SECRET);
    Ok(())
}

/// Our backend without a manager, with its state in a folder, and a VM that has booted with it.
fn stand_alone(scene: &Scene, name: &str, state: &Path, disk: &Path) -> Result<(Process, BareVm)> {
    fs::create_dir_all(state)?;
    let control = scene.run.join(format!("{name}.tpm"));
    let mut command = Command::new(program("vtpm-backend")?);
    command.arg("--control").arg(&control);
    command.arg("--state").arg(state);
    let log = scene.run.log(&format!("{name}.log"));
    let mut process = Process::start(name, command, &log)?;
    process.wait_until("the backend", Duration::from_secs(60), || {
        let said = fs::read_to_string(&log).unwrap_or_default();
        Ok(said.contains("ready").then_some(()))
    })?;
    let bare = BareVm::boot(&control, disk)?;
    Ok((process, bare))
}
