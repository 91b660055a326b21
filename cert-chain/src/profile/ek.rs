//! The certificate of a vRoT's endorsement key (TCG EK Credential Profile 2.5, §3.2).
//!
//! Empty subject; critical subject alternative name with the TPM's manufacturer, model and
//! version, and with the vRoT's DNS name, by which the host stays confined to its own names;
//! `tcg-kp-EKCertificate`; the TPM specification as subject directory attribute.

use rcgen::{CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, KeyUsagePurpose};
use yasna::models::ObjectIdentifier;
use yasna::{DERWriter, Tag};

use super::host_ik::HostCertificate;
use super::signing::VrotCertificateSpec;
use super::{IssueError, Validity};
use crate::endorsement_key::EndorsementKey;
use crate::identifiers::VrotId;
use crate::public_area::{KeyParameters, PublicArea};

/// What a host certifies about an endorsement key of a vRoT.
#[derive(Clone, Debug)]
pub struct EkSpec {
    /// The vRoT.
    pub vrot: VrotId,
    /// Its endorsement key.
    pub ek: EndorsementKey,
    /// What kind of TPM the vRoT is.
    pub device: TpmDevice,
    /// When the certificate is valid; cut at the end of the host's own certificate.
    pub validity: Validity,
}

/// The make of a vRoT's TPM, as the EK certificate states it; its model is always `vRoT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TpmDevice {
    /// `TPM_PT_MANUFACTURER`, e.g. `0x49424d00` for "IBM".
    pub manufacturer: u32,
    /// `TPM_PT_FIRMWARE_VERSION_1`.
    pub firmware_version: u32,
    /// `TPM_PT_LEVEL` of the TPM 2.0 library specification.
    pub specification_level: u32,
    /// `TPM_PT_REVISION`, e.g. 164 for revision 1.64.
    pub specification_revision: u32,
}

impl VrotCertificateSpec for EkSpec {
    fn key(&self) -> &PublicArea {
        self.ek.public_area()
    }

    fn validity(&self) -> &Validity {
        &self.validity
    }

    fn describe(
        &self,
        params: &mut CertificateParams,
        host: &HostCertificate,
    ) -> Result<(), IssueError> {
        params.key_usages = vec![match self.key().parameters() {
            KeyParameters::Rsa { .. } => KeyUsagePurpose::KeyEncipherment,
            KeyParameters::P256 { .. } => KeyUsagePurpose::KeyAgreement,
        }];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(EK_PURPOSE.to_vec())];
        params.custom_extensions = vec![
            alternative_names(&self.device, &host.host().vrot_name(&self.vrot)),
            specification(&self.device),
        ];
        Ok(())
    }
}

/// `tcg-kp-EKCertificate`
const EK_PURPOSE: [u64; 5] = [2, 23, 133, 8, 1];
const SUBJECT_ALTERNATIVE_NAME: [u64; 4] = [2, 5, 29, 17];
const SUBJECT_DIRECTORY_ATTRIBUTES: [u64; 4] = [2, 5, 29, 9];
/// `tcg-at-tpmManufacturer`, `tcg-at-tpmModel`, `tcg-at-tpmVersion`
const MANUFACTURER: [u64; 5] = [2, 23, 133, 2, 1];
const MODEL: [u64; 5] = [2, 23, 133, 2, 2];
const VERSION: [u64; 5] = [2, 23, 133, 2, 3];
/// Tells a vRoT from a hardware TPM in the certificate already.
const MODEL_NAME: &str = "vRoT";
/// `tcg-at-tpmSpecification`
const SPECIFICATION: [u64; 5] = [2, 23, 133, 2, 16];
/// `GeneralName` choices of RFC 5280 §4.2.1.6.
const DNS_NAME: u64 = 2;
const DIRECTORY_NAME: u64 = 4;

fn alternative_names(device: &TpmDevice, dns_name: &str) -> CustomExtension {
    let attributes = [
        (MANUFACTURER, format!("id:{:08X}", device.manufacturer)),
        (MODEL, MODEL_NAME.to_owned()),
        (VERSION, format!("id:{:08X}", device.firmware_version)),
    ];
    let value = yasna::construct_der(|writer| {
        writer.write_sequence(|names| {
            names
                .next()
                .write_tagged(Tag::context(DIRECTORY_NAME), |writer| {
                    writer.write_sequence(|name| {
                        for (oid, text) in &attributes {
                            name.next().write_set(|relative| {
                                write_attribute(relative.next(), oid, text);
                            });
                        }
                    });
                });
            names
                .next()
                .write_tagged_implicit(Tag::context(DNS_NAME), |writer| {
                    writer.write_ia5_string(dns_name);
                });
        });
    });
    let mut extension = CustomExtension::from_oid_content(&SUBJECT_ALTERNATIVE_NAME, value);
    // RFC 5280 §4.1.2.6: critical where the subject is empty.
    extension.set_criticality(true);
    extension
}

fn specification(device: &TpmDevice) -> CustomExtension {
    let value = yasna::construct_der(|writer| {
        writer.write_sequence(|attributes| {
            attributes.next().write_sequence(|attribute| {
                attribute
                    .next()
                    .write_oid(&ObjectIdentifier::from_slice(&SPECIFICATION));
                attribute.next().write_set(|values| {
                    values.next().write_sequence(|specification| {
                        specification.next().write_utf8_string("2.0");
                        specification.next().write_u32(device.specification_level);
                        specification
                            .next()
                            .write_u32(device.specification_revision);
                    });
                });
            });
        });
    });
    CustomExtension::from_oid_content(&SUBJECT_DIRECTORY_ATTRIBUTES, value)
}

fn write_attribute(writer: DERWriter<'_>, oid: &[u64], text: &str) {
    writer.write_sequence(|attribute| {
        attribute
            .next()
            .write_oid(&ObjectIdentifier::from_slice(oid));
        attribute.next().write_utf8_string(text);
    });
}
