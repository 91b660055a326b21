//! A machine whose processor stands still: QEMU with its TPM device, whose registers are read and written
//! from here, a byte at a time (QEMU's protocol for tests of devices). It boots nothing, so it is there in
//! a moment.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use test_support::process::Process;
use test_support::run_folder::RunFolder;

use crate::monitor::Monitor;

/// Where PCs have their TPM (TCG PC Client Platform TPM Profile, §6.2).
const TPM: u64 = 0xfed4_0000;
/// Longer than any command takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The machine.
#[derive(Debug)]
pub struct Machine {
    _process: Process,
    monitor: Monitor,
    registers: BufReader<UnixStream>,
}

/// A TPM behind a command response buffer, as a driver sees it that accesses single bytes.
#[derive(Debug)]
pub struct Crb(Machine);

/// A TPM behind a FIFO, with its localities.
#[derive(Debug)]
pub struct Tis(Machine);

impl Machine {
    /// Starts the machine with a TPM that is attached by these arguments.
    pub fn start(folder: &RunFolder, name: &str, tpm: &[OsString]) -> Result<Self> {
        let socket = folder.join(format!("{name}.registers"));
        let monitor = folder.join(format!("{name}.monitor"));
        let listening =
            |path: &std::path::Path| format!("unix:{},server=on,wait=off", path.display());
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-machine", "q35", "-m", "16", "-nodefaults"])
            .args([
                "-display",
                "none",
                "-accel",
                "tcg",
                "-S",
                "-qtest-log",
                "/dev/null",
            ])
            .args(["-qtest", &listening(&socket), "-qmp", &listening(&monitor)])
            .args(tpm);
        let mut process = Process::start(name, command, &folder.log(&format!("{name}.log")))?;
        let monitor =
            process.wait_until("QEMU's monitor", PATIENCE, || Monitor::connect(&monitor))?;
        let registers = UnixStream::connect(&socket).context("the machine's registers")?;
        registers.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            _process: process,
            monitor,
            registers: BufReader::new(registers),
        })
    }

    fn read(&mut self, register: u64) -> Result<u8> {
        let said = self.say(&format!("readb 0x{:x}", TPM + register))?;
        let value = said.strip_prefix("0x").context("a number")?;
        Ok(u64::from_str_radix(value, 16)?.try_into()?)
    }

    fn write(&mut self, register: u64, value: u8) -> Result<()> {
        self.say(&format!("writeb 0x{:x} 0x{value:x}", TPM + register))?;
        Ok(())
    }

    /// Waits until these bits of a register are as wanted.
    fn wait_for(&mut self, register: u64, bits: u8, wanted: u8) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let value = self.read(register)?;
            if value & bits == wanted {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "register 0x{register:x} stays 0x{value:x}"
            );
        }
    }

    fn say(&mut self, line: &str) -> Result<String> {
        writeln!(self.registers.get_mut(), "{line}")?;
        let mut answer = String::new();
        self.registers.read_line(&mut answer)?;
        match answer.trim_end().split_once(' ') {
            Some(("OK", value)) => Ok(value.to_owned()),
            None if answer.trim_end() == "OK" => Ok(String::new()),
            _ => bail!("{line}: {answer}"),
        }
    }
}

/// How much of the response is yet to be read, from its header.
fn length(header: &[u8]) -> Result<usize> {
    let length = header.get(2..6).context("a header")?;
    Ok(u32::from_be_bytes(length.try_into()?).try_into()?)
}

impl Crb {
    // TCG PC Client Platform TPM Profile, §6.5.3: registers of locality 0.
    const LOCALITY_CONTROL: u64 = 0x08;
    const LOCALITY_STATUS: u64 = 0x0c;
    const INTERFACE: u64 = 0x30;
    const REQUEST: u64 = 0x40;
    const CANCEL: u64 = 0x48;
    const START: u64 = 0x4c;
    const BUFFER: u64 = 0x80;

    /// Takes the locality.
    pub fn open(mut machine: Machine) -> Result<Self> {
        let interface = machine.read(Self::INTERFACE)?;
        ensure!(interface & 0xf == 1, "no CRB: 0x{interface:x}");
        machine.write(Self::LOCALITY_CONTROL, 1)?;
        machine.wait_for(Self::LOCALITY_STATUS, 1, 1)?;
        Ok(Self(machine))
    }

    /// Has a command carried out: the whole response.
    pub fn execute(&mut self, command: &[u8]) -> Result<Vec<u8>> {
        self.begin(command)?;
        self.response()
    }

    /// Has a command begun, and given up at once.
    pub fn execute_and_cancel(&mut self, command: &[u8]) -> Result<Vec<u8>> {
        self.begin(command)?;
        self.0.write(Self::CANCEL, 1)?;
        let response = self.response()?;
        self.0.write(Self::CANCEL, 0)?;
        Ok(response)
    }

