//! A device against the policy of whom it connects to.

use cert_chain::VerifiedClientCertificate;
use rustls_pki_types::UnixTime;

use super::policy::DevicePolicy;
use super::result::{DeviceIdentity, DeviceResult};
use super::verification::VerifiedDevice;
use crate::appraisal::listing::list;
use crate::appraisal::without_log::check_boot;
use crate::nonce::Nonce;
use crate::result::{Claim, LayerResult};

/// Compares a verified device with a policy. The appraisal is of the time as of which the evidence was
/// verified. What booted is compared only where the device is one that the policy is about: reference
/// values say nothing about others.
pub fn appraise_device(device: VerifiedDevice, policy: &DevicePolicy) -> DeviceResult {
    let mut layer = LayerResult::new();
    layer.approve(Claim::Identity);
    match policy.attested() {
        None => layer.contradict(
            Claim::Identity,
            "device-unexpected",
            "the policy accepts no device with a TPM".to_owned(),
        ),
        Some(expected) => {
            let trusted = expected.anchors.digest();
            if device.anchors() != trusted {
                layer.contradict(
                    Claim::Identity,
                    "roots-unexpected",
                    format!(
                        "the evidence was verified under the roots {}; the policy trusts {trusted}",
                        device.anchors()
                    ),
                );
            }
            let revocation = device.certificate().revocation();
            if !revocation.meets(expected.anchors.demand(), device.verified_at()) {
                layer.contradict(
                    Claim::Identity,
                    "revocation-unchecked",
                    "the evidence was verified without the revocation list that the policy demands"
                        .to_owned(),
                );
            }
            let name = device.certificate().device().to_string();
            if !expected
                .devices
                .iter()
                .any(|pattern| pattern.matches(&name))
            {
                layer.contradict(
                    Claim::Identity,
                    "device-unexpected",
                    format!(
                        "the device is {name}; the policy allows {}",
                        list(&expected.devices)
                    ),
                );
            }
            if !layer.contradicts(Claim::Identity) {
                check_boot(&mut layer, device.layer(), &expected.reference);
            }
        }
    }
    let (nonce, at) = (device.nonce().clone(), device.verified_at());
    let identity = DeviceIdentity::Attested(Box::new(device.without_log()));
    DeviceResult::new(identity, nonce, layer, policy, at)
}

/// Compares a device that has nothing but a client certificate with a policy; `at` is the time as of
/// which the certificate was verified, and `nonce` the challenge in whose answer it showed no more.
///
/// The verdict is a warning at best, and says what the policy exempts the device from.
pub fn appraise_software_key(
    certificate: VerifiedClientCertificate,
    policy: &DevicePolicy,
    nonce: &Nonce,
    at: UnixTime,
) -> DeviceResult {
    let mut layer = LayerResult::new();
    let mut exempted = None;
    match policy.software_keys() {
        None => layer.contradict(
            Claim::Identity,
            "software-key",
            "the device has no root of trust: its identity is a key in software, and the policy \
             exempts no such device"
                .to_owned(),
        ),
        Some(exemption) => {
            let is_meant = |name: &&String| {
                exemption
                    .devices()
                    .iter()
                    .any(|device| device.matches(name))
            };
            exempted = certificate.names().iter().find(is_meant).cloned();
            match &exempted {
                Some(name) => layer.warn(
                    Claim::Identity,
                    "software-key-exempted",
                    format!(
                        "{name} has no root of trust: its identity is a key in software, and nothing \
                         shows what booted; the policy exempts it: {}",
                        exemption.reason()
                    ),
                ),
                None => layer.contradict(
                    Claim::Identity,
                    "device-unexpected",
                    format!(
                        "the device has no root of trust, and its certificate is for {}; the policy \
                         exempts {}",
                        list(certificate.names()),
                        list(exemption.devices())
                    ),
                ),
            }
        }
    }
    let identity = DeviceIdentity::SoftwareKey {
        certificate: Box::new(certificate),
        exempted,
    };
    DeviceResult::new(identity, nonce.clone(), layer, policy, at)
}
