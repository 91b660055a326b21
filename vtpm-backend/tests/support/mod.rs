//! TPM emulators as a VMM sees them: this backend, and swtpm as the measure.

pub(crate) mod i2c;
pub(crate) mod managed;
pub(crate) mod rings;
pub(crate) mod zygote;

use std::fs;
use std::io::{IoSlice, Read, Write};
use std::net::Shutdown;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::Pid;
use test_support::deadline::wait_for;
use test_support::software_tpm::emulator_command;
pub(crate) use test_support::tpm_commands::{command, with_password, words};
use test_support::tpm_commands::{pcr_extend, pcr_read};
use test_support::virtio_tpm::Driver;
use tpm_wire::{MAX_SIZE, Response, read_frame};

/// `TPM2_Startup(TPM_SU_CLEAR)`
pub(crate) const STARTUP: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0];
/// Longer than any command takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const INIT: u32 = 2;
pub(crate) const SHUTDOWN: u32 = 3;
pub(crate) const STOP: u32 = 14;
pub(crate) const SET_DATAFD: u32 = 16;

/// A TPM emulator that ends with the test.
pub(crate) struct Emulator {
    process: Child,
    control: PathBuf,
}

impl Emulator {
    /// This backend, on its own.
    pub(crate) fn ours(folder: &Path) -> Result<Self> {
        Self::ours_logging_to(folder, Stdio::inherit())
    }

    /// The same, with its log going somewhere else.
    pub(crate) fn ours_logging_to(folder: &Path, log: Stdio) -> Result<Self> {
        Self::ours_with(folder, |command| command.stderr(log))
    }

    /// The same, with a socket for commands of tools.
    pub(crate) fn ours_with_data(folder: &Path, data: &Path) -> Result<Self> {
        Self::ours_with(folder, |command| command.arg("--data").arg(data))
    }

    /// This backend, on its own, as a virtio-tpm at `vhost-user.sock`, with a control channel by which
    /// the host resets the TPM.
    pub(crate) fn virtio_tpm(folder: &Path) -> Result<Self> {
        Self::virtio_tpm_logging_to(folder, Stdio::inherit())
    }

    /// The same, with its log going somewhere else.
    pub(crate) fn virtio_tpm_logging_to(folder: &Path, log: Stdio) -> Result<Self> {
        Self::virtio_logging_to(folder, "virtio-tpm", log)
    }

    /// The same as this device.
    pub(crate) fn virtio(folder: &Path, device: &str) -> Result<Self> {
        Self::virtio_logging_to(folder, device, Stdio::inherit())
    }

    fn virtio_logging_to(folder: &Path, device: &str, log: Stdio) -> Result<Self> {
        let mut emulator = Self::ours_with(folder, |command| {
            let command = command
                .stderr(log)
                .args(["--device", device, "--vhost-user"]);
            command.arg(folder.join("vhost-user.sock"))
        })?;
        // The other socket is there before this one answers.
        drop(emulator.connect()?);
        Ok(emulator)
    }

    /// This backend, for a VMM that waits so many milliseconds for an answer.
    pub(crate) fn ours_answering_within(folder: &Path, milliseconds: u32) -> Result<Self> {
        let within = milliseconds.to_string();
        Self::ours_with(folder, |command| {
            command.args(["--answer-within-ms", &within])
        })
    }

