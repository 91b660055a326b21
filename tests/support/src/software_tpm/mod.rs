//! swtpm in the role of a host's physical TPM, with certificates from a TPM maker.

mod made;
mod maker;
mod running;

pub use made::MadeTpm;
pub use maker::TpmMaker;
pub use running::{SoftwareTpm, emulator_command};
