//! The host's event log, and whether it accounts for the host's PCRs. Devices refuse every VM of a
//! host whose log does not; so the host says so first.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use attestation::EventLog;
use attestation::event_log::{EventLogError, MAX_LOG, MissingDigest};
use bounded_file::read_bounded;
use cert_chain::{Digest32, HashAlgorithm, PcrValues};
use tokio::task::spawn_blocking;

/// The log's file, and what is known of the PCRs that it has to account for.
#[derive(Debug)]
pub struct HostLog {
    path: PathBuf,
    known: Mutex<Known>,
}

/// What was found out last.
#[derive(Debug, Default)]
struct Known {
    /// The PCRs that quotes are of, as the TPM gave them last.
    pcrs: Option<PcrValues>,
    log: Option<LogContents>,
    /// What came of holding the log with this digest against these PCRs: both are the same for as
    /// long as the host runs, and parsing and hashing every event takes milliseconds.
    verdict: Option<(Digest32, PcrValues, Result<(), HostLogProblem>)>,
}

/// The log as it was read. A log that did not change is shared, and hashed once.
#[derive(Clone, Debug)]
pub struct LogContents {
    /// The log.
    pub bytes: Arc<[u8]>,
    /// Its digest.
    pub digest: Digest32,
}

/// Why devices refuse the host's VMs.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostLogProblem {
    /// The log tells of nothing in the bank that is quoted.
    #[error(
        "the host's event log `{}` tells of no measurement in the {bank} bank, which is quoted: \
         activate that bank in the firmware's setup, or quote one that firmware measures into",
        path.display()
    )]
    Bank {
        /// The file.
        path: PathBuf,
        /// The bank.
        bank: HashAlgorithm,
    },
    /// The log leaves a PCR open.
    #[error("the host's event log `{}` leaves a quoted PCR open: leave it out of `quoted_pcrs`", path.display())]
    Gap {
        /// The file.
        path: PathBuf,
        /// Where.
        #[source]
        source: MissingDigest,
    },
    /// The file cannot be read.
    #[error("the host's event log `{}` cannot be read; `event_log` names the file", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The file holds no log.
    #[error("`{}` is no event log; `event_log` names the file", path.display())]
    NoLog {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: EventLogError,
    },
    /// The log is longer than evidence can carry.
    #[error("the host's event log `{}` has more than {MAX_LOG} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The TPM has not shown its PCRs yet.
    #[error(
        "whether the host's event log `{}` accounts for the host's PCRs is not known: the TPM has not \
         shown them yet",
        path.display()
    )]
    Unchecked {
        /// The file.
        path: PathBuf,
    },
    /// The log leads to other values than the TPM has.
    #[error(
        "the host's event log `{}` does not account for what the TPM holds in {} of its {bank} \
         bank: is it this TPM's log, and whole? What goes on being extended after the boot has to \
         be left out of `quoted_pcrs`",
        path.display(),
        listed(pcrs)
    )]
    Unaccounted {
        /// The file.
        path: PathBuf,
        /// The bank.
        bank: HashAlgorithm,
        /// The PCRs, in rising order.
        pcrs: Vec<u8>,
    },
}

impl HostLog {
    /// The log in this file.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            known: Mutex::default(),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Notes what the TPM holds; whether it is something else than before.
    pub fn note_pcrs(&self, pcrs: &PcrValues) -> bool {
        let mut known = self.known();
        let is_new = known.pcrs.as_ref() != Some(pcrs);
        if is_new {
            known.pcrs = Some(pcrs.clone());
        }
        is_new
    }

    /// Whether the TPM has shown its PCRs.
    pub fn knows_pcrs(&self) -> bool {
        self.known().pcrs.is_some()
    }

    /// Reads the log. Files in securityfs have no size to ask for.
    pub async fn read(&self) -> Result<LogContents, HostLogProblem> {
        let path = self.path.clone();
        let read = spawn_blocking(move || read_bounded(&path, MAX_LOG));
        let read = read.await.unwrap_or_else(|error| Err(error.into()));
        let bytes = read.map_err(|source| match source.kind() {
            ErrorKind::FileTooLarge => HostLogProblem::TooLong {
                path: self.path.clone(),
            },
            _ => HostLogProblem::Io {
                path: self.path.clone(),
                source: Arc::new(source),
            },
        })?;
        let mut known = self.known();
        match &known.log {
            Some(last) if *last.bytes == *bytes => Ok(last.clone()),
            _ => {
                let digest = Digest32::of(&bytes);
                let bytes = bytes.into();
                Ok(known.log.insert(LogContents { bytes, digest }).clone())
            }
        }
    }

