//! The device's program and library, against services whose TPMs are keys in software.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![expect(
    clippy::indexing_slicing,
    reason = "what a JSON value lacks is null, which no test expects"
)]

mod adversary;
mod archives;
mod by_hand;
mod connections;
mod proxy;
mod rounds;
mod streams;
mod support;
mod verify;
