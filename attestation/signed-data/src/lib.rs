//! Data that a VM or a device measured or made, signed by a key of its TPM that signs data and nothing else.
//!
//! A [`SignedData`] is a COSE_Sign1 (RFC 9052 §4.2) over the data or, as a hash envelope (RFC 9995), over
//! their SHA-256 value. Its protected header is the [`Label`]: from which source and stream the data are,
//! their number and time, what they are, and which evidence was taken when they were signed. Beside it
//! travel the [`Credentials`]: the key with the identity key's statement about it, the certificates, the
//! evidence.
//! `signed-data.cddl` describes the format.
//!
//! A [`stream`] is many readings that are signed in batches.
//!
//! The crate is pure: bytes in, verified type out. [`SignedData::verify`] is the only source of
//! [`VerifiedData`], and [`appraise`] of it the only source of a [`DataResult`].

pub mod appraisal;
pub mod cose;
pub mod credentials;
pub mod label;
pub mod refusal;
pub mod source;
pub mod stream;
pub mod text;
pub mod verification;

pub use appraisal::{DataReason, DataResult, Demand, EvidenceResult, appraise};
pub use cose::{
    Content, FormatError, MAX_ATTACHED, MAX_SIGNED_DATA, SignedData, ToBeSigned, hash_of_data,
};
pub use credentials::{Certificates, Credentials};
pub use label::{EvidenceReference, Label, evidence_nonce};
pub use refusal::DataRefusal;
pub use source::Source;
pub use text::LabelText;
pub use verification::{VerifiedData, VerifiedSource};
