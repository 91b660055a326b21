//! Evidence is made for one purpose: what a source shows to others is no evidence beside its data, and what
//! stands beside data is none for others.

use attestation::device::DeviceEvidence;
use attestation::fixture::now;
use attestation::spiffe::TrustDomain;
use attestation::{Binding, Evidence, Purpose, Refusal};
use cert_chain::Digest32;
use signed_data::DataRefusal;

use crate::scene::{DeviceScene, Scene, Signer, in_full, nonce_of, refer_to};

/// All that evidence can be bound to.
fn bindings() -> [Binding; 4] {
    let domain: TrustDomain = "example.org".parse().unwrap();
    let connection = Binding::Connection(Digest32::of(b"a connection"));
    [
        Binding::SignedData,
        Binding::None,
        connection,
        domain.binding(),
    ]
}

/// Whoever asks a service in the clear chooses the nonce. With that of data that are signed once the VM has
/// booted something else, the evidence would say that it had not.
#[test]
fn evidence_that_a_vm_shows_to_others_is_none_of_its_data_and_the_reverse() {
    let scene = Scene::new();
    let anchors = scene.anchors();
    for made_for in bindings() {
        let mut label = scene.label(7);
        let nonce = nonce_of(&label);
        let evidence = (scene.host.evidence(&scene.vm, &nonce, made_for.clone())).to_cbor();
        let credentials = refer_to(&mut label, evidence.clone(), 0, scene.credentials());
        let data = scene.signed_with(label, in_full(), credentials);
        let beside_data = data.verify(None, &anchors, now());
        let evidence = Evidence::from_cbor(&evidence).unwrap();
        let in_the_clear = evidence.verify(&nonce, &Purpose::Challenge, &anchors, now());
        if made_for == Binding::SignedData {
            assert!(beside_data.is_ok());
        } else {
            let Err(DataRefusal::Evidence(refusal)) = beside_data else {
                panic!("{made_for}: {beside_data:?}");
            };
            assert_eq!(refusal.code(), "binding", "{made_for}");
        }
        let is_for_a_challenge = made_for == Binding::None;
        assert_eq!(in_the_clear.is_ok(), is_for_a_challenge, "{made_for}");
        if !is_for_a_challenge {
            assert!(matches!(in_the_clear, Err(Refusal::Binding { .. })));
        }
    }
}

#[test]
fn evidence_that_a_device_shows_to_others_is_none_of_its_data_and_the_reverse() {
    let host = Scene::new().host;
    let scene = DeviceScene::under(host.issuer_again(), "plant-7/meter-12");
    let anchors = scene.anchors();
    for made_for in bindings() {
        let mut label = scene.label(7);
        let nonce = nonce_of(&label);
        let evidence = (scene.device.evidence(&nonce, made_for.clone())).to_cbor();
        let credentials = refer_to(&mut label, evidence.clone(), 0, scene.credentials());
        let beside_data =
            scene
                .signed_with(label, in_full(), credentials)
                .verify(None, &anchors, now());
        let evidence = DeviceEvidence::from_cbor(&evidence).unwrap();
        let connection = Binding::Connection(Digest32::of(b"a connection"));
        let on_it = evidence.verify(&nonce, &connection, &anchors, now());
        if made_for == Binding::SignedData {
            assert!(beside_data.is_ok());
        } else {
            let Err(DataRefusal::DeviceEvidence(refusal)) = beside_data else {
                panic!("{made_for}: {beside_data:?}");
            };
            assert_eq!(refusal.code(), "binding", "{made_for}");
        }
        assert_eq!(on_it.is_ok(), made_for == connection, "{made_for}");
    }
}
