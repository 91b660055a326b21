//! What the programs of this project write: their logs ([`log`]), and what a command prints
//! ([`console`]).
//!
//! A log must not change what is served. A program puts lines into a bounded queue and goes on; a
//! reader that stalls, a disk that is full or a pipe without a reader costs lines, which are
//! counted. Of each kind of line only so many are written in a time, so that a peer that can cause
//! a line cannot fill the disk with it.

pub mod console;
pub mod log;
