//! pycose, another implementation of COSE in another language, as the judge of ours; and ours as the judge of
//! it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use attestation::fixture::now;
use cert_chain::{Digest32, TrustAnchors};
use p256::SecretKey;
use p256::pkcs8::DecodePrivateKey;
use rcgen::{KeyPair, PublicKeyData};
use serde_json::Value;
use signed_data::{Content, DataRefusal, SignedData};

use crate::scene::{DATA, DeviceScene, Scene, Signer, in_full};

/// Where `scripts/pycose.sh` puts it.
fn python() -> PathBuf {
    // target/debug/deps/all-…
    let own = std::env::current_exe().unwrap();
    let target = own.ancestors().nth(3).unwrap();
    let python = target.join("peers/pycose/bin/python");
    assert!(
        python.is_file(),
        "{} is missing: run `make peers`",
        python.display()
    );
    python
}

/// What pycose says or makes of a file with these bytes.
fn pycose(command: &str, bytes: &[u8], arguments: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("signed");
    fs::write(&file, bytes).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pycose_judge.py");
    let told = Command::new(python())
        .arg(script)
        .arg(command)
        .arg(&file)
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        told.status.success(),
        "{}",
        String::from_utf8_lossy(&told.stderr)
    );
    told.stdout
}

fn judged(bytes: &[u8], key: &KeyPair) -> Value {
    let point = key.der_bytes();
    let coordinates = [hex(&point[1..33]), hex(&point[33..])];
    let coordinates = coordinates.each_ref().map(String::as_str);
    serde_json::from_slice(&pycose("verify", bytes, &coordinates)).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn pycose_verifies_what_vms_and_devices_sign_and_reads_the_label_as_it_was_meant() {
    let vm = Scene::new();
    let device = DeviceScene::under(vm.host.issuer_again(), "plant-7/meter-12");
    let told = judged(&vm.with_evidence(9).to_cbor(), &vm.key);
    let label = vm.label(7);
    for (field, expected) in [
        ("message", Value::from("Sign1Message")),
        ("verified", true.into()),
        ("algorithm", "Es256".into()),
        ("content_type", "application/json".into()),
        ("hash_algorithm", Value::Null),
        ("kid", hex(label.key.as_bytes()).into()),
        ("source", label.source.to_string().into()),
        ("stream", "room-1/temperature".into()),
        ("time", label.time.into()),
        ("number", 7.into()),
        ("payload", hex(DATA).into()),
    ] {
        assert_eq!(told[field], expected, "{field}");
    }
    // A hash envelope (RFC 9995): its headers are nothing that it knows, and covered as well.
    let digest = Digest32::of(DATA);
    let hash = vm.signed(label, Content::Hash(digest)).to_cbor();
    let told = judged(&hash, &vm.key);
    assert_eq!(told["verified"], true);
    assert_eq!(told["hash_algorithm"], -16);
    assert_eq!(told["hashed_content_type"], "application/json");
    assert_eq!(told["payload"], hex(digest.as_bytes()));
    let told = judged(&device.with_evidence(9).to_cbor(), &device.key);
    assert_eq!(told["verified"], true);
    assert_eq!(told["source"], device.label(7).source.to_string());
    // Another key, and another number in the label.
    assert_eq!(judged(&hash, &device.key)["verified"], false);
    let mut altered = vm.attached().to_cbor();
    let number = [0x3a, 0x00, 0x01, 0x11, 0x70, 0x07];
    let at = altered.windows(6).position(|part| part == number).unwrap();
    altered[at + 5] = 0x08;
    let told = judged(&altered, &vm.key);
    assert_eq!(
        (&told["verified"], &told["number"]),
        (&false.into(), &8.into())
    );
}

#[test]
fn we_verify_what_pycose_signs_with_the_certified_key_and_refuse_what_it_signs_with_another() {
    let vm = Scene::new();
    let device = DeviceScene::under(vm.host.issuer_again(), "plant-7/meter-12");
    let anchors = vm.anchors();
    for (ours, key, other) in [
        (vm.attached(), &vm.key, &device.key),
        (device.attached(), &device.key, &vm.key),
    ] {
        let verified = made_by_pycose(&ours, key, &anchors).unwrap();
        assert_eq!(verified.label().sequence, 8);
        assert_eq!(verified.label().source, ours.unverified_label().source);
        assert_eq!(verified.content(), &in_full());
        let refused = made_by_pycose(&ours, other, &anchors);
        assert!(
            matches!(refused, Err(DataRefusal::Signature)),
            "{refused:?}"
        );
    }
}

/// The same under number 8, made by pycose from values and signed with this key; what we make of it.
fn made_by_pycose(
    ours: &SignedData,
    key: &KeyPair,
    anchors: &TrustAnchors,
) -> Result<signed_data::VerifiedData, DataRefusal> {
    let private = SecretKey::from_pkcs8_der(key.serialized_der()).unwrap();
    let scalar = hex(&private.to_bytes());
    let made = pycose("sign", &ours.to_cbor(), &[&scalar, "8"]);
    let read = SignedData::from_cbor(&made).unwrap();
    read.verify(None, anchors, now())
}
