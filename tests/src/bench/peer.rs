//! The peer: swtpm, as it ships.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;
use test_support::process::Process;
use test_support::run_folder::RunFolder;
use test_support::software_tpm::{TpmMaker, emulator_command};
use test_support::tool::Tool;

use super::disk::Disk;
use crate::vmm::Control;

/// A workshop that makes and starts swtpm instances.
#[derive(Debug)]
pub(super) struct Peer<'a> {
    run: &'a RunFolder,
    folder: PathBuf,
    maker: PathBuf,
}

/// A running swtpm that has answered.
#[derive(Debug)]
pub(super) struct PeerTpm {
    process: Process,
    /// Its control channel.
    pub(super) control: Control,
    /// From the order to that answer.
    pub(super) took: Duration,
}

const ANSWER: Duration = Duration::from_secs(300);
/// Short against anything that is measured here.
const PAUSE: Duration = Duration::from_micros(200);

impl<'a> Peer<'a> {
    /// A maker of certificates (swtpm_localca) whose keys are ready, and a folder for states.
    pub(super) fn create(run: &'a RunFolder, disk: &Disk) -> Result<Self> {
        let folder = disk.join("peer");
        let maker = folder.join("tpm-maker");
        TpmMaker::create(&maker)?;
        fs::create_dir_all(run.join("peer"))?;
        let peer = Self { run, folder, maker };
        // The maker's own keys are made with its first TPM, which is therefore not timed.
        peer.set_up("first")?;
        Ok(peer)
    }

    /// Makes a TPM with keys and certificates, starts it, and waits until its socket answers.
    pub(super) fn launch(&self, name: &str) -> Result<PeerTpm> {
        let begin = Instant::now();
        let state = self.set_up(name)?;
        self.run_since(name, &state, begin)
    }

    /// Starts a copy of the first TPM, which is as large as any other.
    pub(super) fn start_copy(&self, name: &str) -> Result<PeerTpm> {
        let state = self.state(name);
        fs::create_dir_all(&state)?;
        let mut copied = 0;
        for file in fs::read_dir(self.state("first"))? {
            let file = file?;
            if file.file_name().to_string_lossy().ends_with(".permall") {
                fs::copy(file.path(), state.join(file.file_name()))?;
                copied += 1;
            }
        }
        ensure!(copied == 1, "swtpm_setup left {copied} states");
        self.run_since(name, &state, Instant::now())
    }

    /// Ends a TPM and removes its state.
    pub(super) fn remove(&self, name: &str, tpm: PeerTpm) -> Result<()> {
        drop(tpm);
        fs::remove_dir_all(self.state(name))?;
        Ok(())
    }

    /// Where a TPM of this name listens.
    pub(super) fn socket(&self, name: &str) -> PathBuf {
        self.run.join("peer").join(name)
    }

    fn state(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn set_up(&self, name: &str) -> Result<PathBuf> {
        let state = self.state(name);
        fs::create_dir_all(&state).with_context(|| format!("creating {}", state.display()))?;
        Tool::new("swtpm_setup")
            .args(["--tpm2", "--create-ek-cert", "--config"])
            .arg(self.maker.join("setup.conf"))
            .arg("--tpmstate")
            .arg(&state)
            .run()?;
        Ok(state)
    }

    fn run_since(&self, name: &str, state: &Path, begin: Instant) -> Result<PeerTpm> {
        let socket = self.socket(name);
        let command = emulator_command(state, &socket);
        let log = self.run.join("peer").join(format!("{name}.log"));
        let mut process = Process::start("swtpm", command, &log)?;
        loop {
            if let Ok(control) = Control::connect(&socket) {
                return Ok(PeerTpm {
                    process,
                    control,
                    took: begin.elapsed(),
                });
            }
            process.must_run()?;
            ensure!(begin.elapsed() < ANSWER, "swtpm does not answer");
            thread::sleep(PAUSE);
        }
    }
}

impl PeerTpm {
    /// Its process, which ends with the first value, and its control channel.
    pub(super) fn into_parts(self) -> (Process, Control) {
        (self.process, self.control)
    }
}

/// The process of a swtpm.
pub(super) fn process(process: &Process) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(process.id())?))
}
