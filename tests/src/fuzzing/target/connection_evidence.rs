//! What a VM shows on an attested connection: evidence for it, and the certificate of its handshake.

use std::sync::LazyLock;

use attestation::evidence::CarriedCrls;
use attestation::fixture::{Host, TLS, nonce, now, signing_area};
use attestation::{Binding, Evidence, Policy, Purpose, Verdict, appraise};
use cert_chain::profile::TlsCertificate;
use cert_chain::{Digest32, HostName, PublicArea};

use super::Target;

/// Evidence of a VM for a connection, with the statement about its key.
pub(super) const EVIDENCE: Target = Target {
    name: "connection-evidence",
    run: |input| {
        let Ok(evidence) = Evidence::from_cbor(input) else {
            return;
        };
        let scene = &*SCENE;
        let anchors = scene.policy.anchors();
        let Ok(verified) = evidence.verify(&nonce(), &scene.purpose, anchors, now()) else {
            return;
        };
        assert!(
            evidence.carrying(CarriedCrls::default()).to_cbor() == scene.evidence,
            "evidence with a changed byte was verified"
        );
        let result = appraise(verified, &scene.policy);
        assert_eq!(result.verdict(), Verdict::Affirming);
    },
    seeds: || Ok(vec![SCENE.evidence.clone()]),
};

/// The certificate of a vRoT's TLS key.
pub(super) const TLS_CERTIFICATE: Target = Target {
    name: "tls-certificate",
    run: |input| {
        if let Ok(certificate) = TlsCertificate::read(input, &SCENE.host) {
            let _ = (certificate.vm(), certificate.vrot());
        }
    },
    seeds: || Ok(vec![SCENE.certificate.clone()]),
};

/// A connection between a device and the service in a VM.
struct Scene {
    host: HostName,
    certificate: Vec<u8>,
    purpose: Purpose,
    evidence: Vec<u8>,
    policy: Policy,
}

static SCENE: LazyLock<Scene> = LazyLock::new(|| {
    let host = Host::new("host-1");
    let vm = host.vm();
    let binding = Binding::Connection(Digest32::of(b"connection"));
    let key = PublicArea::parse(&signing_area(&vm.tls_key, TLS));
    let key = key.map(|area| Digest32::of(&area.subject_public_key_info()));
    Scene {
        host: host.name.clone(),
        certificate: host.tls_certificate(&vm).to_vec(),
        evidence: host.evidence(&vm, &nonce(), binding.clone()).to_cbor(),
        policy: host.policy(&vm),
        purpose: Purpose::Connection {
            binding,
            // Without it no evidence is verified, and the test below fails.
            key: key.unwrap_or_else(|_| Digest32::of(b"")),
        },
    }
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_verified_and_read() -> anyhow::Result<()> {
        let scene = &*SCENE;
        let (nonce, purpose) = (nonce(), &scene.purpose);
        let evidence = Evidence::from_cbor(&scene.evidence)?;
        evidence.verify(&nonce, purpose, scene.policy.anchors(), now())?;
        TlsCertificate::read(&scene.certificate, &scene.host)?;
        Ok(())
    }
}
