//! The certificate of a vRoT's identity key (vIK).
//!
//! No CA; digitalSignature; extended key usage `tcg-kp-AIKCertificate`; names
//! `urn:uuid:<vm>` and `<vrot>.<host>.<domain>`; [`VikClaims`]. It lives for a day, so that an
//! identity ends soon after its host may no longer renew it.

use std::time::Duration;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyUsagePurpose, SanType};
use rustls_pki_types::UnixTime;
use x509_parser::extensions::GeneralName;

use super::fields::{Fields, KeyPurposes, ProfileError};
use super::host_ik::HostCertificate;
use super::signing::VrotCertificateSpec;
use super::{IssueError, Validity};
use crate::attestation_key::AttestationKey;
use crate::claims::VikClaims;
use crate::digest::Digest32;
use crate::identifiers::{Generation, HostName, Tenant, VmId, VrotId};
use crate::public_area::PublicArea;

/// What a host certifies about a vRoT.
#[derive(Clone, Debug)]
pub struct VikSpec {
    /// The VM the vRoT belongs to.
    pub vm: VmId,
    /// The vRoT.
    pub vrot: VrotId,
    /// Whose VM it is.
    pub tenant: Tenant,
    /// Which of the lineage's identities this is.
    pub generation: Generation,
    /// Digest of the manager program.
    pub manager: Digest32,
    /// Digest of the backend program.
    pub backend: Digest32,
    /// The vRoT's identity key.
    pub vik: AttestationKey,
    /// When the certificate is valid; cut at the end of the host's own certificate.
    pub validity: Validity,
}

/// How long a vIK certificate is meant to live; it is renewed at half of that.
pub const VIK_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// `tcg-kp-AIKCertificate` (TCG Credential Profiles).
pub(super) const AIK_PURPOSE: [u64; 5] = [2, 23, 133, 8, 3];
/// It alone, as certificates of attestation keys have it.
pub(super) const AIK_PURPOSES: KeyPurposes = KeyPurposes {
    exactly: &["2.23.133.8.3"],
    shown: "tcg-kp-AIKCertificate (2.23.133.8.3)",
};
/// Its contents in DER, as the path validation library wants it.
pub(crate) const AIK_PURPOSE_DER: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x03];

impl VrotCertificateSpec for VikSpec {
    fn key(&self) -> &PublicArea {
        self.vik.public_area()
    }

    fn validity(&self) -> &Validity {
        &self.validity
    }

    fn describe(
        &self,
        params: &mut CertificateParams,
        host: &HostCertificate,
    ) -> Result<(), IssueError> {
        let claims = VikClaims {
            vm: self.vm,
            vrot: self.vrot,
            tenant: self.tenant.clone(),
            generation: self.generation,
            manager: self.manager,
            backend: self.backend,
            vik: self.vik.name(),
        };
        vrot_names(params, &self.vm, &self.vrot, host)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(AIK_PURPOSE.to_vec())];
        params.custom_extensions = vec![claims.extension()];
        Ok(())
    }
}

/// The names by which certificates of a vRoT's keys call it.
pub(super) fn vrot_names(
    params: &mut CertificateParams,
    vm: &VmId,
    vrot: &VrotId,
    host: &HostCertificate,
) -> Result<(), IssueError> {
    params
        .distinguished_name
        .push(DnType::CommonName, common_name(vrot));
    params.subject_alt_names = vec![
        SanType::URI(ascii(vm_uri(vm))?),
        SanType::DnsName(ascii(host.host().vrot_name(vrot))?),
    ];
    Ok(())
}

/// A vIK's certificate, read and found to follow the profile for a vRoT on a given host. Its
/// signature is not checked here; [`crate::VikChain::verify`] does that.
#[derive(Clone, Debug)]
pub struct VikCertificate {
    pub(crate) claims: VikClaims,
    pub(crate) subject_public_key_info: Vec<u8>,
    pub(crate) not_before: UnixTime,
    pub(crate) not_after: UnixTime,
}

impl VikCertificate {
    /// Reads the certificate and compares it with the profile.
    pub fn read(der: &[u8], host: &HostName) -> Result<Self, ProfileError> {
        let fields = Fields::read(der)?;
        fields.check_extensions_parse()?;
        fields.check_end_entity("vIK (no CA)", AIK_PURPOSES)?;
        let claims = VikClaims::from_extension(fields.claims()?).map_err(ProfileError::Claims)?;
        check_names(&fields, &claims, host)?;
        Ok(Self {
            claims,
            subject_public_key_info: fields.subject_public_key_info().to_vec(),
            not_before: fields.not_before(),
            not_after: fields.not_after(),
        })
    }

    /// What the host claims about the vRoT.
    pub fn claims(&self) -> &VikClaims {
        &self.claims
    }

    /// The VM's name, as it stands in the certificate.
    pub fn uri(&self) -> String {
        vm_uri(&self.claims.vm)
    }

    /// Last second of its validity.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }
}

/// Names and claims are two statements of the same facts: they must agree.
fn check_names(
    fields: &Fields<'_>,
    claims: &VikClaims,
    host: &HostName,
) -> Result<(), ProfileError> {
    let [GeneralName::URI(uri), GeneralName::DNSName(dns)] = fields.alternative_names()? else {
        return Err(ProfileError::Names {
            field: "subject alternative name",
        });
    };
    if *uri != vm_uri(&claims.vm) {
        return Err(ProfileError::ClaimsContradict { field: "VM name" });
    }
    if *dns != host.vrot_name(&claims.vrot) {
        return Err(ProfileError::ClaimsContradict { field: "vRoT name" });
    }
    if fields.only_common_name() != Some(&common_name(&claims.vrot)) {
        return Err(ProfileError::ClaimsContradict { field: "subject" });
    }
    Ok(())
}

/// RFC 9562 §4: a UUID as URN.
pub(super) fn vm_uri(vm: &VmId) -> String {
    format!("urn:uuid:{vm}")
}

pub(super) fn common_name(vrot: &VrotId) -> String {
    format!("vRoT {vrot}")
}

fn ascii(text: String) -> Result<rcgen::string::Ia5String, IssueError> {
    text.try_into().map_err(IssueError::Signing)
}
