//! What is refused, and why.

use std::time::Duration;

use attestation::certification::CertificationError;
use attestation::fixture::{ATTESTATION, Host, NOW, TLS, now, signing_area, signing_area_with};
use cert_chain::attestation_key::AttestationKeyError;
use cert_chain::template::DATA_KEY_POLICY;
use cert_chain::{Digest32, ObjectAttributes, PublicArea};
use rustls_pki_types::UnixTime;
use signed_data::{Content, Credentials, DataRefusal, Label, SignedData, Source, VerifiedData};

use crate::scene::{DATA, DeviceScene, Scene, Signer, in_full};

fn verify(scene: &Scene, data: SignedData) -> Result<VerifiedData, DataRefusal> {
    data.verify(None, &scene.anchors(), now())
}

#[test]
fn data_are_those_that_were_signed_or_are_refused() {
    let scene = Scene::new();
    let digest = Digest32::of(DATA);
    let by_hash = || scene.signed(scene.label(7), Content::Hash(digest));
    let verified = by_hash().verify(Some(&digest), &scene.anchors(), now());
    assert_eq!(verified.unwrap().label(), &scene.label(7));
    assert!(matches!(
        verify(&scene, by_hash()),
        Err(DataRefusal::DataMissing)
    ));
    let other = Digest32::of(b"other");
    for data in [by_hash(), scene.attached()] {
        let refused = data.verify(Some(&other), &scene.anchors(), now());
        assert!(matches!(refused, Err(DataRefusal::DataMismatch)));
    }
}

#[test]
fn data_under_another_label_are_refused() {
    let scene = Scene::new();
    let label = scene.label(7);
    let genuine = scene.attached().to_cbor();
    let signature = &genuine[genuine.len() - 64..];
    let relabelled: [Label; 4] = [
        Label {
            stream: "room-2/temperature".parse().unwrap(),
            ..label.clone()
        },
        Label {
            sequence: 8,
            ..label.clone()
        },
        Label {
            time: NOW - 1,
            ..label.clone()
        },
        Label {
            content_type: "text/plain".parse().unwrap(),
            ..label.clone()
        },
    ];
    for label in relabelled {
        let mut bytes = scene.signed(label.clone(), in_full()).to_cbor();
        let end = bytes.len() - 64;
        bytes[end..].copy_from_slice(signature);
        let refused = verify(&scene, SignedData::from_cbor(&bytes).unwrap());
        assert!(matches!(refused, Err(DataRefusal::Signature)), "{label:?}");
    }
    // The key's own VM alone.
    let other = Label {
        source: Source::Vm(scene.host.vm().vm),
        ..label
    };
    let refused = verify(&scene, scene.signed(other, in_full()));
    assert!(
        matches!(refused, Err(DataRefusal::Source { .. })),
        "{refused:?}"
    );
}

#[test]
fn keys_for_tls_or_attestation_and_imported_keys_sign_no_data() {
    let vm = Scene::new();
    sign_no_data_of(&vm);
    sign_no_data_of(&DeviceScene::under(
        vm.host.issuer_again(),
        "plant-7/meter-12",
    ));
}

/// Keys for something else, although the identity key certified them for data.
fn sign_no_data_of(scene: &impl Signer) {
    let imported = TLS.bits() & !ObjectAttributes::SENSITIVE_DATA_ORIGIN.bits();
    let imported = ObjectAttributes::from_bits(imported);
    for (area, why) in [
        (
            signing_area(scene.key(), TLS),
            AttestationKeyError::OtherPurpose,
        ),
        (
            signing_area_with(scene.key(), ATTESTATION, &DATA_KEY_POLICY),
            AttestationKeyError::Restricted,
        ),
        (
            signing_area_with(scene.key(), imported, &DATA_KEY_POLICY),
            AttestationKeyError::NotSensitiveDataOrigin,
        ),
    ] {
        let label = Label {
            key: PublicArea::parse(&area).unwrap().name(),
            ..scene.label(7)
        };
        let credentials = scene.credentials_of(area);
        let data = scene.signed_with(label, in_full(), credentials);
        let refused = data.verify(None, &scene.anchors(), now());
        let Err(DataRefusal::Key(CertificationError::Attributes(found))) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(found, why);
    }
}

#[test]
fn what_a_key_of_another_vm_or_of_no_tpm_signed_is_refused() {
    let scene = Scene::new();
    // The statement is by another VM's vIK.
    let other = Scene {
        host: Host::new("host-1"),
        ..Scene::new()
    };
    let vm = scene.host.vm();
    let stranger = Scene {
        vm,
        host: other.host,
        key: other.key,
    };
    let credentials = Credentials {
        statement: stranger.credentials().statement,
        ..scene.credentials()
    };
    let label = Label {
        key: stranger.label(7).key,
        ..scene.label(7)
    };
    let data = stranger.signed_with(label, in_full(), credentials);
    assert!(matches!(
        verify(&scene, data),
        Err(DataRefusal::Key(CertificationError::Signature(_)))
    ));
    // Another key than the certified one.
    let other = Scene::new();
    let data = other.signed_with(scene.label(7), in_full(), scene.credentials());
    assert!(matches!(verify(&scene, data), Err(DataRefusal::Signature)));
    // Other roots.
    let refused = scene.attached().verify(None, &other.anchors(), now());
    assert!(matches!(refused, Err(DataRefusal::Chain(_))));
}

#[test]
fn data_from_the_future_or_after_the_certificates_end_are_refused() {
    let scene = Scene::new();
    let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    let early = scene
        .attached()
        .verify(None, &scene.anchors(), at(NOW - 301));
    assert!(matches!(early, Err(DataRefusal::Future(301))), "{early:?}");
    let late = scene
        .attached()
        .verify(None, &scene.anchors(), at(NOW + 20 * 366 * 86400));
    assert!(matches!(late, Err(DataRefusal::Chain(_))), "{late:?}");
}
