//! Evidence, its parts, and the policy it is held against.

use std::sync::LazyLock;

use attestation::evidence::CarriedCrls;
use attestation::fixture::{Host, launch, nonce, now};
use attestation::{
    Binding, Evidence, EvidenceSet, HostLayer, HostLeaf, LaunchMeasurement, Policy, Purpose,
    Verdict, appraise,
};

use super::Target;

/// Whole evidence: decoding, verification, appraisal.
pub(super) const EVIDENCE: Target = Target {
    name: "evidence",
    run: |input| {
        let Ok(evidence) = Evidence::from_cbor(input) else {
            return;
        };
        let scene = &*SCENE;
        let anchors = scene.policy.anchors();
        let Ok(verified) = evidence.verify(&nonce(), &Purpose::Challenge, anchors, now()) else {
            return;
        };
        // Revocation lists speak for themselves, and whoever has one may add it.
        let without_lists = evidence.carrying(CarriedCrls::default()).to_cbor();
        assert!(
            without_lists == scene.evidence,
            "evidence with a changed byte was verified"
        );
        let result = appraise(verified, &scene.policy);
        assert_eq!(result.verdict(), Verdict::Affirming);
    },
    seeds: || Ok(vec![SCENE.evidence.clone(), SCENE.with_list.clone()]),
};

/// Evidence of many VMs: decoding and verification.
pub(super) const EVIDENCE_SET: Target = Target {
    name: "evidence-set",
    run: |input| {
        let Ok(set) = EvidenceSet::from_cbor(input) else {
            return;
        };
        assert!(set.to_cbor() == input, "there is one encoding only");
        let anchors = SCENE.policy.anchors();
        let Ok(verified) = set.verify(&nonce(), anchors, now()) else {
            return;
        };
        // The host's certificate is verified with each VM's.
        let is_host = set.host == SCENE.set.host;
        for (vm, outcome) in set.vms.iter().zip(verified.vms()) {
            let is_genuine = is_host && SCENE.set.vms.contains(vm);
            assert!(
                outcome.is_err() || is_genuine,
                "something changed was verified"
            );
        }
    },
    seeds: || Ok(vec![SCENE.set.to_cbor()]),
};

/// A host layer, as the manager hands it to the backend and the backend to the guest.
pub(super) const HOST_LAYER: Target = Target {
    name: "host-layer",
    run: |input| {
        if let Ok(layer) = HostLayer::from_cbor(input) {
            assert!(layer.to_cbor() == input, "there is one encoding only");
        }
    },
    seeds: || Ok(vec![SCENE.host_layer.clone()]),
};

/// A leaf of the host's tree of requests.
pub(super) const HOST_LEAF: Target = Target {
    name: "host-leaf",
    run: |input| {
        let _ = minicbor::decode::<HostLeaf>(input);
    },
    seeds: || {
        let measured = HostLeaf {
            launch: LaunchMeasurement::Measured(launch()),
            ..minicbor::decode(&SCENE.leaf)?
        };
        Ok(vec![SCENE.leaf.clone(), measured.encode()])
    },
};

/// A policy in TOML.
pub(super) const POLICY: Target = Target {
    name: "policy",
    run: |input| {
        let text = String::from_utf8_lossy(input);
        let _ = Policy::parse(&text, |_| Ok(SCENE.roots.clone()));
    },
    seeds: || {
        let sections = "[revocation]\nmax_crl_age_s = 604800\n\
                        [launch]\nignored_parts = [\"disk:root\"]\n\
                        [launch.parts]\ncpus = [\"2\", \"4\"]\n";
        let text = SCENE.policy_text.clone() + sections;
        Ok(vec![text.into_bytes()])
    },
};

/// What one genuine attestation consists of.
struct Scene {
    evidence: Vec<u8>,
    with_list: Vec<u8>,
    host_layer: Vec<u8>,
    leaf: Vec<u8>,
    set: EvidenceSet,
    policy: Policy,
    policy_text: String,
    roots: String,
}

static SCENE: LazyLock<Scene> = LazyLock::new(|| {
    let host = Host::new("host-1");
    let vm = host.vm();
    let evidence = host.evidence(&vm, &nonce(), Binding::None);
    let list = host.revocation_list(1, 0, &[]).der().to_vec();
    Scene {
        host_layer: evidence.host.to_cbor(),
        leaf: evidence.host.leaf.to_vec(),
        set: host.evidence_set(&[&vm, &host.vm()], &nonce()),
        evidence: evidence.to_cbor(),
        with_list: evidence.carrying(CarriedCrls::new([list])).to_cbor(),
        policy: host.policy(&vm),
        policy_text: host.policy_text(&vm),
        roots: host.issuer.certificate_pem(),
    }
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_is_verified_and_affirmed() -> anyhow::Result<()> {
        let evidence = Evidence::from_cbor(&SCENE.evidence)?;
        let policy = Policy::parse(&SCENE.policy_text, |_| Ok(SCENE.roots.clone()))?;
        let verified = evidence.verify(&nonce(), &Purpose::Challenge, policy.anchors(), now())?;
        assert_eq!(appraise(verified, &policy).verdict(), Verdict::Affirming);
        Ok(())
    }
}