    /// The machine, with its reset button pressed.
    pub fn reset(mut self) -> Result<Machine> {
        self.0.monitor.reset()?;
        Ok(self.0)
    }

    fn begin(&mut self, command: &[u8]) -> Result<()> {
        self.0.write(Self::REQUEST, 1)?;
        self.0.wait_for(Self::REQUEST, 1, 0)?;
        for (byte, place) in command.iter().zip(Self::BUFFER..) {
            self.0.write(place, *byte)?;
        }
        self.0.write(Self::START, 1)
    }

    fn response(&mut self) -> Result<Vec<u8>> {
        self.0.wait_for(Self::START, 1, 0)?;
        let mut response = Vec::new();
        let mut places = Self::BUFFER..;
        for place in places.by_ref().take(10) {
            response.push(self.0.read(place)?);
        }
        for place in places.take(length(&response)?.saturating_sub(10)) {
            response.push(self.0.read(place)?);
        }
        self.0.write(Self::REQUEST, 2)?;
        Ok(response)
    }
}

impl Tis {
    // TCG PC Client Platform TPM Profile, §6.5.2.
    const ACCESS: u64 = 0x00;
    const STATUS: u64 = 0x18;
    /// The status' last byte, with what only TPM 2.0 has.
    const STATUS_2_0: u64 = 0x1b;
    const FIFO: u64 = 0x24;
    const REQUEST_USE: u8 = 1 << 1;
    const SEIZE: u8 = 1 << 3;
    const ACTIVE: u8 = 1 << 5;
    const COMMAND_READY: u8 = 1 << 6;
    const GO: u8 = 1 << 5;
    const DATA_AVAILABLE: u8 = 1 << 4;
    const EXPECT: u8 = 1 << 3;
    const RESET_ESTABLISHED: u8 = 1 << 1;

    /// A TPM whose localities are all free.
    pub fn open(machine: Machine) -> Self {
        Self(machine)
    }

    /// Takes a locality that is free.
    pub fn request(&mut self, locality: u8) -> Result<()> {
        self.write(locality, Self::ACCESS, Self::REQUEST_USE)?;
        self.wait_for(locality, Self::ACCESS, Self::ACTIVE, Self::ACTIVE)
    }

    /// Takes a locality from one below it.
    pub fn seize(&mut self, locality: u8) -> Result<()> {
        self.write(locality, Self::ACCESS, Self::SEIZE)?;
        self.wait_for(locality, Self::ACCESS, Self::ACTIVE, Self::ACTIVE)
    }

    /// Gives a locality up.
    pub fn relinquish(&mut self, locality: u8) -> Result<()> {
        self.write(locality, Self::ACCESS, Self::ACTIVE)?;
        self.wait_for(locality, Self::ACCESS, Self::ACTIVE, 0)
    }

    /// What a locality says of itself.
    pub fn access(&mut self, locality: u8) -> Result<u8> {
        self.0.read(register(locality, Self::ACCESS))
    }

    /// Has it forgotten that a launch took place at a higher locality.
    pub fn reset_established(&mut self, locality: u8) -> Result<()> {
        self.write(locality, Self::STATUS_2_0, Self::RESET_ESTABLISHED)
    }

    /// Has a command carried out at a locality that was taken: the whole response.
    pub fn execute(&mut self, locality: u8, command: &[u8]) -> Result<Vec<u8>> {
        let ready = Self::COMMAND_READY;
        self.write(locality, Self::STATUS, ready)?;
        self.wait_for(locality, Self::STATUS, ready, ready)?;
        for byte in command {
            self.write(locality, Self::FIFO, *byte)?;
        }
        self.wait_for(locality, Self::STATUS, Self::EXPECT, 0)?;
        self.write(locality, Self::STATUS, Self::GO)?;
        let available = Self::DATA_AVAILABLE;
        self.wait_for(locality, Self::STATUS, available, available)?;
        let fifo = register(locality, Self::FIFO);
        let mut response = Vec::new();
        for _ in 0..10 {
            response.push(self.0.read(fifo)?);
        }
        for _ in 10..length(&response)? {
            response.push(self.0.read(fifo)?);
        }
        self.write(locality, Self::STATUS, ready)?;
        Ok(response)
    }

    fn write(&mut self, locality: u8, place: u64, value: u8) -> Result<()> {
        self.0.write(register(locality, place), value)
    }

    fn wait_for(&mut self, locality: u8, place: u64, bits: u8, wanted: u8) -> Result<()> {
        self.0.wait_for(register(locality, place), bits, wanted)
    }
}

fn register(locality: u8, place: u64) -> u64 {
    (u64::from(locality) << 12) + place
}
