//! The certificate of the key with which a vRoT's service authenticates itself in TLS.
//!
//! No CA; digitalSignature; extended key usages serverAuth and clientAuth; the names of the vIK's
//! certificate, `urn:uuid:<vm>` and `<vrot>.<host>.<domain>`. It carries no claims: those are the
//! vIK's, and evidence joins the two. Tools that know nothing of vRoTs accept it below the issuer's
//! root.

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SigningKey};
use rustls_pki_types::CertificateDer;

use super::host_ik::HostCertificate;
use super::serial_number::serial_number;
use super::signing::sign_under_host;
use super::vik::vrot_names;
use super::{IssueError, Validity};
use crate::identifiers::{VmId, VrotId};
use crate::tls_key::TlsKey;

/// What a host certifies about a vRoT's TLS key.
#[derive(Clone, Debug)]
pub struct TlsSpec {
    /// The VM the vRoT belongs to.
    pub vm: VmId,
    /// The vRoT.
    pub vrot: VrotId,
    /// The key.
    pub key: TlsKey,
    /// When the certificate is valid; cut at the end of the host's own certificate.
    pub validity: Validity,
}

/// Issues the certificate of a TLS key under the host's certificate. `signer` is the host IK.
pub fn issue_tls_certificate(
    spec: &TlsSpec,
    signer: &impl SigningKey,
    host_certificate: &[u8],
) -> Result<CertificateDer<'static>, IssueError> {
    let host = HostCertificate::read(host_certificate).map_err(IssueError::HostCertificate)?;
    let mut params = CertificateParams::default();
    params.serial_number = Some(serial_number()?);
    vrot_names(&mut params, &spec.vm, &spec.vrot, &host)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    spec.validity.within(host.not_after())?.apply(&mut params);
    sign_under_host(&params, spec.key.public_area(), signer, &host)
}
