//! PEM (RFC 7468): what this crate hands out, and files of certificates and keys as people have
//! them.

mod certificates;
mod revocation_lists;
mod scan;

pub use certificates::{FoundCertificate, certificates};
pub use revocation_lists::revocation_lists;
pub use scan::{Block, FileError, Place, blocks, only_block};

use pem::{EncodeConfig, LineEnding, Pem};

/// A certificate in DER as a PEM block.
pub fn encode_certificate(der: &[u8]) -> String {
    encode("CERTIFICATE", der)
}

/// A revocation list in DER as a PEM block.
pub fn encode_crl(der: &[u8]) -> String {
    encode("X509 CRL", der)
}

/// A SubjectPublicKeyInfo in DER as a PEM block.
pub fn encode_public_key(der: &[u8]) -> String {
    encode("PUBLIC KEY", der)
}

fn encode(label: &str, der: &[u8]) -> String {
    pem::encode_config(
        &Pem::new(label, der),
        EncodeConfig::new().set_line_ending(LineEnding::LF),
    )
}
