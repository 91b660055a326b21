//! The format: byte by byte, as another implementation of COSE reads and writes it, and of the first version.

use std::time::Duration;

use attestation::Nonce;
use attestation::fixture::now;
use cert_chain::Digest32;
use confirmation::{
    ConfirmableText, ConfirmationPolicy, ConfirmationRefused, Expected, VerifiedConfirmation, judge,
};
use coset::{CoseSign1, TaggedCborSerializable};
use rcgen::PublicKeyData;
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use rustls_pki_types::UnixTime;

use crate::scene::{Scene, TEXT};

fn judged(scene: &Scene, signed: Vec<u8>) -> Result<VerifiedConfirmation, ConfirmationRefused> {
    let confirmation = scene.confirmation(signed);
    judge(
        Some(&confirmation),
        &scene.expected(),
        &scene.policy(),
        now(),
    )
    .map(|verified| verified.unwrap())
}

/// What is shown, in version 1.
fn payload(scene: &Scene) -> Vec<u8> {
    let time = scene.shown();
    let written = CoseSign1::from_tagged_slice(&time.signed(&[0; 64])).unwrap();
    written.payload.unwrap()
}

#[test]
fn another_implementation_of_cose_reads_what_a_person_confirmed_and_we_read_what_it_writes() {
    let scene = Scene::new();
    let ours = scene.signed();
    let theirs = CoseSign1::from_tagged_slice(&ours).unwrap();
    theirs
        .verify_signature(&[], |signature, message| {
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, scene.key.der_bytes())
                .verify(message, signature)
        })
        .unwrap();
    assert_eq!(
        scene.shown().to_be_signed(),
        Digest32::of(&theirs.tbs_data(&[]))
    );
    assert_eq!(theirs.to_tagged_vec().unwrap(), ours);
    assert_eq!(judged(&scene, ours).unwrap().lines(), [TEXT]);
    let written = scene.signed_payload(payload(&scene));
    assert_eq!(judged(&scene, written).unwrap().lines(), [TEXT]);
}

#[test]
fn the_statement_is_written_as_the_format_says() {
    let scene = Scene::new();
    let text = |text: &str| {
        let length = u8::try_from(text.len()).unwrap();
        let head = match length {
            0..24 => vec![0x60 + length],
            _ => vec![0x78, length],
        };
        [&head, text.as_bytes()].concat()
    };
    let time = u32::try_from(attestation::fixture::NOW).unwrap();
    let expected = [
        &[0xa8, 0x01][..],
        &text("vrot confirmation v1"),
        &[0x02],
        &text("shop.example"),
        &[0x03, 0x58, 32],
        &[7; 32],
        &[0x04, 0x81],
        &text(TEXT),
        &[0x05, 0x18, 80, 0x06, 0x18, 24, 0x07, 0x1a],
        &time.to_be_bytes(),
        &[0x08],
        &text("confirmed"),
    ]
    .concat();
    assert_eq!(payload(&scene), expected);
}

#[test]
fn a_signature_over_another_answer_kind_or_encoding_confirms_nothing() {
    let scene = Scene::new();
    let payload = payload(&scene);
    let with = |from: &[u8], to: &[u8]| {
        let at = payload.windows(from.len()).position(|part| part == from);
        let (before, rest) = payload.split_at(at.unwrap());
        [before, to, rest.get(from.len()..).unwrap()].concat()
    };
    for changed in [
        // An answer that is none, and a statement of another kind.
        with(b"\x69confirmed", b"\x68declined"),
        with(b"confirmation v1", b"confirmation v2"),
        // Another encoding of the same, something behind it, and an entry that it does not have.
        with(&[0x05, 0x18, 80], &[0x05, 0x19, 0, 80]),
        [&payload[..], &[0]].concat(),
        [&[0xa9], payload.get(1..).unwrap(), &[0x09, 0x00]].concat(),
    ] {
        let refused = judged(&scene, scene.signed_payload(changed));
        assert!(
            matches!(refused, Err(ConfirmationRefused::Malformed)),
            "{refused:?}"
        );
    }
    // Lines and size that are not those of the text.
    let other_size = with(&[0x05, 0x18, 80], &[0x05, 0x18, 39]);
    let other_line = with(b"Pay 100", b"Pay 900");
    let refused = |payload| judged(&scene, scene.signed_payload(payload));
    assert!(matches!(
        refused(other_size),
        Err(ConfirmationRefused::Size(_))
    ));
    assert!(matches!(
        refused(other_line),
        Err(ConfirmationRefused::Text { .. })
    ));
}

/// A confirmation that version 1 of `vrot-confirm` made with swtpm, on a terminal of 60 columns and 12 rows.
#[test]
fn a_confirmation_of_the_first_version_is_still_verified() {
    let policy = ConfirmationPolicy::parse(include_str!("golden/policy.toml"), |_| {
        Ok(include_str!("golden/roots.pem").to_owned())
    })
    .unwrap();
    let text = include_str!("golden/text.txt");
    let expected = Expected {
        service: &"shop.example".parse().unwrap(),
        nonce: &Nonce::new([9; 32]).unwrap(),
        text: &ConfirmableText::new(text.trim_end()).unwrap(),
    };
    let golden = include_bytes!("golden/confirmation-v1.cbor");
    let made: u64 = include_str!("golden/time").trim().parse().unwrap();
    let at = UnixTime::since_unix_epoch(Duration::from_secs(made));
    let verified = judge(Some(golden), &expected, &policy, at)
        .unwrap()
        .unwrap();
    assert_eq!(
        verified.device().to_string(),
        "spiffe://demo.example/desk-1"
    );
    assert_eq!(verified.time(), made);
    assert_eq!(verified.lines().len(), 6);
}
