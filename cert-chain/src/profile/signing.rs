//! Signing with a host IK, which may be a restricted key in a TPM.

use std::cell::Cell;

use p256::ecdsa::Signature;
use rcgen::{
    CertificateParams, DistinguishedName, IsCa, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SignatureAlgorithm, SigningKey,
};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls_pki_types::CertificateDer;

use super::host_ik::HostCertificate;
use super::serial_number::serial_number;
use super::{IssueError, Validity};
use crate::public_area::PublicArea;

/// The longest TBSCertificate a restricted TPM key signs.
///
/// Such a key signs only what the TPM hashed itself (TPM 2.0 Part 3 §20.2, the ticket), and one
/// `TPM2_Hash` takes `TPM_PT_INPUT_BUFFER` bytes, which is 1,024 on every known TPM.
pub const MAX_TBS: usize = 1024;

/// An ECDSA signature over P-256 in DER has 70 to 72 bytes, as the top bits of its two scalars
/// happen to be, and shorter ones are rare. Those in certificates have this length, so that a
/// place of fixed size can be reserved for a certificate before it is signed: see `OneHash`. One in
/// 250 cannot have it.
pub const SIGNATURE_LENGTH: usize = 71;

/// What a host certifies about a key of a vRoT.
pub trait VrotCertificateSpec {
    /// The key.
    fn key(&self) -> &PublicArea;

    /// When the certificate is valid; cut at the end of the host's own certificate.
    fn validity(&self) -> &Validity;

    /// Says what certificates of this kind say, beyond what all under a host do.
    fn describe(
        &self,
        params: &mut CertificateParams,
        host: &HostCertificate,
    ) -> Result<(), IssueError>;
}

/// Issues a certificate under the host's certificate. `signer` is the host IK.
pub fn issue_vrot_certificate(
    spec: &impl VrotCertificateSpec,
    signer: &impl SigningKey,
    host_certificate: &[u8],
) -> Result<CertificateDer<'static>, IssueError> {
    let (params, host) = params_of(spec, host_certificate)?;
    sign_under_host(&params, spec.key(), signer, &host)
}

/// How many bytes such a certificate has, unless its signature has an unusual length: not
/// [`SIGNATURE_LENGTH`] bytes.
pub fn vrot_certificate_length(
    spec: &impl VrotCertificateSpec,
    host_certificate: &[u8],
) -> Result<usize, IssueError> {
    let (params, host) = params_of(spec, host_certificate)?;
    let issuer =
        rcgen::Issuer::from_ca_cert_der(host.der(), &NoSignature).map_err(IssueError::Signing)?;
    let certificate = params.signed_by(spec.key(), &issuer);
    Ok(certificate.map_err(IssueError::Signing)?.der().len())
}

fn params_of(
    spec: &impl VrotCertificateSpec,
    host_certificate: &[u8],
) -> Result<(CertificateParams, HostCertificate), IssueError> {
    let host = HostCertificate::read(host_certificate).map_err(IssueError::HostCertificate)?;
    let mut params = params_under_host(spec.validity(), &host)?;
    spec.describe(&mut params, &host)?;
    Ok((params, host))
}

/// What all certificates under a host say: no CA, and no longer than the host's own.
pub(super) fn params_under_host(
    validity: &Validity,
    host: &HostCertificate,
) -> Result<CertificateParams, IssueError> {
    let mut params = CertificateParams::default();
    params.serial_number = Some(serial_number()?);
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    validity.within(host.not_after())?.apply(&mut params);
    Ok(params)
}

/// Issues a certificate for `subject` under the host's certificate.
pub(super) fn sign_under_host(
    params: &CertificateParams,
    subject: &impl PublicKeyData,
    signer: &impl SigningKey,
    host: &HostCertificate,
) -> Result<CertificateDer<'static>, IssueError> {
    if signer.algorithm() != &PKCS_ECDSA_P256_SHA256
        || signer.subject_public_key_info() != host.subject_public_key_info()
    {
        return Err(IssueError::SignerMismatch);
    }
    let signer = OneHash {
        signer,
        refusal: Cell::new(None),
    };
    let issuer =
        rcgen::Issuer::from_ca_cert_der(host.der(), &signer).map_err(IssueError::Signing)?;
    match params.signed_by(subject, &issuer) {
        Ok(certificate) => Ok(certificate.into()),
        Err(error) => Err(signer.refusal.take().unwrap_or(IssueError::Signing(error))),
    }
}

/// A signature is valid for its message if it is with its scalar s negated (SEC 1 §4.1.4): the one of
/// both that has the usual length.
fn of_usual_length(signature: Vec<u8>) -> Vec<u8> {
    let negated = || {
        let (r, s) = Signature::from_der(&signature).ok()?.split_scalars();
        let negated = Signature::from_scalars(r, -s).ok()?.to_der();
        (negated.as_bytes().len() == SIGNATURE_LENGTH).then(|| negated.as_bytes().to_vec())
    };
    if signature.len() == SIGNATURE_LENGTH {
        return signature;
    }
    negated().unwrap_or(signature)
}

/// Takes the place of the host's key where only lengths matter.
struct NoSignature;

impl PublicKeyData for NoSignature {
    fn der_bytes(&self) -> &[u8] {
        // The length of an uncompressed point.
        &[0; 65]
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for NoSignature {
    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(vec![0; SIGNATURE_LENGTH])
    }
}

/// Refuses what a restricted TPM key could not sign before the TPM is asked, gives the signature
/// its usual length, and checks it: a faulty signature must not end up in a certificate.
struct OneHash<'a, S> {
    signer: &'a S,
    refusal: Cell<Option<IssueError>>,
}

impl<S: SigningKey> PublicKeyData for OneHash<'_, S> {
    fn der_bytes(&self) -> &[u8] {
        self.signer.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.signer.algorithm()
    }
}

impl<S: SigningKey> SigningKey for OneHash<'_, S> {
    fn sign(&self, tbs: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        if tbs.len() > MAX_TBS {
            self.refusal
                .set(Some(IssueError::TbsTooLong { length: tbs.len() }));
            return Err(rcgen::Error::RemoteKeyError);
        }
        let signature = of_usual_length(self.signer.sign(tbs)?);
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, self.signer.der_bytes())
            .verify(tbs, &signature)
            .map_err(|_| {
                self.refusal.set(Some(IssueError::SignatureInvalid));
                rcgen::Error::RemoteKeyError
            })?;
        Ok(signature)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn signatures_of_certificates_have_one_length_and_are_valid() {
        let key = rcgen::KeyPair::generate().unwrap();
        let signer = OneHash {
            signer: &key,
            refusal: Cell::new(None),
        };
        let lengths = (0..500_u32).map(|number| signer.sign(&number.to_be_bytes()).unwrap().len());
        // Two in 500 are expected to have another one.
        let others = lengths.filter(|length| *length != SIGNATURE_LENGTH).count();
        assert!(others < 20, "{others}");
    }

    #[test]
    fn what_one_tpm2_hash_cannot_take_never_reaches_the_signer() {
        let key = rcgen::KeyPair::generate().unwrap();
        let signer = OneHash {
            signer: &key,
            refusal: Cell::new(None),
        };
        assert!(signer.sign(&[0x30; MAX_TBS]).is_ok());
        assert!(signer.sign(&[0x30; MAX_TBS + 1]).is_err());
        assert!(matches!(
            signer.refusal.take(),
            Some(IssueError::TbsTooLong { length: 1025 })
        ));
    }
}
