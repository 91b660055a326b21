//! What genuine data are worth.

use attestation::Verdict;
use attestation::fixture::now;
use signed_data::{Credentials, DataRefusal, Demand, SignedData, appraise};

use crate::scene::Scene;

fn codes(scene: &Scene, data: SignedData, demand: &Demand) -> (Verdict, Vec<&'static str>) {
    let policy = scene.host.policy(&scene.vm);
    let data = data.verify(None, policy.anchors(), now()).unwrap();
    let result = appraise(data, &policy.clone().into(), demand).unwrap();
    let codes = result.reasons().iter().map(|reason| reason.code);
    (result.verdict(), codes.collect())
}

#[test]
fn data_with_evidence_that_fits_the_policy_are_affirmed_and_its_age_is_told() {
    let scene = Scene::new();
    let demand = |most| Demand {
        max_evidence_age: Some(most),
        ..Demand::default()
    };
    let policy = scene.host.policy(&scene.vm);
    let data = scene.with_evidence(9).verify(None, policy.anchors(), now());
    assert_eq!(data.unwrap().evidence_age(), Some(9));
    assert_eq!(
        codes(&scene, scene.with_evidence(9), &demand(9)),
        (Verdict::Affirming, vec![])
    );
    assert_eq!(
        codes(&scene, scene.with_evidence(9), &demand(8)),
        (Verdict::Contraindicated, vec!["evidence-old"])
    );
}

#[test]
fn data_without_evidence_are_contraindicated_unless_that_is_said_to_be_enough() {
    let scene = Scene::new();
    let alone = Demand {
        identity_alone: true,
        ..Demand::default()
    };
    let missing = (Verdict::Contraindicated, vec!["evidence-missing"]);
    assert_eq!(codes(&scene, scene.attached(), &Demand::default()), missing);
    assert_eq!(
        codes(&scene, scene.attached(), &alone),
        (Verdict::Affirming, vec![])
    );
    let both = Demand {
        max_evidence_age: Some(5),
        ..alone
    };
    assert_eq!(codes(&scene, scene.attached(), &both), missing);
}

#[test]
fn data_of_another_vm_than_the_policys_are_contraindicated() {
    let scene = Scene::new();
    let policy = scene.host.policy(&scene.host.vm());
    let data = scene
        .attached()
        .verify(None, policy.anchors(), now())
        .unwrap();
    let alone = Demand {
        identity_alone: true,
        ..Demand::default()
    };
    let result = appraise(data, &policy.clone().into(), &alone).unwrap();
    assert_eq!(result.verdict(), Verdict::Contraindicated);
    assert!(
        result
            .reasons()
            .iter()
            .any(|reason| reason.code == "vm-unexpected")
    );
}

#[test]
fn replayed_data_and_those_of_another_stream_are_told_apart() {
    let scene = Scene::new();
    let policy = scene.host.policy(&scene.vm);
    let judge = |demand: &Demand| {
        let data = scene
            .attached()
            .verify(None, policy.anchors(), now())
            .unwrap();
        appraise(data, &policy.clone().into(), demand).map(|_| ())
    };
    let after = |after| Demand {
        after: Some(after),
        ..Demand::default()
    };
    assert!(judge(&after(6)).is_ok());
    for seen in [7, 8] {
        assert!(matches!(
            judge(&after(seen)),
            Err(DataRefusal::Replayed { found: 7, .. })
        ));
    }
    let stream = Some("room-2/temperature".parse().unwrap());
    let refused = judge(&Demand {
        stream,
        ..Demand::default()
    });
    assert!(matches!(refused, Err(DataRefusal::Stream { .. })));
}

#[test]
fn evidence_that_was_taken_for_other_data_or_exchanged_is_refused() {
    let scene = Scene::new();
    let policy = scene.host.policy(&scene.vm);
    let genuine = scene.with_evidence(0);
    // For another number: evidence answers the challenge of its own data alone.
    let reference = genuine.unverified_label().evidence;
    let moved = |sequence, credentials: Credentials| {
        let mut label = scene.label(sequence);
        label.evidence = reference;
        let content = signed_data::Content::Attached(crate::scene::DATA.to_vec());
        scene.signed_with(label, content, credentials)
    };
    let verify = |data: SignedData| data.verify(None, policy.anchors(), now());
    let evidence = genuine.credentials().evidence.clone();
    let with = |evidence| Credentials {
        evidence,
        ..scene.credentials()
    };
    assert!(verify(moved(7, with(evidence.clone()))).is_ok());
    assert!(matches!(
        verify(moved(8, with(evidence.clone()))),
        Err(DataRefusal::Evidence(_))
    ));
    let fresh = scene.host.evidence(
        &scene.vm,
        &attestation::fixture::nonce(),
        attestation::Binding::None,
    );
    assert!(matches!(
        verify(moved(7, with(Some(fresh.to_cbor().into())))),
        Err(DataRefusal::EvidenceMismatch)
    ));
    assert!(matches!(
        verify(moved(7, with(None))),
        Err(DataRefusal::EvidenceAbsent)
    ));
}
