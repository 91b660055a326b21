//! The trust anchor as its users see it.

mod banks;
mod interposer;
mod patience;
mod policy;
mod real_tpm;
