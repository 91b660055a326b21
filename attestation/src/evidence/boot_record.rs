//! What a VM layer tells of the VM's boot.

use cert_chain::Digest32;
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use super::{EvidenceError, within};
use crate::event_log::MAX_LOG;

/// What accounts for the quoted PCRs. The quote covers which of both it is, so nobody on the way can
/// leave a log out; who makes the quote can. So an appraisal takes evidence without a log only where
/// its policy says what it demands instead.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum BootRecord {
    /// Nothing: the values of the PCRs stand for themselves. So it is where no firmware measures into
    /// the TPM, and where the host has the vRoT quote without the guest.
    #[n(0)]
    PcrsAlone,
    /// The guest's event log.
    #[n(1)]
    Log {
        /// SHA-256 value of the log.
        #[n(0)]
        digest: Digest32,
        /// The log.
        #[n(1)]
        log: ByteVec,
    },
}

impl BootRecord {
    /// The record that is this log.
    pub fn of_log(log: Vec<u8>) -> Self {
        Self::Log {
            digest: Digest32::of(&log),
            log: log.into(),
        }
    }

    /// The log's digest as the record has it.
    pub fn log_digest(&self) -> Option<&Digest32> {
        match self {
            Self::PcrsAlone => None,
            Self::Log { digest, .. } => Some(digest),
        }
    }

    /// The log.
    pub fn log(&self) -> Option<&[u8]> {
        match self {
            Self::PcrsAlone => None,
            Self::Log { log, .. } => Some(log),
        }
    }

    pub(super) fn check_length(&self) -> Result<(), EvidenceError> {
        within(
            "the VM's event log",
            self.log().map_or(0, <[u8]>::len),
            MAX_LOG,
        )
    }
}
