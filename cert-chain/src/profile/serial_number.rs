//! Serial numbers of the certificates that are issued here.

use rcgen::SerialNumber;
use ring::rand::{SecureRandom, SystemRandom};

use super::IssueError;

/// Bytes of a random serial number; RFC 5280 §4.1.2.2 allows 20.
const SERIAL_LENGTH: usize = 16;

/// A random serial number: positive, not zero, and of fixed length.
pub(super) fn serial_number() -> Result<SerialNumber, IssueError> {
    let mut serial = [0; SERIAL_LENGTH];
    SystemRandom::new()
        .fill(&mut serial)
        .map_err(|_| IssueError::Random)?;
    // Top bit clear: positive. Next bit set: same length for every certificate.
    if let Some(first) = serial.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    Ok(SerialNumber::from_slice(&serial))
}
