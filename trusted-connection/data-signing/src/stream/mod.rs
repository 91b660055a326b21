//! Readings that are signed batch by batch ([`signed_data::stream`]).
//!
//! A thread takes readings in ([`framing`]) and fills a batch ([`collector`]), while the one before is
//! signed ([`signing`]) and written ([`output`]). So a TPM that takes long makes batches larger, and not the
//! stream slower; only when a batch is as large as one may be does whoever writes readings have to wait.

pub mod collector;
pub mod framing;
pub mod options;
pub mod output;
pub mod signing;
mod stop;

pub use options::{Framing, StreamOptions};
pub use signing::{Job, StreamError, Summary, sign_stream};
