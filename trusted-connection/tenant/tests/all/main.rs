//! The client against hosts that say what a test has them say: honest ones, and ones that lie.
//! (`vtpm-manager` tests it against managers.)

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "what a JSON value lacks is null, which no test expects; a panic is a failed test"
)]

mod attested;
mod hostile;
mod server;
mod settings;
