//! The trust anchor as its users see it, over software TPMs and over a scripted one.

mod banks;
mod fake;
mod interposer;
mod nv_indices;
mod nv_memory;
mod patience;
mod policy;
mod prepared_quotes;
mod real_tpm;
mod tap;
mod templates;

use test_support::Swtpm;
use trust_anchor::{AnchorConfig, Tcti};

/// A configuration for this TPM, with the record beside it.
fn config(tpm: &Swtpm) -> AnchorConfig {
    AnchorConfig::new(Tcti::SwtpmPath(tpm.socket()), tpm.path("anchor.json"))
}
