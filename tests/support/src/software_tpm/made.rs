//! TPMs that were manufactured once for all tests: making keys and certificates of a maker and of a
//! TPM takes longer than many a test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{Flock, FlockArg};

use super::maker::TpmMaker;
use crate::programs::target_folder;
use crate::tool::Tool;

/// A TPM as its maker delivered it, never switched on. Each test works on a copy of its own; copies
/// of one TPM have the same keys and certificates.
#[derive(Clone, Debug)]
pub struct MadeTpm {
    maker: TpmMaker,
    state: PathBuf,
}

impl MadeTpm {
    /// The first TPM of the first maker.
    pub fn first(banks: &[&str]) -> Result<Self> {
        Self::of("maker-1", "tpm-1", banks)
    }

    /// Another TPM of the same maker.
    pub fn second(banks: &[&str]) -> Result<Self> {
        Self::of("maker-1", "tpm-2", banks)
    }

    /// A TPM of another maker.
    pub fn of_another_maker(banks: &[&str]) -> Result<Self> {
        Self::of("maker-2", "tpm-1", banks)
    }

    /// Manufactures it, or finds it in `target/test-tpms`.
    fn of(maker: &str, name: &str, banks: &[&str]) -> Result<Self> {
        let folder = target_folder()?
            .join("test-tpms")
            .join(installed_version()?)
            .join(maker);
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let _lock = exclusive(&folder)?;
        let maker = TpmMaker::create(&folder)?;
        let state = folder.join(format!("{name}-{}", banks.join("-")));
        if !state.is_dir() {
            // Under its name only when it is complete, whenever this process ends.
            let incomplete = folder.join("incomplete");
            if incomplete.is_dir() {
                fs::remove_dir_all(&incomplete)?;
            }
            maker.manufacture(&incomplete, banks)?;
            fs::rename(&incomplete, &state)?;
        }
        Ok(Self { maker, state })
    }

    /// Puts a copy into `state`.
    pub fn copy_to(&self, state: &Path) -> Result<()> {
        fs::create_dir_all(state).with_context(|| format!("creating {}", state.display()))?;
        let mut copied = 0;
        for file in fs::read_dir(&self.state)? {
            let file = file?;
            // Beside it lies the lock of the swtpm that made it.
            if file.file_name().to_string_lossy().ends_with(".permall") {
                fs::copy(file.path(), state.join(file.file_name()))?;
                copied += 1;
            }
        }
        ensure!(
            copied == 1,
            "{} holds {copied} states of a TPM, not one: remove that folder",
            self.state.display()
        );
        Ok(())
    }

    /// The maker's certificates (root and intermediate) in one PEM text.
    pub fn maker_certificates(&self) -> Result<String> {
        self.maker.certificates()
    }
}

/// What another version of swtpm made is not taken for this one's work.
fn installed_version() -> Result<String> {
    let said = Tool::new("swtpm").arg("--version").text()?;
    let line = said.lines().next().unwrap_or_default();
    let is_plain = |letter: &char| letter.is_ascii_alphanumeric() || *letter == '.';
    let version: String = line.chars().filter(is_plain).take(60).collect();
    ensure!(!version.is_empty(), "swtpm does not tell its version");
    Ok(version)
}

/// Tests run beside each other, and other runs may be under way: one manufactures at a time.
fn exclusive(folder: &Path) -> Result<Flock<File>> {
    let path = folder.join("lock");
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("locking {}", path.display()))
}
