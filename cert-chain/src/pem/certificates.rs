//! All certificates of a file.

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::scan::{Block, FileError, Item, Place, items};

/// A certificate, and where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundCertificate {
    /// Where it begins.
    pub place: Place,
    /// The certificate.
    pub der: CertificateDer<'static>,
}

/// Reads every certificate of a file: PEM under the labels that certificates have had, DER, or
/// both. A file that holds anything else is refused, so that no certificate is passed over.
pub fn certificates(file: &[u8]) -> Result<Vec<FoundCertificate>, FileError> {
    let found = items(file)?.into_iter().map(|item| match item {
        Item::Pem(block) => of_block(&block),
        Item::Der {
            offset,
            certificate,
        } => Ok(FoundCertificate {
            place: Place::Byte(offset),
            der: certificate.into(),
        }),
    });
    found.collect()
}

fn of_block(block: &Block) -> Result<FoundCertificate, FileError> {
    let der = match block.label.as_str() {
        // RFC 7468 §5: the older label of the same thing.
        "CERTIFICATE" | "X509 CERTIFICATE" => block.contents.as_slice(),
        "TRUSTED CERTIFICATE" => without_settings(block)?,
        _ => {
            return Err(FileError::Label {
                line: block.line,
                label: block.label.clone(),
                wanted: "a certificate",
            });
        }
    };
    Ok(FoundCertificate {
        place: Place::Line(block.line),
        der: der.to_vec().into(),
    })
}

/// OpenSSL writes an X509_CERT_AUX behind the certificate: a SEQUENCE of purposes to trust it for,
/// of purposes to reject it for, and of a name and an identifier, all of them optional. The first
/// two would have to be applied.
fn without_settings(block: &Block) -> Result<&[u8], FileError> {
    const SEQUENCE: u8 = 0x30;
    const REJECTED: u8 = 0xa0;
    let whole = block.contents.as_slice();
    let (behind, certificate) = X509Certificate::from_der(whole).map_err(|_| FileError::Body {
        line: block.line,
        label: block.label.clone(),
    })?;
    let first_setting = match behind {
        [] => None,
        [SEQUENCE, 0..=0x7f, first, ..] | [SEQUENCE, 0x81, _, first, ..] => Some(*first),
        [SEQUENCE, 0] => None,
        _ => Some(SEQUENCE),
    };
    if matches!(first_setting, Some(SEQUENCE | REJECTED)) {
        return Err(FileError::TrustSettings { line: block.line });
    }
    Ok(certificate.as_raw())
}
