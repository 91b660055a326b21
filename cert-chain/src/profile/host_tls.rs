//! The certificate of the key with which a host's manager authenticates itself to tenants in TLS.
//!
//! No CA; digitalSignature; extended key usage serverAuth and no other; one name, the host's own. The host
//! IK signs it, for a key that lives in the manager's memory. It carries no claims: that the host is in
//! an acceptable state, evidence says. A vRoT's TLS certificate ([`super::tls`]) has other names and one
//! purpose more: neither is taken for the other.

use rcgen::{DnType, ExtendedKeyUsagePurpose, KeyUsagePurpose, PublicKeyData, SanType, SigningKey};
use rustls_pki_types::CertificateDer;

use super::host_ik::HostCertificate;
use super::signing::{params_under_host, sign_under_host};
use super::{IssueError, Validity};

/// Issues the certificate of a host's TLS key under the host's certificate, whose end it does not
/// outlive. `signer` is the host IK.
pub fn issue_host_tls_certificate(
    key: &impl PublicKeyData,
    validity: Validity,
    signer: &impl SigningKey,
    host_certificate: &[u8],
) -> Result<CertificateDer<'static>, IssueError> {
    let host = HostCertificate::read(host_certificate).map_err(IssueError::HostCertificate)?;
    let name = host.host().to_string();
    let mut params = params_under_host(&validity, &host)?;
    (params.distinguished_name).push(DnType::CommonName, name.as_str());
    let dns = name.as_str().try_into().map_err(IssueError::Signing)?;
    params.subject_alt_names = vec![SanType::DnsName(dns)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    sign_under_host(&params, key, signer, &host)
}
