//! A device against the policy of whom it connects to.

use cert_chain::{Digest32, VerifiedClientCertificate, VerifiedDeviceCertificate};
use rustls_pki_types::UnixTime;

use super::policy::DevicePolicy;
use super::result::{DeviceIdentity, DeviceResult};
use super::verification::VerifiedDevice;
use crate::appraisal::listing::list;
use crate::appraisal::without_log::check_boot;
use crate::nonce::Nonce;
use crate::result::{Claim, LayerResult, Reason};

/// Compares a verified device with a policy. The appraisal is of the time as of which the evidence was
/// verified. What booted is compared only where the device is one that the policy is about: reference
/// values say nothing about others.
pub fn appraise_device(device: VerifiedDevice, policy: &DevicePolicy) -> DeviceResult {
    let (certificate, at) = (device.certificate(), device.verified_at());
    let mut layer = compare_identity(certificate, device.anchors(), at, policy);
    if let Some(expected) = policy.attested()
        && !layer.contradicts(Claim::Identity)
    {
        check_boot(&mut layer, device.layer(), &expected.reference);
    }
    let nonce = device.nonce().clone();
    let identity = DeviceIdentity::Attested(Box::new(device.without_log()));
    DeviceResult::new(identity, nonce, layer, policy, at)
}

/// Compares what is certified about a device with a policy: why it is none that the policy accepts, if it is
/// none. The certificate leads to the anchors with this [digest](cert_chain::TrustAnchors::digest) as of `at`.
///
/// It says nothing about what the device booted, nor whether it is present: [`appraise_device`] does.
pub fn check_device_identity(
    certificate: &VerifiedDeviceCertificate,
    anchors: &Digest32,
    at: UnixTime,
    policy: &DevicePolicy,
) -> Vec<Reason> {
    let layer = compare_identity(certificate, anchors, at, policy);
    layer.reasons().to_vec()
}

fn compare_identity(
    certificate: &VerifiedDeviceCertificate,
    anchors: &Digest32,
    at: UnixTime,
    policy: &DevicePolicy,
) -> LayerResult {
    let mut layer = LayerResult::new();
    layer.approve(Claim::Identity);
    let Some(expected) = policy.attested() else {
        layer.contradict(
            Claim::Identity,
            "device-unexpected",
            "the policy accepts no device with a TPM".to_owned(),
        );
        return layer;
    };
    let trusted = expected.anchors.digest();
    if anchors != trusted {
        layer.contradict(
            Claim::Identity,
            "roots-unexpected",
            format!(
                "the device was verified under the roots {anchors}; the policy trusts {trusted}"
            ),
        );
    }
    if !(certificate.revocation()).meets(expected.anchors.demand(), at) {
        layer.contradict(
            Claim::Identity,
            "revocation-unchecked",
            "the device was verified without the revocation list that the policy demands"
                .to_owned(),
        );
    }
    let name = certificate.device().to_string();
    if !(expected.devices.iter()).any(|pattern| pattern.matches(&name)) {
        layer.contradict(
            Claim::Identity,
            "device-unexpected",
            format!(
                "the device is {name}; the policy allows {}",
                list(&expected.devices)
            ),
        );
    }
    layer
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
