//! What is told about batches and readings that are not the next ones of their stream.

use attestation::fixture::now;
use signed_data::stream::{Batch, StreamRefusal, StreamVerifier};
use signed_data::{DataRefusal, Label};

use crate::scene::{Scene, Signer};
use crate::stream::{batch_with, sign, stream, stream_with, unsigned};

/// What a verifier says of the last of these batches, which come one after the other; if it says that
/// something is missing, by what follows.
fn said(scene: &Scene, mut verifier: StreamVerifier, batches: &[&Batch]) -> Option<StreamRefusal> {
    for (at, batch) in batches.iter().enumerate() {
        let verified = verifier.verify((*batch).clone(), &scene.anchors(), now());
        if let Err(refusal) = verified {
            let following = batches[at + 1..].iter().map(|batch| (*batch).clone());
            return Some(verifier.explain(refusal, following, &scene.anchors(), now()));
        }
    }
    None
}

fn code(scene: &Scene, batches: &[&Batch]) -> Option<&'static str> {
    said(scene, StreamVerifier::new(), batches).map(|refusal| refusal.code())
}

#[test]
fn replayed_reordered_and_dropped_batches_are_told_apart_by_their_readings() {
    let scene = Scene::new();
    let all = stream(&scene);
    let [a, b, c, d] = &all[..] else {
        panic!("four")
    };
    let said = |batches: &[&Batch]| said(&scene, StreamVerifier::new(), batches);
    assert!(said(&[a, b, c, d]).is_none());
    let replayed = said(&[a, b, c, b]);
    assert!(
        matches!(replayed, Some(StreamRefusal::Replayed { from: 3, to: 5 })),
        "{replayed:?}"
    );
    let again = said(&[a, a]);
    assert!(
        matches!(again, Some(StreamRefusal::Replayed { from: 0, to: 2 })),
        "{again:?}"
    );
    let dropped = said(&[a, d]);
    assert!(
        matches!(dropped, Some(StreamRefusal::Dropped { from: 3, to: 8 })),
        "{dropped:?}"
    );
    let reordered = said(&[a, c, d, b]);
    assert!(
        matches!(reordered, Some(StreamRefusal::Reordered { from: 3, to: 5 })),
        "{reordered:?}"
    );
    let repeated = stream_with(&scene, |_| Some(scene.credentials()));
    let begun = said(&[&repeated[1]]);
    assert!(
        matches!(begun, Some(StreamRefusal::BegunEarlier(3))),
        "{begun:?}"
    );
}

#[test]
fn a_stream_can_be_taken_up_in_its_middle_if_that_is_wanted() {
    let scene = Scene::new();
    let all = stream_with(&scene, |batch| (batch == 1).then(|| scene.credentials()));
    let joined = StreamVerifier::new().join();
    assert!(said(&scene, joined.clone(), &[&all[1], &all[2], &all[3]]).is_none());
    let dropped = said(&scene, joined, &[&all[1], &all[3]]);
    assert!(matches!(dropped, Some(StreamRefusal::Dropped { .. })));
}

#[test]
fn a_fork_is_told_from_a_replay() {
    let scene = Scene::new();
    let all = stream(&scene);
    // Another batch of the same readings, signed later, in between, or on top of an older one.
    let later = sign(
        &scene,
        unsigned(&scene, 20, Some(all[0].link()), &["x", "y", "z"]),
        None,
    );
    let [a, b, c, d] = &all[..] else {
        panic!("four")
    };
    assert_eq!(code(&scene, &[a, b, &later]), Some("forked"));
    assert_eq!(code(&scene, &[a, b, c, d, &later]), Some("forked"));
    assert_eq!(code(&scene, &[a, &later, b]), Some("forked"));
    // The other way alone is a stream like any other.
    assert_eq!(code(&scene, &[a, &later]), None);
    // On another way on, the next readings follow other ones.
    let other = sign(
        &scene,
        unsigned(&scene, 30, Some(later.link()), &["q"]),
        None,
    );
    assert_eq!(code(&scene, &[a, b, &other]), Some("forked"));
}

#[test]
fn a_stream_that_begins_anew_is_told_and_taken_if_that_is_wanted() {
    let scene = Scene::new();
    let all = stream(&scene);
    let anew = |sequence| {
        let unsigned = unsigned(&scene, sequence, None, &["x"]);
        sign(&scene, unsigned, Some(scene.credentials()))
    };
    let (later, earlier) = (anew(20), anew(3));
    let restarted = said(&scene, StreamVerifier::new(), &[&all[0], &later]);
    assert!(
        matches!(restarted, Some(StreamRefusal::Restarted { expected: 3 })),
        "{restarted:?}"
    );
    let allowing = || StreamVerifier::new().allow_restarts();
    assert!(said(&scene, allowing(), &[&all[0], &later]).is_none());
    // A beginning that was seen before is none.
    let replayed = said(&scene, allowing(), &[&all[0], &earlier]);
    assert!(
        matches!(replayed, Some(StreamRefusal::Replayed { .. })),
        "{replayed:?}"
    );
}

