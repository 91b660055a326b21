//! Data of devices: what is accepted, and that neither kind of source passes for the other.

use std::sync::Arc;

use attestation::certification::CertificationError;
use attestation::device::DevicePolicy;
use attestation::fixture::{Host, certification, now, sign};
use attestation::{Binding, KeyStatement, PolicyAbout, Verdict};
use cert_chain::{RevocationLists, TrustAnchors};
use minicbor::bytes::ByteVec;
use signed_data::{
    Certificates, Credentials, DataRefusal, Demand, Label, SignedData, Source, VerifiedData,
    VerifiedSource, appraise,
};

use crate::scene::{DeviceScene, Scene, Signer, in_full, nonce_of, refer_to, signed_by, statement};

/// A VM and a device of one issuer.
fn both() -> (Scene, DeviceScene) {
    let vm = Scene::new();
    let device = DeviceScene::under(vm.host.issuer_again(), "plant-7/meter-12");
    (vm, device)
}

fn verify(anchors: &TrustAnchors, data: SignedData) -> Result<VerifiedData, DataRefusal> {
    // As it travels.
    let data = SignedData::from_cbor(&data.to_cbor()).unwrap();
    data.verify(None, anchors, now())
}

fn codes(
    scene: &DeviceScene,
    data: SignedData,
    policy: DevicePolicy,
    demand: &Demand,
) -> (Verdict, Vec<&'static str>) {
    let data = verify(&scene.anchors(), data).unwrap();
    let result = appraise(data, &policy.into(), demand).unwrap();
    let codes = result.reasons().iter().map(|reason| reason.code);
    (result.verdict(), codes.collect())
}

fn alone() -> Demand {
    Demand {
        identity_alone: true,
        ..Demand::default()
    }
}

#[test]
fn data_of_a_device_are_judged_by_a_policy_about_devices_with_or_without_evidence() {
    let (_, scene) = both();
    let verified = verify(&scene.anchors(), scene.with_evidence(9)).unwrap();
    assert_eq!(verified.evidence_age(), Some(9));
    let VerifiedSource::Device {
        certificate,
        evidence,
    } = verified.source()
    else {
        panic!("{:?}", verified.source());
    };
    assert_eq!(certificate.device(), &scene.device.name);
    assert!(evidence.is_some());
    let (policy, demand) = (scene.device.policy(), Demand::default());
    let with_evidence = codes(&scene, scene.with_evidence(9), policy.clone(), &demand);
    assert_eq!(with_evidence, (Verdict::Affirming, vec![]));
    assert_eq!(
        codes(&scene, scene.attached(), policy.clone(), &alone()),
        (Verdict::Affirming, vec![])
    );
    assert_eq!(
        codes(&scene, scene.attached(), policy.clone(), &demand),
        (Verdict::Contraindicated, vec!["evidence-missing"])
    );
    let fresh = Demand {
        max_evidence_age: Some(8),
        ..demand
    };
    assert_eq!(
        codes(&scene, scene.with_evidence(9), policy, &fresh),
        (Verdict::Contraindicated, vec!["evidence-old"])
    );
}

#[test]
fn what_a_device_booted_and_who_it_is_count_for_its_data_as_for_its_connections() {
    let (_, mut scene) = both();
    let policy = scene.device.policy();
    let text = (scene.device.policy_text()).replace("meter-12\"", "meter-13\"");
    let other = scene.device.read_policy(&text).unwrap();
    assert_eq!(
        codes(&scene, scene.attached(), other, &alone()),
        (Verdict::Contraindicated, vec!["device-unexpected"])
    );
    let demanding = scene.device.policy_text() + "\n[revocation]\nmax_crl_age_s = 604800\n";
    let demanding = scene.device.read_policy(&demanding).unwrap();
    assert_eq!(
        codes(&scene, scene.attached(), demanding, &alone()),
        (Verdict::Contraindicated, vec!["revocation-unchecked"])
    );
    // Under other roots that this policy trusts.
    let stranger = DeviceScene::under(Host::new("host-2").issuer, "plant-7/meter-12");
    assert_eq!(
        codes(&stranger, stranger.attached(), policy.clone(), &alone()),
        (Verdict::Contraindicated, vec!["roots-unexpected"])
    );
    // Another boot: the evidence tells.
    scene.device.log = attestation::fixture::event_log(&[(4, 0x8000_0003, b"another loader")]);
    let (verdict, reasons) = codes(&scene, scene.with_evidence(0), policy, &Demand::default());
    assert_eq!((verdict, reasons), (Verdict::Contraindicated, vec![]));
}

