//! The format, and another implementation that reads and writes it.

use attestation::fixture::now;
use cert_chain::Digest32;
use coset::cbor::Value;
use coset::{CoseSign1, CoseSign1Builder, Header, HeaderBuilder, TaggedCborSerializable, iana};
use rcgen::PublicKeyData;
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use signed_data::{Content, FormatError, MAX_ATTACHED, SignedData, ToBeSigned};

use crate::scene::{DATA, Scene, Signer, in_full};
use attestation::fixture::sign_fixed;

#[test]
fn another_implementation_of_cose_verifies_what_we_sign() {
    let scene = Scene::new();
    for content in [in_full(), Content::Hash(Digest32::of(DATA))] {
        let ours = scene.signed(scene.label(7), content).to_cbor();
        let theirs = CoseSign1::from_tagged_slice(&ours).unwrap();
        let point = scene.key.der_bytes();
        let verify = |signature: &[u8], message: &[u8]| {
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
        };
        theirs.verify_signature(&[], verify).unwrap();
        assert!(theirs.verify_signature(b"context", verify).is_err());
        let algorithm = coset::RegisteredLabelWithPrivate::Assigned(iana::Algorithm::ES256);
        assert_eq!(theirs.protected.header.alg, Some(algorithm));
        // Nor does it write the same in another way.
        assert_eq!(theirs.to_tagged_vec().unwrap(), ours);
    }
}

#[test]
fn we_verify_what_another_implementation_of_cose_signs() {
    let scene = Scene::new();
    let label = scene.label(7);
    let template = CoseSign1::from_tagged_slice(&scene.attached().to_cbor()).unwrap();
    let claims = Value::Map(vec![
        (1.into(), label.source.to_string().into()),
        (2.into(), label.stream.as_str().into()),
        (6.into(), label.time.into()),
        ((-70_001).into(), 8.into()),
    ]);
    let protected: Header = HeaderBuilder::new()
        .algorithm(iana::Algorithm::ES256)
        .content_type("application/json".to_owned())
        .key_id(label.key.as_bytes().to_vec())
        .value(15, claims)
        .build();
    let made = CoseSign1Builder::new()
        .protected(protected)
        .unprotected(template.unprotected)
        .payload(DATA.to_vec())
        .create_signature(&[], |message| sign_fixed(&scene.key, message).to_vec())
        .build();
    let read = SignedData::from_cbor(&made.to_tagged_vec().unwrap()).unwrap();
    let verified = read.verify(None, &scene.anchors(), now()).unwrap();
    assert_eq!(verified.label().sequence, 8);
    assert_eq!(verified.label(), &scene.label(8));
    assert_eq!(verified.content(), &in_full());
}

/// Protected headers of version 1, byte by byte.
#[test]
fn the_label_is_written_as_the_format_says() {
    let scene = Scene::new();
    let label = scene.label(7);
    let claims = [
        &[0xa4, 0x01, 0x78, 45][..],
        label.source.to_string().as_bytes(),
        &[0x02, 0x72],
        b"room-1/temperature",
        &[0x06, 0x1a],
        &u32::try_from(label.time).unwrap().to_be_bytes(),
        &[0x3a, 0x00, 0x01, 0x11, 0x70, 0x07],
    ]
    .concat();
    let kid = [&[0x04, 0x58, 34], label.key.as_bytes()].concat();
    let attached = [
        &[0xa4, 0x01, 0x26, 0x03, 0x70][..],
        b"application/json",
        &kid,
        &[0x0f],
        &claims,
    ]
    .concat();
    let hash = [
        &[0xa5, 0x01, 0x26][..],
        &kid,
        &[0x0f],
        &claims,
        &[0x19, 0x01, 0x02, 0x2f, 0x19, 0x01, 0x03, 0x70],
        b"application/json",
    ]
    .concat();
    for (content, protected, payload) in [
        (in_full(), attached, DATA.to_vec()),
        (
            Content::Hash(Digest32::of(DATA)),
            hash,
            Digest32::of(DATA).as_bytes().to_vec(),
        ),
    ] {
        let found = scene.signed(label.clone(), content).to_cbor();
        let found = CoseSign1::from_tagged_slice(&found).unwrap();
        assert_eq!(found.protected.original_data, Some(protected));
        assert_eq!(found.payload, Some(payload));
    }
}

#[test]
fn data_that_are_too_long_to_travel_along_are_refused() {
    let scene = Scene::new();
    let long = Content::Attached(vec![0; MAX_ATTACHED + 1]);
    let refused = ToBeSigned::new(scene.label(7), long);
    assert!(matches!(refused, Err(FormatError::TooLong { .. })));
    let read = SignedData::from_cbor(&vec![0; signed_data::MAX_SIGNED_DATA + 1]);
    assert!(matches!(read, Err(FormatError::TooLong { .. })));
}

#[test]
fn texts_that_could_forge_a_line_are_none_of_a_label() {
    for text in ["", "a\nb", "a\u{202e}b", "a\u{200b}b", &"x".repeat(201)] {
        assert!(text.parse::<signed_data::LabelText>().is_err(), "{text:?}");
    }
    assert!("Messwert/Küche".parse::<signed_data::LabelText>().is_ok());
}
