//! Tests of archives beside OpenSSL as time-stamp authority and as judge.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![expect(clippy::indexing_slicing, reason = "a panic is a failed test")]

mod authority;
mod cose_time_stamps;
mod evidence_records;
mod files;
mod golden;
mod records;
mod time_stamps;
mod token_limits;
