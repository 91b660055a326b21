//! The digest of one file.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, Ordering};

use cert_chain::Digest32;
use ring::digest::{Context, SHA256};

/// Why a file is not measured.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A device, a folder, a pipe.
    #[error("it is no regular file; what has no end, or no contents, cannot be measured")]
    NotRegular,
    /// Longer than what is measured.
    #[error("it has {size} bytes, more than the {MAX_FILE} that are measured")]
    TooLarge {
        /// Its size.
        size: u64,
    },
    /// Somebody writes to it.
    #[error("it changed while it was measured: measure it when nobody writes to it any more")]
    Changed,
    /// Nobody waits for it any more.
    #[error("nobody waits for it any more")]
    GivenUp,
    /// It cannot be read; a descriptor that is open for writing alone is of no use, either.
    #[error("it cannot be read: {0}")]
    Read(#[source] io::Error),
}

/// A disk image; what there is more takes hours.
const MAX_FILE: u64 = 1 << 44;
/// Read at a time.
const CHUNK: usize = 1024 * 1024;

/// The SHA-256 value of all that a regular file holds. The offset of the descriptor, which others may
/// use, stays as it is. Holes are read as the zeros that they are, without the disk.
pub(super) fn digest_of(file: &File, wanted: &AtomicBool) -> Result<Digest32, FileError> {
    let before = file.metadata().map_err(FileError::Read)?;
    if !before.is_file() {
        return Err(FileError::NotRegular);
    }
    let size = before.len();
    if size > MAX_FILE {
        return Err(FileError::TooLarge { size });
    }
    let mut digest = Context::new(&SHA256);
    let mut chunk = vec![0; CHUNK];
    let mut read = 0;
    loop {
        if !wanted.load(Ordering::Relaxed) {
            return Err(FileError::GivenUp);
        }
        let arrived = match file.read_at(&mut chunk, read) {
            Ok(0) => break,
            Ok(length) => chunk.get(..length).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(FileError::Read(error)),
        };
        digest.update(arrived);
        read = read.saturating_add(arrived.len() as u64);
        // A file that grows for ever has no end.
        if read > size {
            return Err(FileError::Changed);
        }
    }
    let after = file.metadata().map_err(FileError::Read)?;
    if read != size || state(&before) != state(&after) {
        return Err(FileError::Changed);
    }
    let digest = <[u8; 32]>::try_from(digest.finish().as_ref());
    Ok(Digest32::new(digest.unwrap_or_default()))
}

/// What differs once a file was written to.
fn state(file: &Metadata) -> (u64, i64, i64, i64, i64) {
    (
        file.len(),
        file.mtime(),
        file.mtime_nsec(),
        file.ctime(),
        file.ctime_nsec(),
    )
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    fn digest(file: &File) -> Result<Digest32, FileError> {
        digest_of(file, &AtomicBool::new(true))
    }

    #[test]
    fn the_digest_is_that_of_the_contents_holes_among_them_and_the_offset_stays()
    -> anyhow::Result<()> {
        let mut file = tempfile::tempfile()?;
        file.write_all(b"first")?;
        file.set_len(3 * CHUNK as u64 + 7)?;
        file.write_at(b"last", 3 * CHUNK as u64)?;
        let offset = file.stream_position()?;
        let hole = vec![0; 3 * CHUNK - 5];
        let contents = [&b"first"[..], &hole, b"last", &[0; 3]].concat();
        assert_eq!(digest(&file)?, Digest32::of(&contents));
        assert_eq!(file.stream_position()?, offset);
        assert_eq!(digest(&tempfile::tempfile()?)?, Digest32::of(b""));
        Ok(())
    }

    #[test]
    fn what_is_no_regular_file_or_too_large_is_not_measured() -> anyhow::Result<()> {
        for path in ["/dev/zero", "/"] {
            let refused = digest(&File::open(path)?);
            assert!(matches!(refused, Err(FileError::NotRegular)), "{path}");
        }
        let (_reader, writer) = std::io::pipe()?;
        let pipe = File::from(std::os::fd::OwnedFd::from(writer));
        assert!(matches!(digest(&pipe), Err(FileError::NotRegular)));
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("file");
        std::fs::write(&path, "contents")?;
        let for_writing = File::options().write(true).open(&path)?;
        assert!(matches!(digest(&for_writing), Err(FileError::Read(_))));
        Ok(())
    }

    #[test]
    fn a_file_that_is_written_to_meanwhile_is_not_measured() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("file");
        let file = File::create_new(&path)?;
        file.set_len(64 * CHUNK as u64)?;
        let read = File::open(&path)?;
        let over = std::sync::Arc::new(AtomicBool::new(false));
        let until = std::sync::Arc::clone(&over);
        let writer = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                file.write_at(b"x", 0).ok();
                // A file's times have the resolution of the kernel's clock tick.
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        });
        // Where the writer gets no processor meanwhile, the file is as it was.
        let patience = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let mut measured = digest(&read);
        while measured.is_ok() && std::time::Instant::now() < patience {
            measured = digest(&read);
        }
        over.store(true, Ordering::Relaxed);
        writer.join().ok();
        assert!(matches!(measured, Err(FileError::Changed)), "{measured:?}");
        Ok(())
    }

    #[test]
    fn a_measurement_that_nobody_waits_for_ends() -> anyhow::Result<()> {
        let given_up = digest_of(&tempfile::tempfile()?, &AtomicBool::new(false));
        assert!(matches!(given_up, Err(FileError::GivenUp)));
        Ok(())
    }
}
