//! What a service reads of devices: their evidence, and the policy it is held against. And what an issuer
//! reads of them.

use std::sync::LazyLock;

use attestation::Binding;
use attestation::device::fixture::FixtureDevice;
use attestation::device::{DeviceEvidence, DevicePolicy, appraise_device};
use attestation::fixture::{Host, nonce, now};
use cert_chain::enrolment::Message;
use cert_chain::enrolment::device::{Answer, Certificate, Challenge, Request};
use cert_chain::profile::device::DeviceCertificate;

use super::Target;

/// Whole evidence: decoding, verification, appraisal.
pub(super) const EVIDENCE: Target = Target {
    name: "device-evidence",
    run: |input| {
        let Ok(evidence) = DeviceEvidence::from_cbor(input) else {
            return;
        };
        let scene = &*SCENE;
        let Some(anchors) = scene.policy.anchors() else {
            return;
        };
        let Ok(verified) = evidence.verify(&nonce(), &Binding::None, anchors, now()) else {
            return;
        };
        assert!(
            input == scene.evidence,
            "evidence with a changed byte was verified"
        );
        assert!(appraise_device(verified, &scene.policy).is_accepted());
    },
    seeds: || Ok(vec![SCENE.evidence.clone()]),
};

/// A policy in TOML.
pub(super) const POLICY: Target = Target {
    name: "device-policy",
    run: |input| {
        let text = String::from_utf8_lossy(input);
        let _ = DevicePolicy::parse(&text, |_| Ok(SCENE.roots.clone()));
    },
    seeds: || {
        let exemption = "\n[exempt_software_keys]\nroots = \"ca.pem\"\ndevices = \
                         [\"a.example\", \"spiffe://b/*\"]\nreason = \"no TPM\"\n";
        let text = SCENE.policy_text.clone() + exemption;
        Ok(vec![text.into_bytes()])
    },
};

/// A certificate that says it is a device's.
pub(super) const CERTIFICATE: Target = Target {
    name: "device-certificate",
    run: |input| {
        let _ = DeviceCertificate::read(input);
    },
    seeds: || Ok(vec![SCENE.certificate.clone()]),
};

/// The four messages of an enrolment.
pub(super) const ENROLMENT: Target = Target {
    name: "device-enrolment",
    run: |input| {
        if let Ok(request) = Request::from_json(input) {
            let json = request.to_json();
            assert!(Request::from_json(json.as_bytes()).is_ok_and(|again| again == request));
        }
        let _ = Challenge::from_json(input);
        let _ = Answer::from_json(input);
        let _ = Certificate::from_json(input);
    },
    seeds: || {
        let certificate = Certificate {
            device: SCENE.name.parse()?,
            certificate: SCENE.certificate.clone(),
            root: Vec::new(),
        };
        let request = Request {
            device: "plant-7/meter-12".to_owned(),
            ek_certificate: SCENE.certificate.clone(),
            ek_chain: SCENE.certificate.clone(),
            ek: vec![1, 2, 3],
            ik: vec![4, 5, 6],
        };
        Ok(vec![
            request.to_json().into_bytes(),
            certificate.to_json().into_bytes(),
        ])
    },
};

/// What one genuine attestation consists of.
struct Scene {
    name: String,
    evidence: Vec<u8>,
    certificate: Vec<u8>,
    policy: DevicePolicy,
    policy_text: String,
    roots: String,
}

static SCENE: LazyLock<Scene> = LazyLock::new(|| {
    let device = FixtureDevice::under(Host::new("host-1").issuer, "plant-7/meter-12");
    Scene {
        name: device.name.to_string(),
        evidence: device.evidence(&nonce(), Binding::None).to_cbor(),
        certificate: device.certificate.to_vec(),
        policy: device.policy(),
        policy_text: device.policy_text(),
        roots: device.issuer.certificate_pem(),
    }
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_is_verified_and_accepted() -> anyhow::Result<()> {
        use anyhow::Context;
        let evidence = DeviceEvidence::from_cbor(&SCENE.evidence)?;
        let anchors = SCENE.policy.anchors().context("the policy's issuers")?;
        let verified = evidence.verify(&nonce(), &Binding::None, anchors, now())?;
        assert!(appraise_device(verified, &SCENE.policy).is_accepted());
        Ok(())
    }
}
