//! The vRoT manager of a host.
//!
//! `vtpm-managerd` owns the physical TPM ([`trust_anchor`]), keeps one virtualized root of trust (vRoT)
//! for each VM ([`vrot`]), spawns and serves their backends ([`backend`]), guards their state
//! ([`guarded_state`], [`keys`]), measures launches ([`launch_measurement`]), vouches for them ([`vrot_manufacture`], [`evidence`]) and answers on a Unix
//! socket ([`api`]), whose client `vtpmctl` is.

pub mod api;
pub mod config;
pub mod daemon;
pub mod fault;
#[cfg(test)]
mod guarded_by_tpm;
pub mod handover;
pub mod host;
pub mod keys;
pub mod manager;
pub mod registers;
mod tenants;
pub mod vrot;

pub use host_audit as audit;
pub use host_evidence as evidence;
pub use rate_limit;
pub use vrot_backends::{self as backend, background};
