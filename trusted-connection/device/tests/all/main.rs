//! The device's program.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![expect(
    clippy::indexing_slicing,
    reason = "what a JSON value lacks is null, which no test expects"
)]

mod verify;
