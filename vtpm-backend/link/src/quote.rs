//! A quote that the manager has a vRoT make by itself, between two commands of its guest.

use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Encode};

/// What is to be quoted, and with which key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct QuoteOrder {
    /// Where the identity key is persistent, unless the guest removed it.
    #[n(0)]
    pub handle: u32,
    /// Its `TPMT_PUBLIC` template, from which it is made anew then, in the endorsement hierarchy.
    #[n(1)]
    pub template: ByteVec,
    /// Its name, as in `TPM2B_NAME`. No other key quotes.
    #[n(2)]
    pub name: ByteVec,
    /// The PCRs, each a bit: PCR 0 is the lowest.
    #[n(3)]
    pub pcrs: u32,
    /// The banks (`TPM_ALG_ID`), the preferred one first. The first that has all these PCRs is quoted.
    #[n(4)]
    pub banks: Vec<u16>,
    /// Qualifying data.
    #[n(5)]
    pub qualifying_data: ByteArray<32>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum QuoteOutcome {
    /// It was made.
    #[n(0)]
    Quoted(#[n(0)] Quote),
    /// It was not.
    #[n(1)]
    NotQuoted(#[n(0)] NoQuote),
}

/// A quote.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Quote {
    /// Marshalled `TPMS_ATTEST`.
    #[n(0)]
    pub attest: ByteVec,
    /// Marshalled `TPMT_SIGNATURE`.
    #[n(1)]
    pub signature: ByteVec,
    /// `TPMT_PUBLIC` of the key.
    #[n(2)]
    pub public: ByteVec,
    /// The values of the quoted PCRs in rising order.
    #[n(3)]
    pub pcr_values: ByteVec,
}

/// Why a vRoT was not quoted. What its guest did to its TPM can be a reason, and is one for this vRoT
/// alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, thiserror::Error)]
#[non_exhaustive]
pub enum NoQuote {
    /// No VMM has switched the TPM on.
    #[error("its TPM is off: its VM does not run")]
    #[n(0)]
    Off,
    /// The guest's firmware has not sent `TPM2_Startup`.
    #[error("its TPM has not been started by the VM's firmware yet")]
    #[n(1)]
    NotStarted,
    /// The state is put aside for the VMM, or the manager holds the guest.
    #[error("its VM is suspended or saved: its TPM waits for it")]
    #[n(2)]
    Aside,
    /// The TPM is at a long command of its guest, or its VMM is measuring into it.
    #[error("its TPM is making a key for its guest, or its VMM is measuring: ask again")]
    #[n(3)]
    Busy,
    /// The guest has commands audited: the audit would tell of commands that are not its own.
    #[error("its guest has the TPM's commands audited, which the host's would disturb")]
    #[n(4)]
    Audited,
    /// No bank has the PCRs.
    #[error("its TPM has no active PCR bank with all the PCRs")]
    #[n(5)]
    Bank,
    /// The identity key is gone, and cannot be made anew.
    #[error(
        "its guest removed the identity key and made it impossible to make it anew (TPM response \
         0x{code:03x}): the guest's administrator has to give the endorsement hierarchy an empty \
         authorization again, or enable it"
    )]
    #[n(6)]
    Key {
        /// The TPM's response code.
        #[n(0)]
        code: u32,
    },
    /// Another key is made from the template.
    #[error("its identity key is not the one that was certified: its endorsement seed was changed")]
    #[n(7)]
    AnotherKey,
    /// The TPM refused a command.
    #[error("its TPM refused with response 0x{code:03x}")]
    #[n(8)]
    Refused {
        /// The TPM's response code.
        #[n(0)]
        code: u32,
    },
    /// What the TPM answered cannot be read.
    #[error("its TPM gave an answer that cannot be read")]
    #[n(9)]
    Answer,
}
