//! Signing data with a TPM's key for data, whatever TPM it is: a VM's vRoT or a device's own TPM.
//!
//! A [`DataSigner`] is the TPM with its key and what proves it. [`sign`] is the command that both programs
//! have: it reads the data, has the TPM [count](number), takes evidence, signs, and writes the file. Of
//! a [`stream`], it signs readings batch by batch.

mod command;
pub mod number;
pub mod options;
mod signer;
pub mod stream;

pub use command::{Signed, sign};
pub use options::SignOptions;
pub use signer::{BoxedError, DataSigner};
