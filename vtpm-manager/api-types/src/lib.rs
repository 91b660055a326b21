//! What the manager of a host's vRoTs and its clients have in common: the JSON of the API
//! ([`wire`]), its errors ([`Problem`]), how a vRoT is named in it ([`VrotKey`]), points in time,
//! errors as they are shown to people, and
//! the format of the audit log with its verification ([`audit`]).
//!
//! Nothing here reaches a TPM, a store or a network, so that a client needs none of their
//! libraries.

pub mod audit;
mod problem;
mod timestamp;
mod vrot_key;
pub mod wire;

pub use printable::WithCauses;
pub use problem::{OPENING, PROBLEM_JSON, Problem};
pub use timestamp::Timestamp;
pub use vrot_key::VrotKey;

/// Where the manager listens, and clients look, unless something else is configured.
pub const DEFAULT_SOCKET: &str = "/run/vtpm-manager/api.sock";
