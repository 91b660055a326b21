//! Evidence, event logs and results, as a verifier meets them. One binary, so that the tests run
//! beside each other on all processors.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![expect(clippy::indexing_slicing, reason = "a panic is a failed test")]

mod appraisal;
mod banks;
mod bounded_results;
mod connection_binding;
mod data_keys;
mod devices;
mod event_logs;
mod evidence_sets;
mod golden_results;
mod launches;
mod random_boots;
mod real_boot;
mod refusals;
mod refused_identities;
mod results;
mod revocation;
mod scene;
mod spiffe;
mod without_log;