    /// This backend, with a control channel and a state in this folder, and what else is demanded of it.
    fn ours_with(folder: &Path, more: impl FnOnce(&mut Command) -> &mut Command) -> Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vtpm-backend"));
        let control = folder.join("ours.sock");
        command.arg("--control").arg(&control);
        command.arg("--state").arg(folder.join("ours"));
        Self::start(more(&mut command), control)
    }

    /// swtpm with a new state.
    pub(crate) fn swtpm(folder: &Path) -> Result<Self> {
        let state = folder.join("swtpm");
        fs::create_dir_all(&state)?;
        let control = folder.join("swtpm.sock");
        Self::start(&mut emulator_command(&state, &control), control)
    }

    /// What this command starts.
    pub(crate) fn start(command: &mut Command, control: PathBuf) -> Result<Self> {
        let name = command.get_program().to_owned();
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("{} is needed for this test", name.display()))?;
        Ok(Self { process, control })
    }

    /// Connects to the control channel once it is there.
    pub(crate) fn connect(&mut self) -> Result<UnixStream> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(stream) = UnixStream::connect(&self.control) {
                stream.set_read_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            if let Some(status) = self.process.try_wait()? {
                bail!("the emulator ended with {status}");
            }
            ensure!(Instant::now() < deadline, "the emulator does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Attaches as QEMU does, before it sends `CMD_INIT`.
    pub(crate) fn attach(&mut self) -> Result<Vmm> {
        Vmm::over(self.connect()?)
    }

    /// Attaches and switches the TPM on.
    pub(crate) fn attach_and_init(&mut self) -> Result<Vmm> {
        let mut vmm = self.attach()?;
        ensure!(vmm.control(&words(&[INIT, 0]), 4)? == [0; 4], "CMD_INIT");
        Ok(vmm)
    }

    /// Its descriptors, and its memory in KiB (`VmRSS`).
    pub(crate) fn holds(&self) -> Result<(usize, u64)> {
        let process = PathBuf::from(format!("/proc/{}", self.id()));
        let descriptors = fs::read_dir(process.join("fd"))?.count();
        let status = fs::read_to_string(process.join("status"))?;
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let memory = memory.and_then(|line| line.split_whitespace().next());
        Ok((descriptors, memory.context("its memory")?.parse()?))
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&mut self) -> Result<bool> {
        Ok(self.process.try_wait()?.is_none())
    }

    /// Waits until it has ended by itself.
    pub(crate) fn ends(&mut self) -> Result<ExitStatus> {
        let process = &mut self.process;
        wait_for("the emulator's end", PATIENCE, || Ok(process.try_wait()?))
    }

    /// Has it end by a signal, and waits for that.
    pub(crate) fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        let process = Pid::from_raw(self.id().try_into()?);
        nix::sys::signal::kill(process, signal)?;
        Ok(self.process.wait()?)
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Both channels of an attached VMM.
pub(crate) struct Vmm {
    pub(crate) control: Control,
    pub(crate) data: UnixStream,
}

/// A control channel whose end is seen at once. Closing alone is not: another test that starts a
/// program has a copy of every descriptor for a moment, between its fork and its exec.
pub(crate) struct Control(UnixStream);

impl Deref for Control {
    type Target = UnixStream;

    fn deref(&self) -> &UnixStream {
        &self.0
    }
}

impl DerefMut for Control {
    fn deref_mut(&mut self) -> &mut UnixStream {
        &mut self.0
    }
}

impl From<UnixStream> for Control {
    fn from(stream: UnixStream) -> Self {
        Self(stream)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Vmm {
    /// Hands a data descriptor over.
    pub(crate) fn over(control: impl Into<Control>) -> Result<Self> {
        let (data, theirs) = UnixStream::pair()?;
        data.set_read_timeout(Some(PATIENCE))?;
        let control = control.into();
        let mut vmm = Self { control, data };
        sendmsg::<()>(
            vmm.control.as_raw_fd(),
            &[IoSlice::new(&SET_DATAFD.to_be_bytes())],
            &[ControlMessage::ScmRights(&[theirs.as_raw_fd()])],
            MsgFlags::empty(),
            None,
        )?;
        ensure!(vmm.answer(4)? == [0; 4], "CMD_SET_DATAFD is refused");
        Ok(vmm)
    }

    /// Sends a request on the control channel and reads so many bytes of answer.
    pub(crate) fn control(&mut self, request: &[u8], length: usize) -> Result<Vec<u8>> {
        self.control.write_all(request)?;
        self.answer(length)
    }

    /// Reads so many bytes from the control channel.
    pub(crate) fn answer(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut answer = vec![0; length];
        self.control.read_exact(&mut answer)?;
        Ok(answer)
    }

    /// Has a command carried out: the whole response.
    pub(crate) fn execute(&mut self, command: &[u8]) -> Result<Vec<u8>> {
        self.data.write_all(command)?;
        read_frame(&mut self.data, MAX_SIZE)?.context("the TPM is gone")
    }
}

/// Whatever carries a guest's commands to its TPM.
pub(crate) trait Commands {
    /// Has a command carried out: the whole response.
    fn execute(&mut self, command: &[u8]) -> Result<Vec<u8>>;
}

impl Commands for Driver {
    fn execute(&mut self, command: &[u8]) -> Result<Vec<u8>> {
        Driver::execute(self, command)
    }
}

impl Commands for Vmm {
    fn execute(&mut self, command: &[u8]) -> Result<Vec<u8>> {
        Vmm::execute(self, command)
    }
}

/// The response code of a response.
pub(crate) fn code(response: &[u8]) -> u32 {
    Response::parse(response).map_or(u32::MAX, |response| response.code().raw())
}

/// TPM2_PCR_Extend of PCR 16.
pub(crate) fn extend(vmm: &mut impl Commands) -> Result<()> {
    ensure!(code(&vmm.execute(&pcr_extend(16))?) == 0);
    Ok(())
}

/// TPM2_PCR_Read of PCR 16.
pub(crate) fn pcr(vmm: &mut impl Commands) -> Result<Vec<u8>> {
    let response = vmm.execute(&pcr_read(16))?;
    let digest = response.last_chunk::<32>().context("a digest")?;
    Ok(digest.to_vec())
}
