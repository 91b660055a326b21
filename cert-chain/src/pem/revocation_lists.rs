//! All certificate revocation lists of a PEM file.

use super::scan::{FileError, blocks};

/// Reads every revocation list of a PEM file, into DER. A file that holds anything else is refused, so
/// that no list is passed over.
pub fn revocation_lists(file: &[u8]) -> Result<Vec<Vec<u8>>, FileError> {
    let found = blocks(file)?
        .into_iter()
        .map(|block| match block.label.as_str() {
            // RFC 7468 §6.
            "X509 CRL" => Ok(block.contents.to_vec()),
            _ => Err(FileError::Label {
                line: block.line,
                label: block.label,
                wanted: "a revocation list",
            }),
        });
    found.collect()
}
