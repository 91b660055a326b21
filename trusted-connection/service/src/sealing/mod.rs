//! Data that a VM seals to its vRoT, and, if it wants, to a boot: ISO/IEC 27070 §6.5.
//!
//! A file is sealed under a key of its own ([`stream`]); the TPM keeps that key under its storage hierarchy,
//! in an object that cannot leave it (`tpm.rs`). The object and what it is sealed to stand at the beginning of
//! the file ([`header`]). [`commands`] and [`approving`] are what people call.

pub mod approving;
pub mod commands;
pub mod header;
mod storage_key;
pub mod stream;
mod tpm;

use std::io;

use cert_chain::operator::InsufficientPcrs;
use cert_chain::public_area::PublicAreaError;
use cert_chain::{HashAlgorithm, PcrSelection, TpmName};

use crate::attester::AttesterError;
pub use header::{Header, HeaderError, SealedTo};
pub use stream::ContentKey;
pub use tpm::{SealedObject, SealingTpm};

/// Why data are not sealed, or not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The beginning of the file is none.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// A part is not what was sealed.
    #[error(
        "the sealed data were altered, cut off or put in another order, at part {part} ({} KiB each)",
        stream::CHUNK / 1024
    )]
    Altered {
        /// Which, counted from 0.
        part: u64,
    },
    /// More than one key may seal.
    #[error("more data than one file can have (256 TiB)")]
    TooLong,
    /// The data cannot be read.
    #[error("the data cannot be read")]
    Read(#[source] io::Error),
    /// The data cannot be written.
    #[error("the data cannot be written")]
    Write(#[source] io::Error),
    /// Another vRoT's.
    #[error(
        "the data were sealed by another vRoT, or by this one before its storage hierarchy was cleared \
         (TPM2_Clear): they were sealed under the storage key {sealed}, and this TPM has {found}"
    )]
    OtherTpm {
        /// Under which.
        sealed: TpmName,
        /// What there is.
        found: String,
    },
    /// Another boot.
    #[error(
        "the data were sealed to another boot: PCRs {differing} ({bank}) have other values now. They open \
         after a boot as it was then"
    )]
    OtherBoot {
        /// Which PCRs.
        differing: PcrSelection,
        /// The bank.
        bank: HashAlgorithm,
    },
    /// Sealed to approved boots, and none of the approvals is of this one.
    #[error(
        "the data open after boots that the key {key} approved, and none of the {given} approvals given \
         with --approval is of this boot{}",
        nearest.as_ref().map(|nearest| format!(" (nearest: {nearest})")).unwrap_or_default()
    )]
    NotApproved {
        /// Whose approvals.
        key: TpmName,
        /// How many were given.
        given: usize,
        /// The one from which fewest PCRs differ, and which they are.
        nearest: Option<String>,
    },
    /// An approval by somebody else.
    #[error(
        "the approval `{label}` is not signed by {key}, to whose approvals the data are sealed"
    )]
    OthersApproval {
        /// What it says it is.
        label: String,
        /// Who should have signed it.
        key: TpmName,
    },
    /// PCRs that no boot determines.
    #[error(transparent)]
    Pcrs(#[from] InsufficientPcrs),
    /// Nothing was measured.
    #[error(
        "no boot was measured into PCRs {pcrs} ({bank}), so data that are sealed to them would open after \
         any boot: the VM needs a firmware that measures (OVMF with TPM support)"
    )]
    NothingMeasured {
        /// Which.
        pcrs: PcrSelection,
        /// The bank.
        bank: HashAlgorithm,
    },
    /// No key to seal under can be made.
    #[error(
        "the storage hierarchy has an authorization value, and there is no storage key at 0x81000001: \
         make one there (tpm2_createprimary -C o, tpm2_evictcontrol), or have no value"
    )]
    OwnedHierarchy(#[source] AttesterError),
    /// What the TPM made is none.
    #[error("the TPM's storage root key is of a kind that is not known here")]
    StorageKey(#[source] PublicAreaError),
    /// The PCRs do not hold still.
    #[error("the PCRs change all the time: try again when the system has booted")]
    PcrsChange,
    /// No random numbers.
    #[error("the operating system gave no random numbers")]
    Random,
    /// The TPM.
    #[error(transparent)]
    Tpm(#[from] AttesterError),
}
