//! The guarded state as its user sees it: on disks and with registers that fail at every step, and
//! against somebody who can write to the disk.

mod commits;
mod faults;
mod guarded_store;
mod host;
mod journal;
mod marked_log;
mod random;
mod recoveries;
mod refusals;
mod simulated_disk;
mod simulation;
mod starts;
