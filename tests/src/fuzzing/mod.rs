//! Fuzzing: the targets, real inputs to begin with, and a driver without coverage feedback that
//! runs as an ordinary test. `make fuzz` runs the same targets under libFuzzer (`tests/fuzz/`).

mod driver;
mod mutation;
pub mod target;

pub use driver::smoke;
