//! Certificates between an EK certificate and its maker's root that stand in the TPM itself.
//!
//! Some makers certify each device's endorsement key by an authority of that device or of a small
//! series, which is published nowhere (TCG EK Credential Profile 2.5 §2.2.1.5.2; Intel calls it
//! on-die certification). The host sends what its TPM has, and it serves to find a path only.

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

/// Intermediate certificates, which nobody has verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EkChain(Vec<CertificateDer<'static>>);

/// Why the bytes are no such chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EkChainError {
    /// Neither a certificate nor fill.
    #[error("at byte {offset} of the EK certificate chain is no certificate")]
    Malformed {
        /// Where.
        offset: usize,
    },
    /// More bytes than the NV memory of a TPM has for it.
    #[error("an EK certificate chain of {length} bytes is too long (at most {MAX_EK_CHAIN})")]
    TooLong {
        /// How many.
        length: usize,
    },
    /// More certificates than a path may have.
    #[error("an EK certificate chain has at most {MAX_CERTIFICATES} certificates")]
    TooMany,
}

/// Intel's chains have four certificates and under 4 KiB.
pub const MAX_EK_CHAIN: usize = 12 * 1024;
/// Path validation follows no more than six.
const MAX_CERTIFICATES: usize = 8;

impl EkChain {
    /// Reads certificates that stand one after the other, perhaps with fill behind the last one.
    pub fn read(concatenated: &[u8]) -> Result<Self, EkChainError> {
        if concatenated.len() > MAX_EK_CHAIN {
            return Err(EkChainError::TooLong {
                length: concatenated.len(),
            });
        }
        let mut certificates = Vec::new();
        let mut rest = concatenated;
        while rest.iter().any(|byte| !matches!(byte, 0x00 | 0xff)) {
            if certificates.len() == MAX_CERTIFICATES {
                return Err(EkChainError::TooMany);
            }
            let malformed = EkChainError::Malformed {
                offset: concatenated.len() - rest.len(),
            };
            let (behind, certificate) = X509Certificate::from_der(rest).map_err(|_| malformed)?;
            certificates.push(certificate.as_raw().to_vec().into());
            rest = behind;
        }
        Ok(Self(certificates))
    }

    pub(crate) fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.0
    }
}
