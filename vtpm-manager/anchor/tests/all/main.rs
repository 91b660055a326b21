//! The trust anchor as its users see it.

mod banks;
mod interposer;
mod nv_indices;
mod nv_memory;
mod patience;
mod policy;
mod real_tpm;
mod templates;