    /// Whether the log, as it is now, accounts for the PCRs, as they were when the TPM was asked
    /// last. Asks no TPM.
    pub async fn check(&self) -> Result<(), HostLogProblem> {
        self.check_against_pcrs(&self.read().await?)
    }

    /// The same for a log that was read already.
    pub fn check_against_pcrs(&self, log: &LogContents) -> Result<(), HostLogProblem> {
        let pcrs = {
            let known = self.known();
            if let Some((digest, pcrs, verdict)) = &known.verdict
                && *digest == log.digest
                && known.pcrs.as_ref() == Some(pcrs)
            {
                return verdict.clone();
            }
            known.pcrs.clone()
        };
        let verdict = self.judge(&log.bytes, pcrs.as_ref());
        if let Some(pcrs) = pcrs {
            self.known().verdict = Some((log.digest, pcrs, verdict.clone()));
        }
        verdict
    }

    fn judge(&self, log: &[u8], pcrs: Option<&PcrValues>) -> Result<(), HostLogProblem> {
        let path = || self.path.clone();
        let log = EventLog::parse(log).map_err(|source| HostLogProblem::NoLog {
            path: path(),
            source,
        })?;
        let Some(pcrs) = pcrs else {
            return Err(HostLogProblem::Unchecked { path: path() });
        };
        let replay = log.replay();
        let bank = pcrs.bank();
        let replayed = replay
            .bank(bank)
            .ok_or_else(|| HostLogProblem::Bank { path: path(), bank })?;
        let unaccounted =
            replayed
                .unaccounted(pcrs.iter())
                .map_err(|source| HostLogProblem::Gap {
                    path: path(),
                    source,
                })?;
        if unaccounted.is_empty() {
            return Ok(());
        }
        Err(HostLogProblem::Unaccounted {
            path: path(),
            bank,
            pcrs: unaccounted,
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HostLogProblem {
    /// The PCRs that the log does not account for, if that is the problem.
    pub fn pcrs(&self) -> &[u8] {
        match self {
            Self::Unaccounted { pcrs, .. } => pcrs,
            Self::Gap { source, .. } => std::slice::from_ref(&source.pcr),
            _ => &[],
        }
    }
}

fn listed(pcrs: &[u8]) -> String {
    let numbers: Vec<String> = pcrs.iter().map(u8::to_string).collect();
    format!("PCR {}", numbers.join(", "))
}

#[cfg(test)]
mod tests {
    use anyhow::Context;
    use attestation::event_log::EventType;
    use attestation::event_log::writer::LogWriter;
    use tempfile::NamedTempFile;

    use super::*;

    fn pcrs(log: &LogWriter) -> anyhow::Result<PcrValues> {
        let replay = EventLog::parse(log.bytes())?.replay();
        let mut pcrs = PcrValues::new(HashAlgorithm::Sha256);
        for (pcr, value) in replay
            .bank(HashAlgorithm::Sha256)
            .context("a bank")?
            .extended()
        {
            pcrs.insert(pcr, value?)?;
        }
        Ok(pcrs)
    }

    #[tokio::test]
    async fn a_log_is_not_called_right_before_the_tpm_has_shown_its_pcrs() -> anyhow::Result<()> {
        let mut boot = LogWriter::crypto_agile(&[HashAlgorithm::Sha256]);
        boot.measure(0, EventType::S_CRTM_VERSION, b"firmware");
        let file = NamedTempFile::new()?;
        std::fs::write(file.path(), boot.bytes())?;
        let log = HostLog::new(file.path().to_owned());
        let unchecked = log.check().await;
        assert!(
            matches!(unchecked, Err(HostLogProblem::Unchecked { .. })),
            "{unchecked:?}"
        );

        assert!(log.note_pcrs(&pcrs(&boot)?));
        log.check().await?;
        // What was found out is not said of other PCRs, nor of another log.
        let measured = boot.bytes().to_vec();
        boot.measure(0, EventType::S_CRTM_VERSION, b"another firmware");
        log.note_pcrs(&pcrs(&boot)?);
        assert!(log.check().await.is_err());
        std::fs::write(file.path(), boot.bytes())?;
        log.check().await?;
        std::fs::write(file.path(), measured)?;
        assert!(log.check().await.is_err());
        Ok(())
    }
}
