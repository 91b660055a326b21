//! The trust anchor of a host: the physical TPM, in the hands of one thread.
//!
//! An ESYS context needs `&mut`, so one owner thread holds it; [`TrustAnchor`] is a handle to
//! that thread's queue. Quotes go before bulk work, a busy TPM is asked again, and the thread
//! ends with the last handle.
//!
//! Objects in the physical TPM:
//!
//! | Object | Where | Authorization |
//! |---|---|---|
//! | storage root key (SRK) | 0x81000001, reused if acceptable | empty authorization value |
//! | endorsement key (EK) | made from the TCG's template when needed; certificate in NV memory | policy of the template |
//! | host IK, restricted P-256 signing key | [`IK_HANDLE`] | `PolicyAuthorize` |
//! | root secret | sealed under the SRK, kept in the record file, signed by the host IK | `PolicyAuthorize` |
//!
//! `PolicyAuthorize` names the operator's key ([`PolicyKey`](cert_chain::operator::PolicyKey)), which signs approvals of PCR
//! values ([`Approval`](cert_chain::operator::Approval)). A host whose boot was altered can neither sign a quote, nor issue a
//! certificate, nor open its state, until the operator approves what it booted.

mod bank;
#[cfg(feature = "software-tpm")]
mod bridge;
mod config;
mod error;
mod esys;
pub mod hardware;
mod ik;
#[cfg(feature = "software-tpm")]
mod leftovers;
mod nv;
mod nv_index;
mod owner;
mod policy;

mod queue;
mod record;
mod root_seal;
mod root_secret;
#[cfg(feature = "software-tpm")]
mod socket_owner;
mod srk_statement;
mod trust_anchor;
mod watchdog;

pub use config::{
    AnchorConfig, DEFAULT_POLICY_PCRS, DEFAULT_QUOTED_PCRS, IK_HANDLE, SRK_HANDLE, Tcti, TctiError,
};
pub use error::{AnchorError, BankList, HardwareError};
pub use hardware::{HostPublic, SealedBlob, SignedQuote};
pub use ik::HostIkSigner;
pub use nv::{REGISTER_SIZE, Retention};
pub use nv_index::{Held, NvAuth, NvCounter, NvRegister};
pub use owner::Connect;
pub use policy::{ApprovalStatus, HostPolicy, PcrDifference};
pub use queue::{MAX_BULK, MAX_QUOTES};
pub use root_secret::{ROOT_SECRET_LENGTH, RootSecret};
pub use trust_anchor::TrustAnchor;
