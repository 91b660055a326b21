//! The certificate of the key with which a vRoT's service authenticates itself in TLS.
//!
//! No CA; digitalSignature; extended key usages serverAuth and clientAuth; the names of the vIK's
//! certificate, `urn:uuid:<vm>` and `<vrot>.<host>.<domain>`. It carries no claims: those are the
//! vIK's, and evidence joins the two. Tools that know nothing of vRoTs accept it below the issuer's
//! root.

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyUsagePurpose};
use rustls_pki_types::UnixTime;
use x509_parser::extensions::GeneralName;

use super::fields::{Fields, KeyPurposes, ProfileError};
use super::host_ik::HostCertificate;
use super::signing::VrotCertificateSpec;
use super::vik::{common_name, vm_uri, vrot_names};
use super::{IssueError, Validity};
use crate::identifiers::{HostName, VmId, VrotId};
use crate::public_area::PublicArea;
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

impl VrotCertificateSpec for TlsSpec {
    fn key(&self) -> &PublicArea {
        self.key.public_area()
    }

    fn validity(&self) -> &Validity {
        &self.validity
    }

    fn describe(
        &self,
        params: &mut CertificateParams,
        host: &HostCertificate,
    ) -> Result<(), IssueError> {
        vrot_names(params, &self.vm, &self.vrot, host)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        Ok(())
    }
}

const TLS_PURPOSES: KeyPurposes = KeyPurposes {
    exactly: &["serverAuth", "clientAuth"],
    shown: "serverAuth and clientAuth",
};

/// A TLS key's certificate, read and found to follow the profile for a vRoT on a given host. Its
/// signature is not checked here.
#[derive(Clone, Debug)]
pub struct TlsCertificate {
    vm: VmId,
    vrot: VrotId,
    subject_public_key_info: Vec<u8>,
    not_before: UnixTime,
    not_after: UnixTime,
}

impl TlsCertificate {
    /// Reads the certificate and compares it with the profile.
    pub fn read(der: &[u8], host: &HostName) -> Result<Self, ProfileError> {
        let fields = Fields::read(der)?;
        fields.check_extensions_parse()?;
        fields.check_end_entity("vRoT's TLS key (no CA)", TLS_PURPOSES)?;
        let (vm, vrot) = read_names(&fields, host)?;
        Ok(Self {
            vm,
            vrot,
            subject_public_key_info: fields.subject_public_key_info().to_vec(),
            not_before: fields.not_before(),
            not_after: fields.not_after(),
        })
    }

    /// The VM that it names.
    pub fn vm(&self) -> VmId {
        self.vm
    }

    /// The VM's name, as it stands in the certificate.
    pub fn uri(&self) -> String {
        vm_uri(&self.vm)
    }

    /// The vRoT that it names.
    pub fn vrot(&self) -> VrotId {
        self.vrot
    }

    /// The key as SubjectPublicKeyInfo in DER.
    pub fn subject_public_key_info(&self) -> &[u8] {
        &self.subject_public_key_info
    }

    /// First second of its validity.
    pub fn not_before(&self) -> UnixTime {
        self.not_before
    }

    /// Last second of its validity.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }
}

/// VM and vRoT are what stands in the names, in the one spelling that we write.
fn read_names(fields: &Fields<'_>, host: &HostName) -> Result<(VmId, VrotId), ProfileError> {
    const NAMES: ProfileError = ProfileError::Names {
        field: "subject alternative name",
    };
    let [GeneralName::URI(uri), GeneralName::DNSName(dns)] = fields.alternative_names()? else {
        return Err(NAMES);
    };
    let vm: VmId = uri
        .strip_prefix("urn:uuid:")
        .and_then(|id| id.parse().ok())
        .filter(|vm| *uri == vm_uri(vm))
        .ok_or(NAMES)?;
    let vrot: VrotId = dns
        .split_once('.')
        .and_then(|(id, _)| id.parse().ok())
        .filter(|vrot| *dns == host.vrot_name(vrot))
        .ok_or(NAMES)?;
    if fields.only_common_name() != Some(&common_name(&vrot)) {
        return Err(ProfileError::Names { field: "subject" });
    }
    Ok((vm, vrot))
}
