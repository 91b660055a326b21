//! Files that were written once, and have to be read for ever: these bytes are version 1 of the format, and
//! those with evidence version 2. In version 1 evidence beside data was bound to a challenge alone, which
//! anybody could have it made for.

use std::fs;
use std::path::{Path, PathBuf};

use attestation::fixture::{NOW, now};
use cert_chain::{Digest32, TrustAnchors};
use signed_data::{Content, SignedData, VerifiedData, VerifiedSource};

use crate::scene::{DATA, DeviceScene, Scene, Signer, in_full};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn verified(name: &str, roots: &str) -> VerifiedData {
    let roots = fs::read_to_string(path(roots)).unwrap();
    let anchors = TrustAnchors::from_pem(&roots).unwrap();
    let bytes = fs::read(path(name)).unwrap();
    let data = SignedData::from_cbor(&bytes).unwrap();
    assert_eq!(data.to_cbor(), bytes, "{name}");
    let digest = Digest32::of(DATA);
    data.verify(Some(&digest), &anchors, now()).unwrap()
}

#[test]
fn golden_signed_data_of_vms_and_devices_are_read_as_they_were_meant() {
    let attached = verified("vm_attached_v1.cbor", "roots.pem");
    assert_eq!(attached.content(), &in_full());
    let label = attached.label();
    assert_eq!((label.sequence, label.time), (7, NOW));
    assert_eq!(label.stream.as_str(), "room-1/temperature");
    assert_eq!(label.content_type.as_str(), "application/json");
    let VerifiedSource::Vm { chain, evidence } = attached.source() else {
        panic!("{:?}", attached.source());
    };
    assert_eq!(chain.host().to_string(), "host-1.demo.example");
    assert!(evidence.is_none());

    let hash = verified("vm_hash_evidence_v2.cbor", "roots_v2.pem");
    assert_eq!(hash.content(), &Content::Hash(Digest32::of(DATA)));
    assert_eq!(hash.evidence_age(), Some(9));
    let VerifiedSource::Vm { evidence, .. } = hash.source() else {
        panic!("{:?}", hash.source());
    };
    assert!(evidence.is_some());

    let device = verified("device_evidence_v2.cbor", "roots_v2.pem");
    assert_eq!(device.evidence_age(), Some(9));
    let VerifiedSource::Device {
        certificate,
        evidence,
    } = device.source()
    else {
        panic!("{:?}", device.source());
    };
    let name = "spiffe://demo.example/plant-7/meter-12";
    assert_eq!(certificate.device().to_string(), name);
    assert!(evidence.is_some());
}

/// Only a new version of the format has a reason to run this.
#[test]
#[ignore = "writes the golden files anew"]
fn golden_signed_data_are_written() {
    let vm = Scene::new();
    let device = DeviceScene::under(vm.host.issuer_again(), "plant-7/meter-12");
    let hash = Content::Hash(Digest32::of(DATA));
    for (name, bytes) in [
        (
            "roots_v2.pem",
            vm.host.issuer.certificate_pem().into_bytes(),
        ),
        (
            "vm_hash_evidence_v2.cbor",
            vm.with_evidence_of(&vm, hash, 9).to_cbor(),
        ),
        ("device_evidence_v2.cbor", device.with_evidence(9).to_cbor()),
    ] {
        fs::write(path(name), bytes).unwrap();
    }
}
