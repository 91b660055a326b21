//! Files that these programs write for their callers: logs and process ids. They may lie in folders that
//! others can write to, so a symbolic link in place of one is refused.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::libc::{O_NOCTTY, O_NOFOLLOW, O_NONBLOCK};

/// A file that holds this process's id as long as the process lives.
#[derive(Debug)]
pub(crate) struct PidFile(PathBuf);

/// Opens a log for additions; `truncate` begins it anew.
pub(crate) fn log_file(path: &Path, truncate: bool) -> Result<OwnedFd> {
    match path.to_str() {
        Some("/dev/stdout" | "/dev/fd/1") => {
            return Ok(io::stdout().as_fd().try_clone_to_owned()?);
        }
        Some("/dev/stderr" | "/dev/fd/2") => {
            return Ok(io::stderr().as_fd().try_clone_to_owned()?);
        }
        _ => {}
    }
    let file = open(path, 0o600, |options| {
        options.append(true);
    })?;
    if truncate {
        let shown = path.display();
        file.set_len(0)
            .with_context(|| format!("{shown} cannot be begun anew"))?;
    }
    Ok(file.into())
}

fn open(path: &Path, mode: u32, how: impl FnOnce(&mut OpenOptions)) -> Result<File> {
    let shown = path.display();
    let mut options = OpenOptions::new();
    // A pipe that nobody reads must not stop us.
    options
        .create(true)
        .write(true)
        .mode(mode)
        .custom_flags(O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    how(&mut options);
    let file = options
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            Some(nix::libc::ELOOP) => {
                anyhow::anyhow!("{shown} is a symbolic link: name its target")
            }
            _ => anyhow::Error::from(error).context(format!("{shown} cannot be opened")),
        })?;
    let kind = file.metadata()?.file_type();
    if !(kind.is_file() || kind.is_char_device() || kind.is_fifo()) {
        bail!("{shown} cannot be written to: it is no plain file");
    }
    Ok(file)
}

impl PidFile {
    /// Writes this process's id.
    pub(crate) fn write(path: &Path) -> Result<Self> {
        let file = open(path, 0o644, |options| {
            options.truncate(true);
        })?;
        write_pid(file).with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(Self(path.to_owned()))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Writes this process's id to where a parent wants it.
pub(crate) fn write_pid(mut to: File) -> io::Result<()> {
    to.write_all(std::process::id().to_string().as_bytes())
}
