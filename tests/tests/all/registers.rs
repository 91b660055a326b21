//! What drivers do with the registers of QEMU's TPM devices that no Linux guest does: single bytes, as
//! Windows accesses them, other localities, and a command that is given up. swtpm is the measure.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use test_support::process::Process;
use test_support::programs::program;
use test_support::run_folder::RunFolder;
use test_support::software_tpm::emulator_command;
use test_support::tpm_commands::{command, pcr_extend, pcr_read, rsa_key, with_password};
use tpm_wire::{Response, ResponseCode};
use vrot_tests::guest::TpmDevice;
use vrot_tests::registers::{Crb, Machine, Tis};

const STARTUP: u32 = 0x144;
const SELF_TEST: u32 = 0x143;
const GET_CAPABILITY: u32 = 0x17a;
const GET_RANDOM: u32 = 0x17b;
const FLUSH_CONTEXT: u32 = 0x165;
const PCR_RESET: u32 = 0x13d;
/// `TPM_RC_LOCALITY`
const LOCALITY: u32 = 0x907;

/// An emulator that ends with the test.
struct Emulator {
    _process: Process,
    control: PathBuf,
}

impl Emulator {
    fn start(folder: &RunFolder, name: &str) -> Result<Self> {
        let state = folder.join(format!("{name}.state"));
        let control = folder.join(format!("{name}.control"));
        fs::create_dir(&state)?;
        let command = match name {
            "swtpm" => emulator_command(&state, &control),
            _ => {
                let mut command = Command::new(program("vtpm-backend")?);
                command.arg("--control").arg(&control);
                command.arg("--state").arg(&state);
                command
            }
        };
        let mut process = Process::start(name, command, &folder.log(&format!("{name}.log")))?;
        process.wait_until("its socket", std::time::Duration::from_secs(60), || {
            Ok(std::os::unix::net::UnixStream::connect(&control).ok())
        })?;
        Ok(Self {
            _process: process,
            control,
        })
    }

    fn machine(&self, folder: &RunFolder, name: &str, device: TpmDevice) -> Result<Machine> {
        let name = format!("machine-{name}");
        Machine::start(folder, &name, &device.arguments(&self.control))
    }
}

#[test]
fn a_driver_that_accesses_single_bytes_gets_what_it_gets_of_swtpm() -> Result<()> {
    let folder = RunFolder::create("registers-crb")?;
    let mut answers = Vec::new();
    for name in ["ours", "swtpm"] {
        let emulator = Emulator::start(&folder, name)?;
        let mut tpm = Crb::open(emulator.machine(&folder, name, TpmDevice::Crb)?)?;
        let mut said = Vec::new();
        // What Windows asks before it takes a TPM for one: it starts, tests itself, is of this family and
        // maker (TPM_CAP_TPM_PROPERTIES), and has PCRs.
        for command in [
            startup(0),
            command(SELF_TEST, &[1]),
            capability(6, 0x100, 8),
            capability(5, 0, 1),
            pcr_extend(7),
            pcr_read(7),
            // One that fills the buffer: too long for what it asks, which the TPM says.
            command(GET_RANDOM, &[0; 3958]),
        ] {
            said.push(tpm.execute(&command)?);
        }
        let random = tpm.execute(&command(GET_RANDOM, &[0, 32]))?;
        assert_eq!(random.len(), 12 + 32);
        // A reset of the machine is one of the TPM.
        let mut tpm = Crb::open(tpm.reset()?)?;
        for command in [pcr_read(7), startup(1), startup(0), pcr_read(7)] {
            said.push(tpm.execute(&command)?);
        }
        answers.push(said);
    }
    are_alike(&answers);
    ensure!(code(&answers[0][0])? == 0, "TPM2_Startup");
    Ok(())
}

#[test]
fn localities_can_do_to_pcrs_what_they_can_with_swtpm() -> Result<()> {
    let folder = RunFolder::create("registers-tis")?;
    let mut answers = Vec::new();
    for name in ["ours", "swtpm"] {
        let emulator = Emulator::start(&folder, name)?;
        let mut tpm = Tis::open(emulator.machine(&folder, name, TpmDevice::Tis)?);
        let mut said = Vec::new();
        tpm.request(0)?;
        said.push(tpm.execute(0, &startup(0))?);
        tpm.relinquish(0)?;
        // QEMU keeps the fifth for itself.
        for locality in 0..4 {
            tpm.request(locality)?;
            for pcr in 16..24 {
                for command in [
                    pcr_extend(pcr),
                    pcr_read(pcr),
                    pcr_reset(pcr),
                    pcr_read(pcr),
                ] {
                    said.push(tpm.execute(locality, &command)?);
                }
            }
            tpm.relinquish(locality)?;
        }
        // A higher one takes the TPM from a lower one, and the established bit is its to reset.
        tpm.request(1)?;
        tpm.seize(3)?;
        said.push(tpm.execute(3, &pcr_read(20))?);
        said.push(vec![tpm.access(0)?, tpm.access(1)?, tpm.access(3)?]);
        tpm.reset_established(3)?;
        said.push(vec![tpm.access(3)?]);
        tpm.relinquish(3)?;
        answers.push(said);
    }
    are_alike(&answers);
    // Locality 0 extends and resets no PCR of a dynamic launch.
    let of_17 = &answers[0][1 + 4];
    assert_eq!(code(of_17)?, LOCALITY);
    Ok(())
}

#[test]
fn a_command_that_a_driver_cancels_is_given_up() -> Result<()> {
    let folder = RunFolder::create("registers-cancel")?;
    let emulator = Emulator::start(&folder, "ours")?;
    let mut tpm = Crb::open(emulator.machine(&folder, "ours", TpmDevice::Crb)?)?;
    ensure!(code(&tpm.execute(&startup(0))?)? == 0);
    let mut given_up = 0;
    for number in 0..12 {
        let response = tpm.execute_and_cancel(&rsa_key(number))?;
        match code(&response)? {
            // A key that was found before QEMU was heard.
            0 => {
                let handle = response.get(10..14).context("a handle")?;
                let flushed = tpm.execute(&command(FLUSH_CONTEXT, handle))?;
                ensure!(code(&flushed)? == 0);
            }
            code if code == ResponseCode::CANCELED.raw() => given_up += 1,
            code => anyhow::bail!("response code 0x{code:x}"),
        }
    }
    ensure!(given_up > 0, "{given_up} of 12");
    ensure!(code(&tpm.execute(&capability(5, 0, 1))?)? == 0);
    Ok(())
}

/// What both said, one after the other.
fn are_alike(answers: &[Vec<Vec<u8>>]) {
    assert_eq!(answers[0].len(), answers[1].len());
    for (number, (ours, theirs)) in answers[0].iter().zip(&answers[1]).enumerate() {
        assert_eq!(ours, theirs, "answer {number}");
    }
}

fn code(response: &[u8]) -> Result<u32> {
    Ok(Response::parse(response)
        .context("no response")?
        .code()
        .raw())
}

fn startup(kind: u8) -> Vec<u8> {
    command(STARTUP, &[0, kind])
}

fn capability(capability: u32, property: u32, count: u32) -> Vec<u8> {
    let words = [capability, property, count].map(u32::to_be_bytes);
    command(GET_CAPABILITY, words.as_flattened())
}

fn pcr_reset(pcr: u32) -> Vec<u8> {
    with_password(PCR_RESET, &[pcr], &[])
}
