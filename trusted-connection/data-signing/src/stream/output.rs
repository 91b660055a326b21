//! Where a stream goes: a file that grows, or a program that reads on.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufReader, IsTerminal, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use cert_chain::{PublicArea, TpmName};
use durable_file::sync_folder_of;
use signed_data::LabelText;
use signed_data::stream::{Batch, BatchInput, InputError, Link};

/// Where batches are written.
#[derive(Debug)]
pub enum Output {
    /// A program that reads on.
    Standard,
    /// A file, which nobody else appends to meanwhile.
    File {
        /// Open at its end.
        file: File,
        /// Its name.
        path: PathBuf,
    },
}

/// Why a stream is not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// A terminal.
    #[error("a stream is binary: give --to FILE, or have a program read standard output")]
    Terminal,
    /// The system.
    #[error("{path} cannot be written")]
    Io {
        /// The file, or standard output.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is one.
    #[error("{} exists: nothing was written; --append goes on with the stream in it", .0.display())]
    Exists(PathBuf),
    /// Somebody else writes.
    #[error("{} is written by another program that signs: nothing was written", .0.display())]
    Locked(PathBuf),
    /// Something else is there.
    #[error("{} holds no stream: nothing was written", path.display())]
    NoStream {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: InputError,
    },
    /// The last batch was altered.
    #[error(
        "what follows byte {length} of {} is not what this key signed: nothing was written; without those \
         bytes (truncate --size {length}), the stream goes on behind the batch before",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Bytes before the batch.
        length: u64,
    },
    /// Another stream is there.
    #[error("{} holds the stream {found:?} of the key {key}, not this one: nothing was written", path.display())]
    OtherStream {
        /// The file.
        path: PathBuf,
        /// The stream in it.
        found: LabelText,
        /// Its key.
        key: TpmName,
    },
}

/// How a stream that is in a file goes on.
#[derive(Debug)]
pub struct Opened {
    /// Where to write.
    pub output: Output,
    /// The batch that the next one follows.
    pub after: Option<Link>,
}

impl Output {
    /// Standard output, unless that is a terminal.
    pub fn standard() -> Result<Self, OutputError> {
        match io::stdout().is_terminal() {
            true => Err(OutputError::Terminal),
            false => Ok(Self::Standard),
        }
    }

    /// A file that is not there yet.
    pub fn create(path: &Path) -> Result<Self, OutputError> {
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        let file = file.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => OutputError::Exists(path.to_owned()),
            _ => at(path)(source),
        })?;
        let output = Self::File {
            file,
            path: path.to_owned(),
        };
        output.lock()?;
        sync_folder_of(path).map_err(at(path))?;
        Ok(output)
    }

    /// A file with a stream of this key and name, which goes on; if there is none, a new one. A batch that was
    /// not written whole is removed from its end.
    pub fn append(
        path: &Path,
        key: &PublicArea,
        stream: &LabelText,
    ) -> Result<Opened, OutputError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(at(path))?;
        let output = Self::File {
            file,
            path: path.to_owned(),
        };
        output.lock()?;
        let Self::File { file, .. } = &output else {
            return Ok(Opened {
                output,
                after: None,
            });
        };
        let found = file.metadata().map_err(at(path))?.len();
        let (last, length) = match last_batch(file, path, found)? {
            Some(LastBatch { batch, from, to }) => {
                let label = batch.unverified_label();
                if label.key != key.name() || label.stream != *stream {
                    return Err(OutputError::OtherStream {
                        path: path.to_owned(),
                        found: label.stream.clone(),
                        key: label.key.clone(),
                    });
                }
                if !batch.is_signed_by(key) {
                    return Err(OutputError::Damaged {
                        path: path.to_owned(),
                        length: from,
                    });
                }
                (Some(batch.link()), to)
            }
            None => {
                // As a batch that is written is on the disk, so is its file's name.
                sync_folder_of(path).map_err(at(path))?;
                (None, 0)
            }
        };
        if found > length {
            tracing::warn!(
                file = %path.display(),
                bytes = found.saturating_sub(length),
                "a batch was not written whole: it is removed"
            );
            file.set_len(length).map_err(at(path))?;
        }
        let mut end = file;
        end.seek(SeekFrom::Start(length)).map_err(at(path))?;
        Ok(Opened {
            after: last,
            output,
        })
    }

    /// Writes a batch; a file has it when this returns, whatever happens to the machine.
    pub fn write(&mut self, batch: &[u8]) -> Result<(), OutputError> {
        match self {
            Self::Standard => {
                let mut out = io::stdout().lock();
                (out.write_all(batch).and_then(|()| out.flush())).map_err(|source| {
                    OutputError::Io {
                        path: "standard output".to_owned(),
                        source,
                    }
                })
            }
            Self::File { file, path } => {
                (file.write_all(batch).and_then(|()| file.sync_data())).map_err(at(path))
            }
        }
    }

    fn lock(&self) -> Result<(), OutputError> {
        match self {
            Self::Standard => Ok(()),
            Self::File { file, path } => file.try_lock().map_err(|error| match error {
                TryLockError::WouldBlock => OutputError::Locked(path.clone()),
                TryLockError::Error(source) => at(path)(source),
            }),
        }
    }
}

/// The last whole batch of a file, and where it is.
struct LastBatch {
    batch: Batch,
    from: u64,
    to: u64,
}

/// So many bytes show that something was to become a batch, whatever the file is meant for.
const TELLING: u64 = 17;

/// The last whole batch of a file of this length, if there is one and what follows it is nothing else than
/// the beginning of another.
fn last_batch(file: &File, path: &Path, found: u64) -> Result<Option<LastBatch>, OutputError> {
    let mut batches = BatchInput::new(BufReader::new(file));
    let mut last = None;
    loop {
        let from = batches.length();
        match batches.next() {
            Some(Ok(batch)) => {
                let to = batches.length();
                last = Some(LastBatch { batch, from, to });
            }
            None => return Ok(last),
            // Of a file that may be somebody's, so little is not removed.
            Some(Err(InputError::CutOff { .. })) if last.is_some() || found >= TELLING => {
                return Ok(last);
            }
            Some(Err(InputError::Io(source))) => return Err(at(path)(source)),
            Some(Err(source)) => {
                return Err(OutputError::NoStream {
                    path: path.to_owned(),
                    source,
                });
            }
        }
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> OutputError {
    let path = path.display().to_string();
    move |source| OutputError::Io { path, source }
}
