//! A running VM moves live from swtpm to a stand-alone backend and back, by QEMU's migration: its TPM
//! goes along.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use test_support::deadline::wait_for;
use test_support::process::Process;
use test_support::programs::program;
use test_support::run_folder::RunFolder;
use test_support::sockets::is_listened_at;
use test_support::tpm_commands::{command, pcr_extend, with_password};
use tpm_wire::{MAX_SIZE, read_frame};
use vrot_tests::monitor::Monitor;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_running_vm_moves_from_swtpm_to_us_and_back_with_its_tpm() -> Result<()> {
    move_along(&RunFolder::create("moved-plain")?, |_, _| Ok(Vec::new()))
}

#[test]
fn a_running_vm_moves_in_the_same_way_under_keys() -> Result<()> {
    let run = RunFolder::create("moved-under-keys")?;
    let migration = run.join("migration.key");
    std::fs::write(&migration, "00112233445566778899aabbccddeeff")?;
    // A key of its own for what each keeps, and one for what goes from one to the other.
    move_along(&run, |name, state_key_option| {
        let file = run.join(format!("{name}.key"));
        std::fs::write(&file, format!("the passphrase of {name}"))?;
        Ok(vec![
            state_key_option.to_owned(),
            format!("pwdfile={}", file.display()),
            "--migration-key".to_owned(),
            format!("file={}", migration.display()),
        ])
    })
}

/// What a machine's TPM has: PCRs 0 to 7 as its firmware extended them, PCR 16, and an index of NV
/// memory.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    firmware: Vec<u8>,
    debug: Vec<u8>,
    written: Vec<u8>,
}

/// Three moves; `keys` gives arguments with keys, for an emulator and its option for the state's key.
fn move_along(run: &RunFolder, keys: impl Fn(&str, &str) -> Result<Vec<String>>) -> Result<()> {
    let ours = |name: &str| Emulator::ours(run, name, &keys(name, "--state-key")?);
    let swtpm = |name: &str| Emulator::swtpm(run, name, &keys(name, "--key")?);

    // What the firmware extends, and an index.
    let first = ours("first")?;
    let machine = Machine::start(run, "first", &first, None)?;
    machine.wait_for_firmware()?;
    define_and_write(&first)?;
    extend(&first)?;
    let seen = look(&first)?;
    ensure!(
        seen.firmware.iter().any(|byte| *byte != 0),
        "nothing is extended"
    );

    let second = swtpm("second")?;
    let machine = machine.move_to(run, "second", &second)?;
    let third = ours("third")?;
    let machine = machine.move_to(run, "third", &third)?;
    assert_eq!(look(&third)?, seen, "after swtpm");
    extend(&third)?;
    let seen = look(&third)?;
    let fourth = swtpm("fourth")?;
    let machine = machine.move_to(run, "fourth", &fourth)?;
    let fifth = ours("fifth")?;
    let _machine = machine.move_to(run, "fifth", &fifth)?;
    assert_eq!(look(&fifth)?, seen, "after swtpm, once more");
    Ok(())
}

/// A TPM emulator on a state of its own.
struct Emulator {
    _process: Process,
    control: PathBuf,
    data: PathBuf,
}

impl Emulator {
    fn ours(run: &RunFolder, name: &str, keys: &[String]) -> Result<Self> {
        let data = run.join(format!("{name}.data"));
        let mut command = Command::new(program("vtpm-backend")?);
        command
            .arg("--state")
            .arg(run.join(format!("{name}.state")))
            .arg("--data")
            .arg(&data)
            .arg("--control")
            .arg(run.join(format!("{name}.tpm")));
        Self::start(run, name, command, keys, data)
    }

    fn swtpm(run: &RunFolder, name: &str, keys: &[String]) -> Result<Self> {
        let state = run.join(format!("{name}.state"));
        std::fs::create_dir_all(&state)?;
        let control = run.join(format!("{name}.tpm"));
        let command = test_support::software_tpm::emulator_command(&state, &control);
        Self::start(run, name, command, keys, PathBuf::new())
    }

    fn start(
        run: &RunFolder,
        name: &str,
        mut command: Command,
        keys: &[String],
        data: PathBuf,
    ) -> Result<Self> {
        let control = run.join(format!("{name}.tpm"));
        command.args(keys);
        let log = run.log(&format!("{name}-tpm.log"));
        let mut process = Process::start(&format!("{name} TPM"), command, &log)?;
        process.wait_until("the control channel", PATIENCE, || {
            Ok(is_listened_at(&control).then_some(()))
        })?;
        Ok(Self {
            _process: process,
            control,
            data,
        })
    }

    /// Has a command carried out: what follows the header of a response that says success.
    fn execute(&self, command: &[u8]) -> Result<Vec<u8>> {
        use std::io::Write;
        let mut stream = UnixStream::connect(&self.data)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(command)?;
        let response = read_frame(&mut stream, MAX_SIZE)?.context("no response")?;
        ensure!(response.get(6..10) == Some(&[0; 4]), "{response:02x?}");
        Ok(response.get(10..).unwrap_or_default().to_vec())
    }
}