#[test]
fn a_revoked_device_signs_nothing_that_counts() {
    let (vm, scene) = both();
    let list = |revoked: &[&[u8]]| {
        let mut lists = RevocationLists::default();
        lists.add(Arc::new(vm.host.revocation_list(1, 60, revoked)));
        scene.anchors().with_lists(&lists)
    };
    assert!(verify(&list(&[]), scene.attached()).is_ok());
    let refused = verify(&list(&[&scene.device.certificate]), scene.attached());
    assert!(matches!(refused, Err(DataRefusal::Chain(_))), "{refused:?}");
}

#[test]
fn neither_a_vm_s_nor_another_device_s_data_pass_under_a_device_s_label_and_the_other_way_round() {
    let (vm, device) = both();
    let anchors = vm.anchors();
    let neighbour = DeviceScene::under(vm.host.issuer_again(), "plant-7/meter-13");
    let label = Label {
        source: Source::Device(device.device.name.clone()),
        ..vm.label(7)
    };
    let data = vm.signed(label, in_full());
    let refused = verify(&anchors, data);
    assert!(
        matches!(refused, Err(DataRefusal::Source { .. })),
        "{refused:?}"
    );
    for source in [
        Source::Vm(vm.vm.vm),
        Source::Device(neighbour.device.name.clone()),
    ] {
        let label = Label {
            source,
            ..device.label(7)
        };
        let refused = verify(&anchors, device.signed(label, in_full()));
        assert!(
            matches!(refused, Err(DataRefusal::Source { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn certificates_of_one_kind_are_none_of_the_other() {
    let (vm, device) = both();
    let anchors = vm.anchors();
    let der = |certificate: &[u8]| -> ByteVec { certificate.to_vec().into() };
    let own = der(&device.device.certificate);
    let (vik, host) = (der(&vm.vm.certificate), der(&vm.host.certificate));
    let host_key = vm.host.public.public_area().as_bytes().to_vec();
    for (certificates, identity, key) in [
        // A host that makes itself a device.
        (Certificates::Device(host.clone()), host_key, &vm.host.key),
        // A VM that makes itself a device: the host is no issuer of devices.
        (
            Certificates::Device(vik.clone()),
            vm.vm.public.clone(),
            &vm.vm.key,
        ),
        // A device that makes itself a VM, or a host.
        (
            Certificates::Vm([own.clone(), host]),
            device.device.public.public_area().as_bytes().to_vec(),
            &device.device.key,
        ),
        (
            Certificates::Vm([vik, own]),
            vm.vm.public.clone(),
            &vm.vm.key,
        ),
    ] {
        let credentials = Credentials {
            certificates,
            identity_key: identity.into(),
            statement: statement(key, device.area()),
            evidence: None,
        };
        for source in [device.label(7).source, vm.label(7).source] {
            let label = Label {
                source,
                ..device.label(7)
            };
            let refused = verify(
                &anchors,
                device.signed_with(label, in_full(), credentials.clone()),
            );
            assert!(matches!(refused, Err(DataRefusal::Chain(_))), "{refused:?}");
        }
    }
}

#[test]
fn what_one_identity_key_says_about_a_key_is_not_said_by_another() {
    let (vm, device) = both();
    let anchors = vm.anchors();
    // The device's word about the VM's key, below the VM's certificates; and the other way round.
    let credentials = Credentials {
        statement: statement(&device.device.key, vm.area()),
        ..vm.credentials()
    };
    let data = vm.signed_with(vm.label(7), in_full(), credentials);
    let refused = verify(&anchors, data);
    let is_signature = |refused: &Result<VerifiedData, DataRefusal>| {
        matches!(
            refused,
            Err(DataRefusal::Key(CertificationError::Signature(_)))
        )
    };
    assert!(is_signature(&refused), "{refused:?}");
    let credentials = Credentials {
        statement: statement(&vm.vm.key, device.area()),
        ..device.credentials()
    };
    let refused = verify(
        &anchors,
        device.signed_with(device.label(7), in_full(), credentials),
    );
    assert!(is_signature(&refused), "{refused:?}");
    // The other's identity key along with it: it is not the one that was certified.
    let credentials = Credentials {
        identity_key: vm.vm.public.clone().into(),
        statement: statement(&vm.vm.key, device.area()),
        ..device.credentials()
    };
    let refused = verify(
        &anchors,
        device.signed_with(device.label(7), in_full(), credentials),
    );
    assert!(
        matches!(refused, Err(DataRefusal::IdentityKeyMismatch)),
        "{refused:?}"
    );
    // A VM's key that the device's TPM vouches for is the device's, and says so: the VM's label is refused.
    let credentials = device.credentials_of(vm.area());
    let data = signed_by(&vm.key, vm.label(7), in_full(), credentials);
    let refused = verify(&anchors, data);
    assert!(
        matches!(refused, Err(DataRefusal::Source { .. })),
        "{refused:?}"
    );
}

#[test]
fn evidence_of_another_source_is_none_of_a_device_s_data() {
    let (vm, device) = both();
    let anchors = vm.anchors();
    let neighbour = DeviceScene::under(vm.host.issuer_again(), "plant-7/meter-13");
    let refused = verify(&anchors, device.with_evidence_of(&neighbour, in_full(), 0));
    assert!(
        matches!(refused, Err(DataRefusal::EvidenceOfAnother)),
        "{refused:?}"
    );
    // A VM's evidence in a device's data, and the other way round: neither is read as the other.
    let mut label = device.label(7);
    let evidence = (vm.host).evidence(&vm.vm, &nonce_of(&label), Binding::SignedData);
    let credentials = refer_to(&mut label, evidence.to_cbor(), 0, device.credentials());
    let refused = verify(&anchors, device.signed_with(label, in_full(), credentials));
    assert!(
        matches!(refused, Err(DataRefusal::EvidenceMalformed(_))),
        "{refused:?}"
    );
    let mut label = vm.label(7);
    let evidence = (device.device).evidence(&nonce_of(&label), Binding::SignedData);
    let credentials = refer_to(&mut label, evidence.to_cbor(), 0, vm.credentials());
    let data = vm.signed_with(label, in_full(), credentials);
    let refused = verify(&anchors, data);
    assert!(
        matches!(refused, Err(DataRefusal::EvidenceMalformed(_))),
        "{refused:?}"
    );
    // Made for a connection: what a device shows there is none of its data.
    let mut label = device.label(7);
    let connection = Binding::Connection(cert_chain::Digest32::of(b"a connection"));
    let evidence = (device.device).evidence(&nonce_of(&label), connection);
    let credentials = refer_to(&mut label, evidence.to_cbor(), 0, device.credentials());
    let refused = verify(&anchors, device.signed_with(label, in_full(), credentials));
    assert!(
        matches!(refused, Err(DataRefusal::DeviceEvidence(_))),
        "{refused:?}"
    );
}

#[test]
fn a_policy_about_the_other_kind_of_source_refuses_the_data() {
    let (vm, device) = both();
    let about_devices = PolicyAbout::from(device.device.policy());
    let about_vms = PolicyAbout::from(vm.host.policy(&vm.vm));
    let anchors = vm.anchors();
    for (data, policy) in [
        (vm.attached(), &about_devices),
        (device.attached(), &about_vms),
    ] {
        let data = verify(&anchors, data).unwrap();
        let refused = appraise(data, policy, &alone());
        assert!(
            matches!(refused, Err(DataRefusal::PolicyOfOthers(_))),
            "{refused:?}"
        );
    }
}

#[test]
fn no_changed_byte_of_a_device_s_signed_data_goes_unseen() {
    let (_, scene) = both();
    let anchors = scene.anchors();
    let bytes = scene.attached().to_cbor();
    let accepted = |bytes: &[u8]| {
        SignedData::from_cbor(bytes).is_ok_and(|data| data.verify(None, &anchors, now()).is_ok())
    };
    assert!(accepted(&bytes));
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x01;
        assert!(!accepted(&changed), "byte {at}");
    }
}

#[test]
fn a_key_that_was_certified_for_something_else_signs_no_data() {
    let (vm, device) = both();
    let anchors = vm.anchors();
    let said = |identity: &rcgen::KeyPair, area: Vec<u8>, said: &[u8]| {
        let attest = certification(&area, said);
        KeyStatement {
            public: area.into(),
            signature: sign(identity, &attest),
            attest: attest.into(),
        }
    };
    // As a key for TLS is certified, and for another purpose.
    for purpose in [&[][..], cert_chain::Digest32::of(b"other").as_bytes()] {
        let credentials = Credentials {
            statement: said(&device.device.key, device.area(), purpose),
            ..device.credentials()
        };
        let of_device = device.signed_with(device.label(7), in_full(), credentials);
        let credentials = Credentials {
            statement: said(&vm.vm.key, vm.area(), purpose),
            ..vm.credentials()
        };
        let content = in_full();
        let of_vm = vm.signed_with(vm.label(7), content, credentials);
        for data in [of_device, of_vm] {
            let refused = verify(&anchors, data);
            assert!(
                matches!(
                    refused,
                    Err(DataRefusal::Key(CertificationError::OtherPurpose))
                ),
                "{refused:?}"
            );
        }
    }
}
