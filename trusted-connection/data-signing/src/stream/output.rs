//! Where a stream goes: a file that grows, or a program that reads on.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufReader, IsTerminal, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use cert_chain::TpmName;
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
        Ok(output)
    }

    /// A file with a stream of this key and name, which goes on; if there is none, a new one. A batch that was
    /// not written whole is removed from its end.
    pub fn append(path: &Path, key: &TpmName, stream: &LabelText) -> Result<Opened, OutputError> {
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
        let (last, length) = last_batch(file, path)?;
        if let Some(last) = &last
            && (last.unverified_label().key != *key || last.unverified_label().stream != *stream)
        {
            return Err(OutputError::OtherStream {
                path: path.to_owned(),
                found: last.unverified_label().stream.clone(),
                key: last.unverified_label().key.clone(),
            });
        }
        let found = file.metadata().map_err(at(path))?.len();
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
            after: last.map(|last| last.link()),
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

/// The last whole batch, and how many bytes it and those before have.
fn last_batch(file: &File, path: &Path) -> Result<(Option<Batch>, u64), OutputError> {
    let mut batches = BatchInput::new(BufReader::new(file));
    let mut last = None;
    loop {
        match batches.next() {
            Some(Ok(batch)) => last = Some(batch),
            None | Some(Err(InputError::CutOff { .. })) => return Ok((last, batches.length())),
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
