//! The service's library with the peers that it meets.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod devices;
mod sealed_data;
