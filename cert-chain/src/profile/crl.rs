//! The list of the certificates that an issuer has revoked.
//!
//! Version 2, complete, with number and authority key identifier; dated back like certificates, for
//! verifiers whose clock is slow.

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use rustls_pki_types::UnixTime;

use super::fields::Fields;
use super::issuer::Issuer;
use super::validity::date;
use super::{IssueError, Validity};
use crate::crl::{Crl, RevocationReason};
use crate::serial::CertificateSerial;

/// What a list is to say.
#[derive(Clone, Debug)]
pub struct CrlSpec {
    /// Higher than the number of every list before it.
    pub number: u64,
    /// From this to next update; cut at the end of the issuer's own certificate.
    pub validity: Validity,
    /// The revoked certificates.
    pub revoked: Vec<RevokedCertificate>,
}

/// A certificate that is revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevokedCertificate {
    /// Its number.
    pub serial: CertificateSerial,
    /// Since when.
    pub since: UnixTime,
    /// Why.
    pub reason: RevocationReason,
}

impl Issuer {
    /// Makes a revocation list.
    pub fn sign_crl(&self, spec: &CrlSpec) -> Result<Crl, IssueError> {
        let root = Fields::read(self.certificate()).map_err(IssueError::HostCertificate)?;
        let validity = spec.validity.within(root.not_after())?;
        let (this_update, next_update) = validity.dates();
        let params = CertificateRevocationListParams {
            this_update,
            next_update,
            crl_number: SerialNumber::from(spec.number),
            issuing_distribution_point: None,
            revoked_certs: (spec.revoked.iter())
                .map(RevokedCertificate::params)
                .collect::<Result<_, _>>()?,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params
            .signed_by(&self.signer()?)
            .map_err(IssueError::Signing)?;
        Crl::read(list.der()).map_err(IssueError::Crl)
    }
}

impl RevokedCertificate {
    fn params(&self) -> Result<RevokedCertParams, IssueError> {
        Ok(RevokedCertParams {
            serial_number: SerialNumber::from_slice(self.serial.as_bytes()),
            revocation_time: date(self.since.as_secs())?,
            reason_code: Some(self.reason.code()),
            invalidity_date: None,
        })
    }
}

impl RevocationReason {
    fn code(self) -> rcgen::RevocationReason {
        use rcgen::RevocationReason as R;
        match self {
            Self::Unspecified => R::Unspecified,
            Self::KeyCompromise => R::KeyCompromise,
            Self::CaCompromise => R::CaCompromise,
            Self::AffiliationChanged => R::AffiliationChanged,
            Self::Superseded => R::Superseded,
            Self::CessationOfOperation => R::CessationOfOperation,
            Self::CertificateHold => R::CertificateHold,
            Self::RemoveFromCrl => R::RemoveFromCrl,
            Self::PrivilegeWithdrawn => R::PrivilegeWithdrawn,
            Self::AaCompromise => R::AaCompromise,
        }
    }
}
