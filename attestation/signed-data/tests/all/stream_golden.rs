//! A stream, one of its readings and a position in it that were written once, and have to be read for ever:
//! these bytes are version 1 of their formats.

use std::fs;
use std::path::{Path, PathBuf};

use attestation::fixture::{NOW, now};
use cert_chain::TrustAnchors;
use signed_data::stream::{BatchInput, Position, ProvenReading, StreamVerifier};

use crate::scene::{Scene, Signer};
use crate::stream::{bytes_of, stream};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

#[test]
fn a_golden_stream_its_reading_and_position_are_read_as_they_were_meant() {
    let roots = fs::read_to_string(path("stream_roots.pem")).unwrap();
    let anchors = TrustAnchors::from_pem(&roots).unwrap();
    let bytes = fs::read(path("stream_v1.cbor")).unwrap();
    let mut verifier = StreamVerifier::new();
    let mut found = Vec::new();
    for batch in BatchInput::new(&bytes[..]) {
        let verified = verifier.verify(batch.unwrap(), &anchors, now()).unwrap();
        found.push((verified.statement().first, verified.data().label().sequence));
    }
    assert_eq!(found, [(0, 7), (3, 8), (6, 9), (9, 10)]);

    let position = fs::read(path("stream_position_v1.cbor")).unwrap();
    let position = Position::from_cbor(&position).unwrap();
    assert_eq!(Some(&position), verifier.position());

    let reading = fs::read(path("proven_reading_v1.cbor")).unwrap();
    let reading = ProvenReading::from_cbor(&reading).unwrap();
    let reading = reading.verify(&anchors, now()).unwrap();
    assert_eq!((reading.number(), reading.reading()), (4, &b"e"[..]));
    assert_eq!(reading.data().label().time, NOW);
}

/// Only a new version of a format has a reason to run this.
#[test]
#[ignore = "writes the golden files anew"]
fn a_golden_stream_is_written() {
    let scene = Scene::new();
    let batches = stream(&scene);
    let mut verifier = StreamVerifier::new();
    for batch in &batches {
        let verified = verifier.verify(batch.clone(), &scene.anchors(), now());
        verified.unwrap();
    }
    let reading = batches[1].take(4, scene.credentials()).unwrap();
    for (name, bytes) in [
        (
            "stream_roots.pem",
            scene.host.issuer.certificate_pem().into_bytes(),
        ),
        ("stream_v1.cbor", bytes_of(&batches)),
        (
            "stream_position_v1.cbor",
            verifier.position().unwrap().to_cbor(),
        ),
        ("proven_reading_v1.cbor", reading.to_cbor()),
    ] {
        fs::write(path(name), bytes).unwrap();
    }
}
