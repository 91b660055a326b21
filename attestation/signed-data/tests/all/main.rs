//! Signed data: their format, another implementation as judge, and what is refused.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a failed unwrap is a failed test"
)]

mod alterations;
mod appraisal;
mod devices;
mod format;
mod golden;
mod purposes;
mod pycose;
mod refusals;
mod scene;
mod stream;
mod stream_golden;
mod stream_order;
