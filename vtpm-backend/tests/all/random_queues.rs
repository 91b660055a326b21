//! Random commands of guests behind virtio devices, with whatever their VMM and host do between them: each
//! is answered, none resets the TPM but the host, and the TPM starts again with whatever came of them.
//!
//! `VROT_RANDOM_COMMANDS` sets how many for each device, `VROT_RANDOM_SEED` where to begin.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use crate::random_commands::{FAILURE, Random, corpus, number};
use crate::support::i2c::I2cChannel;
use crate::support::rings::{Channel, Guest, Vmm};
use crate::support::{Commands, Emulator, STARTUP, code, command, extend, pcr};

/// `TPM_RC_INITIALIZE`
const INITIALIZE: u32 = 0x100;

#[test]
fn whatever_a_guest_behind_virtio_tpm_sends_is_answered() -> Result<()> {
    Bench::run("virtio-tpm", 800)
}

#[test]
fn whatever_a_guest_behind_virtio_i2c_sends_is_answered() -> Result<()> {
    Bench::run("virtio-i2c", 300)
}

struct Bench<'f> {
    folder: &'f Path,
    device: &'static str,
    emulator: Emulator,
    guest: Guest,
    /// There is one but while it changes.
    vmm: Option<Vmm>,
    random: Random,
}

impl Bench<'_> {
    /// So many commands, in a run of `make test`.
    fn run(device: &'static str, commands: u64) -> Result<()> {
        let commands = number("VROT_RANDOM_COMMANDS", commands)?;
        let seed = number("VROT_RANDOM_SEED", 1)?;
        let folder = tempfile::tempdir()?;
        let folder = folder.path();
        let emulator = Emulator::virtio(folder, device)?;
        let guest = Guest::new()?;
        let vmm = Some(guest.connect(&folder.join("vhost-user.sock"), 0)?);
        let random = Random::new(seed);
        let mut bench = Bench {
            folder,
            device,
            emulator,
            guest,
            vmm,
            random,
        };
        bench.is_started()?;
        let corpus = corpus();
        for count in 0..commands {
            bench
                .step(&corpus)
                .with_context(|| format!("{device}, seed {seed}, step {count}"))?;
        }
        bench.reset()
    }

    fn step(&mut self, corpus: &[Vec<u8>]) -> Result<()> {
        if self.random.below(20) == 0 {
            return self.event();
        }
        let command = self.random.changed(corpus);
        let response = self.execute(&command);
        let response = response.with_context(|| format!("{command:02x?}"))?;
        // A TPM that fails does so for good.
        ensure!(code(&response) != FAILURE, "{command:02x?}");
        Ok(())
    }

    fn execute(&mut self, command: &[u8]) -> Result<Vec<u8>> {
        let vmm = self.vmm.as_ref().context("a VMM")?;
        match self.device {
            "virtio-tpm" => Channel(&mut self.guest, vmm).execute(command),
            _ => I2cChannel(&mut self.guest, vmm).execute(command),
        }
    }

    fn event(&mut self) -> Result<()> {
        match self.random.below(8) {
            0 => self.reset(),
            1 => {
                ensure!(self.emulator.end(Signal::SIGTERM)?.success(), "SIGTERM");
                self.again()
            }
            2 => {
                self.emulator.end(Signal::SIGKILL)?;
                self.again()
            }
            kind => self.resets_nothing(kind),
        }
    }

    /// What a guest and its VMM can do to the device, with a PCR before and after.
    fn resets_nothing(&mut self, kind: usize) -> Result<()> {
        extend(self)?;
        let before = pcr(self)?;
        let base = self.guest.offered();
        let vmm = self.vmm.as_mut().context("a VMM")?;
        match kind {
            3 => {
                ensure!(vmm.frontend.get_vring_base(0)? == u32::from(base), "base");
                vmm.start(base)?;
            }
            4 if self.device == "virtio-tpm" => {
                vmm.frontend.reset_device()?;
                vmm.start(base)?;
            }
            5 => {
                self.vmm = None;
                // The bus of a new connection is a new one; the TPM behind it is not.
                self.connect()?;
            }
            6 => vmm.share(&self.guest.memory)?,
            _ => drop(self.emulator.attach()?),
        }
        ensure!(pcr(self)? == before, "the PCR is another one");
        Ok(())
    }

    /// A new process beside the same folder.
    fn again(&mut self) -> Result<()> {
        self.vmm = None;
        self.emulator = Emulator::virtio(self.folder, self.device)?;
        self.connect()?;
        self.is_started()
    }

    fn connect(&mut self) -> Result<()> {
        let socket = self.folder.join("vhost-user.sock");
        self.vmm = Some(self.guest.connect(&socket, self.guest.offered())?);
        Ok(())
    }

    /// The host's.
    fn reset(&mut self) -> Result<()> {
        drop(self.emulator.attach_and_init()?);
        self.is_started()
    }

    fn is_started(&mut self) -> Result<()> {
        let random = command(0x17b, &[0, 8]);
        ensure!(
            code(&self.execute(&random)?) == INITIALIZE,
            "it was started"
        );
        ensure!(code(&self.execute(&STARTUP)?) == 0, "TPM2_Startup");
        ensure!(code(&self.execute(&random)?) == 0, "TPM2_GetRandom");
        Ok(())
    }
}

impl Commands for Bench<'_> {
    fn execute(&mut self, command: &[u8]) -> Result<Vec<u8>> {
        Bench::execute(self, command)
    }
}
