//! The host's event log, and whether it accounts for the host's PCRs. Devices refuse every VM of a
//! host whose log does not; so the host says so first.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use attestation::EventLog;
use attestation::event_log::{EventLogError, MAX_LOG, MissingDigest};
use cert_chain::{HashAlgorithm, PcrValues};
use tokio::io::AsyncReadExt;

/// The log's file, and what is known of the PCRs that it has to account for.
#[derive(Debug)]
pub struct HostLog {
    path: PathBuf,
    /// The PCRs that quotes are of, as the TPM gave them last.
    pcrs: Mutex<Option<PcrValues>>,
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
            pcrs: Mutex::new(None),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Notes what the TPM holds; whether it is something else than before.
    pub fn note_pcrs(&self, pcrs: &PcrValues) -> bool {
        let mut known = self.pcrs.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = known.as_ref() != Some(pcrs);
        if is_new {
            *known = Some(pcrs.clone());
        }
        is_new
    }

    /// Reads at most one byte more than can be used. Files in securityfs have no size to ask for.
    pub async fn read(&self) -> Result<Vec<u8>, HostLogProblem> {
        let failed = |source| HostLogProblem::Io {
            path: self.path.clone(),
            source: Arc::new(source),
        };
        let file = tokio::fs::File::open(&self.path).await.map_err(failed)?;
        let mut log = Vec::new();
        file.take(MAX_LOG as u64 + 1)
            .read_to_end(&mut log)
            .await
            .map_err(failed)?;
        if log.len() > MAX_LOG {
            return Err(HostLogProblem::TooLong {
                path: self.path.clone(),
            });
        }
        Ok(log)
    }

    /// Whether the log, as it is now, accounts for the PCRs, as they were when the TPM was asked
    /// last. Asks no TPM.
    pub async fn check(&self) -> Result<(), HostLogProblem> {
        self.check_against_pcrs(&self.read().await?)
    }

    /// The same for a log that was read already.
    pub fn check_against_pcrs(&self, log: &[u8]) -> Result<(), HostLogProblem> {
        let path = || self.path.clone();
        let log = EventLog::parse(log).map_err(|source| HostLogProblem::NoLog {
            path: path(),
            source,
        })?;
        let known = self.pcrs.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = known.as_ref() else {
            return Ok(());
        };
        let replay = log.replay();
        let bank = known.bank();
        let replayed = replay
            .bank(bank)
            .ok_or_else(|| HostLogProblem::Bank { path: path(), bank })?;
        let pcrs = replayed
            .unaccounted(known.iter())
            .map_err(|source| HostLogProblem::Gap {
                path: path(),
                source,
            })?;
        if pcrs.is_empty() {
            return Ok(());
        }
        Err(HostLogProblem::Unaccounted {
            path: path(),
            bank,
            pcrs,
        })
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
