//! Remote attestation of a VM and of the host below it.
//!
//! Evidence has two layers. In the VM layer a vRoT's identity key (vIK) quotes the guest's PCRs
//! for one challenge; in the host layer the host's identity key (host IK) quotes the host's PCRs
//! *afterwards and over the VM's quote*. Appraisal goes bottom-up: first the host, then the VM,
//! and the VM's verdict never exceeds its host's.
//!
//! A host can have many of its vRoTs quote for their tenant, without their guests: an
//! [evidence set](evidence_set) has its own layer once. What is for one purpose is refused for the other.
//!
//! A device with a TPM of its own attests itself with one layer ([`device`]).
//!
//! The crate is pure: bytes in, verdict out, with bounds on everything an attester can send.
//! [`Evidence::verify`] is the only source of [`VerifiedEvidence`], and [`appraise`] of it the
//! only source of an [`AttestationResult`]. The words are those of RFC 9334.

pub mod appraisal;
pub mod binding;
pub mod bounded_cbor;
pub mod certification;
pub mod connection;
pub mod device;
pub mod event_log;
pub mod evidence;
pub mod evidence_set;
#[cfg(feature = "fixture")]
pub mod fixture;
pub mod host_leaf;
pub mod launch;
pub mod merkle;
pub mod nonce;
pub mod policy;
pub mod policy_about;
pub mod policy_without_log;
pub mod qualifying;
pub mod quote;
pub mod reference;
pub mod refusal;
pub mod result;
pub mod spiffe;
mod toml_error;
pub mod verdict;
pub mod verification;

pub use appraisal::appraise;
pub use binding::{Binding, Purpose};
pub use certification::{CertifiedKey, KeyStatement};
pub use event_log::EventLog;
pub use evidence::{BootRecord, Evidence, HostLayer, VmLayer};
pub use evidence_set::EvidenceSet;
pub use host_leaf::{
    Anchoring, CutOff, Durability, HostLeaf, QuotePurpose, StateLoss, TpmTransport,
};
pub use launch::LaunchMeasurement;
pub use nonce::Nonce;
pub use policy::Policy;
pub use policy_about::PolicyAbout;
pub use qualifying::{
    RequestDigest, confirmation_key_qualifying_data, data_key_qualifying_data,
    device_qualifying_data, host_qualifying_data, request_digest, tenant_qualifying_data,
    tenant_request_digest, vm_qualifying_data, vm_request_leaf,
};
pub use reference::{
    BOOT_PCRS, ReferenceError, ReferenceValues, accounted_bank, reference_values,
    reference_values_of_pcrs,
};
pub use refusal::{Layer, Refusal};
pub use result::{AttestationResult, Verdict};
pub use toml_error::TomlError;
pub use verification::{TpmReport, VerifiedBoot, VerifiedEvidence};
