//! Anchored mode: this host's configuration has these programs hand over to the manager, which seals a
//! VM's TPM to the physical one. No caller knows of it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use swtpm_state::{KeyOptions, KeySource, Location};
use vrot_handover::config::Mode;
use vrot_handover::message::Lock;

use crate::descriptors;

/// No secret is longer.
const MAX_SECRET: u64 = 64 * 1024;

/// The manager's socket, if this host has its TPMs anchored.
pub(crate) fn manager() -> Result<Option<PathBuf>> {
    Ok(match Mode::of_this_host()? {
        Mode::Plain => None,
        Mode::Anchored(manager) => Some(manager),
    })
}

/// The folder that a VM's launcher keeps for it.
pub(crate) fn folder(location: Location) -> Result<PathBuf> {
    match location {
        Location::Folder(folder) => Ok(folder),
        Location::File(file) => bail!(
            "{}: a state in one file (file://) is not offered where this host has its TPMs anchored: \
             give a folder of the VM's own (dir=FOLDER)",
            file.display()
        ),
    }
}

/// The lock that the secret of an option (`--key`, `--keyfile`, `--pwdfile`) is.
pub(crate) fn lock(options: &KeyOptions) -> Result<Lock> {
    let (secret, shown) = match &options.source {
        KeySource::Descriptor(number) => {
            let secret = File::from(descriptors::take(*number)?);
            (secret, format!("descriptor {number}"))
        }
        KeySource::File(path) => {
            let shown = path.display().to_string();
            let secret = File::open(path).with_context(|| format!("{shown} cannot be opened"))?;
            (secret, shown)
        }
    };
    lock_of(secret, &shown)
}

fn lock_of(secret: File, shown: &str) -> Result<Lock> {
    let mut bytes = Vec::new();
    let read = secret.take(MAX_SECRET + 1).read_to_end(&mut bytes);
    read.with_context(|| format!("{shown} cannot be read"))?;
    ensure!(!bytes.is_empty(), "{shown} holds no secret");
    ensure!(
        bytes.len() as u64 <= MAX_SECRET,
        "{shown} holds more than {MAX_SECRET} bytes"
    );
    let lock = Lock::of(&bytes);
    bytes.fill(0);
    Ok(lock)
}

/// Whether the folder has a vRoT.
pub(crate) fn has_vrot(folder: &Path) -> bool {
    std::fs::symlink_metadata(folder.join(vrot_handover::folder_file::NAME)).is_ok()
}