#[test]
fn batches_of_other_streams_and_sources_are_told() {
    let scene = Scene::new();
    let all = stream(&scene);
    let label = Label {
        stream: "room-2/temperature".parse().unwrap(),
        ..scene.label(8)
    };
    let other = sign(&scene, batch_with(label, Some(all[0].link()), &["x"]), None);
    assert_eq!(code(&scene, &[&all[0], &other]), Some("stream"));
    // Another key of the same VM.
    let second = Scene {
        host: scene.host,
        vm: scene.vm,
        key: rcgen::KeyPair::generate().unwrap(),
    };
    let unsigned = unsigned(&second, 8, Some(all[0].link()), &["x"]);
    let other = sign(&second, unsigned, Some(second.credentials()));
    assert_eq!(code(&second, &[&all[0], &other]), Some("source"));
}

#[test]
fn a_batch_with_another_ones_signature_or_number_is_refused() {
    let scene = Scene::new();
    let all = stream(&scene);
    let mut bytes = all[1].to_cbor();
    let found = bytes
        .windows(64)
        .position(|part| part == all[1].signature());
    let at = found.unwrap();
    bytes[at..at + 64].copy_from_slice(all[2].signature());
    let refused = said(
        &scene,
        StreamVerifier::new(),
        &[&all[0], &Batch::from_cbor(&bytes).unwrap()],
    );
    assert!(
        matches!(refused, Some(StreamRefusal::Data(DataRefusal::Signature))),
        "{refused:?}"
    );
    // Its source says that it goes on elsewhere than it does.
    let mut after = all[0].link();
    after.next = 5;
    let wrong = sign(&scene, unsigned(&scene, 8, Some(after), &["x"]), None);
    assert_eq!(code(&scene, &[&all[0], &wrong]), Some("misnumbered"));
}

#[test]
fn replayed_reordered_dropped_altered_and_added_readings_are_told_apart() {
    let scene = Scene::new();
    let all = stream(&scene);
    let genuine = all[1].to_cbor();
    // Each reading has four bytes: array, place, header, text.
    let items: Vec<_> = genuine[genuine.len() - 12..].chunks(4).collect();
    let head = &genuine[..genuine.len() - 13];
    let with = |items: &[&[u8]]| {
        let count = 0x80 | u8::try_from(items.len()).unwrap();
        let bytes = [head, &[count], &items.concat()].concat();
        let batch = Batch::from_cbor(&bytes).unwrap();
        said(&scene, StreamVerifier::new(), &[&all[0], &batch])
    };
    let [d, e, f] = items[..] else {
        panic!("three")
    };
    assert!(with(&[d, e, f]).is_none());
    let dropped = with(&[d, f]);
    assert!(
        matches!(
            dropped,
            Some(StreamRefusal::ReadingsDropped { from: 4, to: 4 })
        ),
        "{dropped:?}"
    );
    let last = with(&[d]);
    assert!(
        matches!(
            last,
            Some(StreamRefusal::ReadingsDropped { from: 4, to: 5 })
        ),
        "{last:?}"
    );
    let replayed = with(&[d, e, e]);
    assert!(
        matches!(replayed, Some(StreamRefusal::ReadingReplayed(4))),
        "{replayed:?}"
    );
    let reordered = with(&[d, f, e]);
    assert!(
        matches!(reordered, Some(StreamRefusal::ReadingsReordered(5))),
        "{reordered:?}"
    );
    let added = with(&[d, e, f, &[0x82, 0x03, 0x41, b'x']]);
    assert!(
        matches!(added, Some(StreamRefusal::ReadingAdded(6))),
        "{added:?}"
    );
    let altered_to = [0x82, 0x01, 0x41, b'x'];
    // Altered, or put into another's place and said to belong there.
    let moved = [[0x82, 0x01, 0x41, b'f'], [0x82, 0x02, 0x41, b'e']];
    for items in [[d, &altered_to, f], [d, &moved[0], &moved[1]]] {
        let altered = with(&items);
        assert!(
            matches!(
                altered,
                Some(StreamRefusal::ReadingsAltered { from: 3, to: 5 })
            ),
            "{altered:?}"
        );
    }
}
