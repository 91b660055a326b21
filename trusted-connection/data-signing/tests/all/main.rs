//! Streams that are signed: readings from bytes, batches that fill while one is signed, files that go on.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a failed unwrap is a failed test"
)]

mod framing;
mod output;
mod pipeline;
mod scene;
