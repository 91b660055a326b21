//! Programs that take the place of swtpm's, for callers that know only those: [`swtpm`] serves a TPM to a
//! VMM, [`setup`] makes its state with keys and certificates (`swtpm_setup`), and [`ioctl`] speaks to one
//! that runs (`swtpm_ioctl`).
//!
//! Command lines, output that is read by programs, exit status and files are those of swtpm 0.10.2, for
//! TPM 2.0. What is not offered is refused, and says so; a program that announces what it can does not
//! announce it.

mod anchored;
mod comma;
mod descriptors;
mod identity;
pub mod ioctl;
mod keys;
mod outputs;
pub mod setup;
pub mod swtpm;

/// The version of swtpm whose command lines these programs take.
pub const SWTPM_VERSION: &str = "0.10.2";

/// What `--version` says of a program that swtpm describes like this.
pub fn version(description: &str) -> String {
    let own = env!("CARGO_PKG_VERSION");
    format!("{description} version {SWTPM_VERSION} (vRoT {own})\n")
}
