//! What genuine data are worth.

use attestation::Verdict;
use attestation::fixture::now;
use signed_data::{Credentials, DataRefusal, Demand, Label, SignedData, appraise};

use crate::scene::{Scene, Signer, in_full, nonce_of, refer_to, statement};

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
        let content = in_full();
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
        attestation::Binding::SignedData,
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

#[test]
fn evidence_that_is_later_than_the_signature_or_that_the_label_does_not_name_is_refused() {
    let scene = Scene::new();
    let mut label = scene.label(7);
    let evidence = (scene.host).evidence(
        &scene.vm,
        &nonce_of(&label),
        attestation::Binding::SignedData,
    );
    let credentials = refer_to(&mut label, evidence.to_cbor(), 0, scene.credentials());
    let verify = |label: &Label| {
        let content = in_full();
        let data = scene.signed_with(label.clone(), content, credentials.clone());
        data.verify(None, &scene.anchors(), now())
    };
    assert!(verify(&label).is_ok());
    label.time -= 1;
    assert!(matches!(verify(&label), Err(DataRefusal::EvidenceLater)));
    label.evidence = None;
    assert!(matches!(verify(&label), Err(DataRefusal::EvidenceAbsent)));
}

#[test]
fn the_label_names_the_key_that_was_certified_and_the_identity_key_is_the_certified_one() {
    let scene = Scene::new();
    let verify = |label: Label, credentials| {
        let data = scene.signed_with(label, in_full(), credentials);
        data.verify(None, &scene.anchors(), now())
    };
    // Signed with the certified key, under another key's name.
    let label = Label {
        key: Scene::new().label(7).key,
        ..scene.label(7)
    };
    let refused = verify(label, scene.credentials());
    assert!(
        matches!(refused, Err(DataRefusal::KeyMismatch)),
        "{refused:?}"
    );
    // Another VM's identity key, and what it says, below this one's certificates.
    let other = scene.host.vm();
    let credentials = Credentials {
        identity_key: other.public.clone().into(),
        statement: statement(&other.key, scene.area()),
        ..scene.credentials()
    };
    let refused = verify(scene.label(7), credentials);
    assert!(
        matches!(refused, Err(DataRefusal::IdentityKeyMismatch)),
        "{refused:?}"
    );
    // And one that is none.
    let credentials = Credentials {
        identity_key: scene.area().into(),
        ..scene.credentials()
    };
    let refused = verify(scene.label(7), credentials);
    assert!(
        matches!(refused, Err(DataRefusal::IdentityKey(_))),
        "{refused:?}"
    );
}
