//! What callers of swtpm do, as they do it, with swtpm of two releases and with the programs that take its
//! place: exit status, output that programs read, files with their permissions, answers.
#![expect(
    clippy::indexing_slicing,
    reason = "a test that indexes out of bounds has failed"
)]

mod callers;
mod control;
mod hostile;
mod migration;
mod peers;
mod vmms;
