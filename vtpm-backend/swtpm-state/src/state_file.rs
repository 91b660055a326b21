//! A state file: a header, and the state in one layer.

use zeroize::Zeroizing;

use crate::header::{Header, LENGTH};
use crate::layer::STATE;
use crate::{FormatError, Key};

/// The state in a file, of either version. With a key it must be encrypted with that key, and
/// without one it must not be encrypted.
pub fn read_state(file: &[u8], key: Option<&Key>) -> Result<Zeroizing<Vec<u8>>, FormatError> {
    let (header, body) = Header::parse(file)?;
    STATE.unwrap(header.version, header.flags, body, LENGTH, key)
}

/// A file with this state, in version 2, encrypted if there is a key.
pub fn write_state(state: &[u8], key: Option<&Key>) -> Result<Zeroizing<Vec<u8>>, FormatError> {
    let (body, flags) = STATE.wrap(state, key)?;
    Header::prepend(flags, &body)
}
