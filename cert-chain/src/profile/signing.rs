//! Signing with a host IK, which may be a restricted key in a TPM.

use std::cell::Cell;

use rcgen::{
    CertificateParams, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm, SigningKey,
};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls_pki_types::CertificateDer;

use super::IssueError;
use super::host_ik::HostCertificate;

/// The longest TBSCertificate a restricted TPM key signs.
///
/// Such a key signs only what the TPM hashed itself (TPM 2.0 Part 3 §20.2, the ticket), and one
/// `TPM2_Hash` takes `TPM_PT_INPUT_BUFFER` bytes, which is 1,024 on every known TPM.
pub const MAX_TBS: usize = 1024;

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

/// Refuses what a restricted TPM key could not sign before the TPM is asked, and checks what
/// it returns: a faulty signature must not end up in a certificate.
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
        let signature = self.signer.sign(tbs)?;
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