/// A virtual machine that has nothing but its firmware and its TPM.
struct Machine {
    process: Process,
    monitor: Monitor,
    firmware_log: PathBuf,
}

impl Machine {
    fn start(run: &RunFolder, name: &str, tpm: &Emulator, incoming: Option<&Path>) -> Result<Self> {
        let monitor = run.join(format!("{name}.monitor"));
        let firmware_log = run.log(&format!("{name}-firmware.log"));
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-machine", "q35,accel=tcg", "-m", "32", "-nodefaults"])
            .args(["-display", "none", "-global", "isa-debugcon.iobase=0x402"])
            .arg("-debugcon")
            .arg(format!("file:{}", firmware_log.display()))
            .arg("-chardev")
            .arg(format!("socket,id=tpm,path={}", tpm.control.display()))
            .args(["-tpmdev", "emulator,id=tpm0,chardev=tpm"])
            .args(["-device", "tpm-crb,tpmdev=tpm0", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", monitor.display()));
        if let Some(incoming) = incoming {
            command
                .arg("-incoming")
                .arg(format!("unix:{}", incoming.display()));
        }
        let log = run.log(&format!("{name}-machine.log"));
        let mut process = Process::start(&format!("{name} machine"), command, &log)?;
        let monitor = process.wait_until("the monitor", PATIENCE, || Monitor::connect(&monitor))?;
        Ok(Self {
            process,
            monitor,
            firmware_log,
        })
    }

    /// Waits until the firmware has looked for something to boot in vain.
    fn wait_for_firmware(&self) -> Result<()> {
        wait_for("the firmware", PATIENCE, || {
            let log = std::fs::read_to_string(&self.firmware_log).unwrap_or_default();
            Ok(log.contains("No bootable device").then_some(()))
        })
    }

    /// Goes on in another QEMU, with another TPM emulator.
    fn move_to(mut self, run: &RunFolder, name: &str, tpm: &Emulator) -> Result<Self> {
        let path = run.join(format!("{name}.move"));
        let mut target = Self::start(run, name, tpm, Some(&path))?;
        let said = self
            .monitor
            .say(&format!("migrate -d unix:{}", path.display()))?;
        ensure!(said.is_empty(), "{said}");
        wait_for("the move", PATIENCE, || {
            target.process.must_run()?;
            let said = self.monitor.say("info migrate")?;
            if said.contains("Migration status: failed") {
                bail!("it does not move to {name}: {said}");
            }
            Ok(said.contains("Migration status: completed").then_some(()))
        })?;
        target
            .process
            .wait_until("the machine to go on", PATIENCE, || {
                Ok((target.monitor.status()? == "running").then_some(()))
            })?;
        // A machine that has left may have ended by itself; it must have ended well.
        let _ = self.monitor.quit();
        self.process.wait(PATIENCE)?;
        Ok(target)
    }
}

const OWNER: u32 = 0x4000_0001;
const INDEX: u32 = 0x0150_0007;

/// `TPM2_NV_DefineSpace`, `TPM2_NV_Write`: eight bytes for the owner.
fn define_and_write(tpm: &Emulator) -> Result<()> {
    let public = [
        &[0, 0, 0, 14][..],
        &INDEX.to_be_bytes(),
        &[0, 0x0b, 0x02, 0x02, 0, 0x02, 0, 0, 0, 8],
    ]
    .concat();
    tpm.execute(&with_password(0x12a, &[OWNER], &public))?;
    let written = [&[0, 8][..], b"remember", &[0, 0]].concat();
    tpm.execute(&with_password(0x137, &[OWNER, INDEX], &written))?;
    Ok(())
}

/// `TPM2_PCR_Extend` of PCR 16.
fn extend(tpm: &Emulator) -> Result<()> {
    tpm.execute(&pcr_extend(16))?;
    Ok(())
}

fn look(tpm: &Emulator) -> Result<Seen> {
    // After the count of changes and the selection, as many digests as were selected.
    let pcrs = |selected: [u8; 3]| -> Result<Vec<u8>> {
        let selection = [&[0, 0, 0, 1, 0, 0x0b, 3][..], &selected].concat();
        let body = tpm.execute(&command(0x17e, &selection))?;
        Ok(body.get(14..).context("digests")?.to_vec())
    };
    let read = with_password(0x14e, &[OWNER, INDEX], &[0, 8, 0, 0]);
    let read = tpm.execute(&read)?;
    Ok(Seen {
        firmware: pcrs([0xff, 0, 0])?,
        debug: pcrs([0, 0, 1])?,
        written: read.get(6..14).context("eight bytes")?.to_vec(),
    })
}
