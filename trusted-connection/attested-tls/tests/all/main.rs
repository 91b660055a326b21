//! Attested connections between two ends of this crate, and beside peers that do as they like.

#![expect(clippy::indexing_slicing, reason = "a panic is a failed test")]

mod adversary;
mod attestation_in_force;
mod data;
mod handshakes_at_a_time;
mod hostile_peers;
mod odd_peers;
mod refusals;
mod support;
