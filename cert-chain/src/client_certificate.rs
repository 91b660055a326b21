//! Validation of a TLS client certificate whose key is in no TPM, with the outcome as a type.

use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::extensions::GeneralName;

use crate::path::{ChainError, ChainMember, root_of};
use crate::profile::Fields;
use crate::signature_algorithms;
use crate::trust_anchors::TrustAnchors;

/// A client's certificate below a certification authority of somebody's choice.
///
/// It establishes whom that authority named, and that it did so for TLS clients. Where the key is, and
/// what runs beside it, nothing establishes.
#[derive(Clone, Debug)]
pub struct VerifiedClientCertificate {
    names: Vec<String>,
    issuer: String,
    not_after: UnixTime,
}

impl VerifiedClientCertificate {
    /// Validates the chain that a client showed, its own certificate first, as of `at`.
    pub fn verify<C: AsRef<[u8]>>(
        chain: &[C],
        anchors: &TrustAnchors,
        at: UnixTime,
    ) -> Result<Self, ChainError> {
        let member = ChainMember::Client;
        let chain: Vec<_> = chain
            .iter()
            .map(|certificate| CertificateDer::from(certificate.as_ref()))
            .collect();
        let (own, intermediates) = chain
            .split_first()
            .ok_or(ChainError::CertificateCount { found: 0 })?;
        let leaf = EndEntityCert::try_from(own)
            .map_err(|source| ChainError::Malformed { member, source })?;
        let valid = anchors.valid_at(at);
        let path = leaf
            .verify_for_usage(
                signature_algorithms::ALL,
                &valid,
                intermediates,
                at,
                KeyUsage::client_auth(),
                None,
                None,
            )
            .map_err(ChainError::from_validation)?;
        let root = root_of(anchors, &path)?;
        let fields = Fields::read(own).map_err(|source| ChainError::Profile { member, source })?;
        let names = fields
            .alternative_names()
            .map_err(|source| ChainError::Profile { member, source })?
            .iter()
            .filter_map(|name| match name {
                GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
                _ => None,
            })
            .collect();
        Ok(Self {
            names,
            issuer: fields.issuer_text(),
            not_after: fields.not_after().min(root.validity.not_after),
        })
    }

    /// Its alternative names that are DNS names or URIs. The subject's common name does not count (RFC 6125 §2.3).
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The distinguished name of whoever issued it, for people to read.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Until when certificate and root are valid.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }
}
