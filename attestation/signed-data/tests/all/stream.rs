//! Streams: format, single readings, and that no byte can be changed.

use attestation::evidence::CarriedCrls;
use attestation::fixture::{NOW, now};
use attestation::{Binding, PolicyAbout, Verdict};
use cert_chain::{Digest32, TpmName};
use signed_data::stream::{
    Batch, BatchEvidence, BatchInput, BatchStatement, InputError, Link, MAX_READING, Position,
    ProvenReading, Readings, Seen, Span, StreamRefusal, StreamVerifier, UnsignedBatch,
};
use signed_data::{
    Content, Credentials, DataRefusal, Demand, EvidenceReference, Label, SignedData, appraise,
    evidence_nonce,
};

use crate::scene::{Scene, Signer};
use attestation::fixture::sign_fixed;

/// Readings with these texts.
pub(crate) fn readings(texts: &[&str]) -> Readings {
    let bytes = texts.iter().map(|text| text.as_bytes().to_vec());
    Readings::new(bytes.collect()).unwrap()
}

pub(crate) fn unsigned(
    scene: &Scene,
    sequence: u64,
    after: Option<Link>,
    texts: &[&str],
) -> UnsignedBatch {
    batch_with(scene.label(sequence), after, texts)
}

pub(crate) fn batch_with(label: Label, after: Option<Link>, texts: &[&str]) -> UnsignedBatch {
    let span = Span { from: 1, to: 2 };
    let readings = readings(texts);
    let content_type = "application/json".parse().unwrap();
    let statement = BatchStatement::over(&readings, &label, after, content_type, span);
    UnsignedBatch::new(label, statement, readings).unwrap()
}

pub(crate) fn sign(
    scene: &Scene,
    unsigned: UnsignedBatch,
    credentials: Option<Credentials>,
) -> Batch {
    let signature = sign_fixed(&scene.key, &unsigned.message());
    unsigned.signed(signature, credentials)
}

/// Four batches that follow each other, of three readings each; the first has credentials.
pub(crate) fn stream(scene: &Scene) -> Vec<Batch> {
    stream_with(scene, |batch| (batch == 0).then(|| scene.credentials()))
}

/// The same with these credentials.
pub(crate) fn stream_with(
    scene: &Scene,
    credentials: impl Fn(usize) -> Option<Credentials>,
) -> Vec<Batch> {
    let mut after = None;
    let texts = [
        ["a", "b", "c"],
        ["d", "e", "f"],
        ["g", "h", "i"],
        ["j", "k", "l"],
    ];
    let mut batches = Vec::new();
    for (sequence, texts) in (7..).zip(texts) {
        let unsigned = unsigned(scene, sequence, after, &texts);
        after = Some(unsigned.link());
        batches.push(sign(scene, unsigned, credentials(batches.len())));
    }
    batches
}

pub(crate) fn bytes_of(batches: &[Batch]) -> Vec<u8> {
    batches.iter().flat_map(Batch::to_stream).collect()
}

/// Verifies a stream from its beginning to its end.
fn verified(scene: &Scene, bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut verifier = StreamVerifier::new();
    let mut found = Vec::new();
    for batch in BatchInput::new(bytes) {
        let batch = batch.map_err(|error| error.to_string())?;
        let verified = verifier.verify(batch, &scene.anchors(), now());
        let verified = verified.map_err(|refusal| refusal.to_string())?;
        found.extend(verified.readings().iter().map(<[u8]>::to_vec));
    }
    Ok(found)
}

#[test]
fn a_stream_is_verified_reading_by_reading() {
    let scene = Scene::new();
    let found = verified(&scene, &bytes_of(&stream(&scene))).unwrap();
    let text = String::from_utf8(found.concat()).unwrap();
    assert_eq!(text, "abcdefghijkl");
}

#[test]
fn no_changed_byte_of_a_stream_goes_unseen() {
    let scene = Scene::new();
    let bytes = bytes_of(&stream(&scene)[..2]);
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x01;
        assert!(verified(&scene, &changed).is_err(), "byte {at}");
    }
}

#[test]
fn a_stream_that_was_cut_off_within_a_batch_is_told_from_one_that_ended() {
    let scene = Scene::new();
    let batches = stream(&scene);
    let (first, both) = (bytes_of(&batches[..1]), bytes_of(&batches[..2]));
    for length in 1..both.len() {
        match BatchInput::new(&both[..length]).last() {
            Some(Ok(_)) => assert_eq!(length, first.len()),
            Some(Err(InputError::CutOff { batches, .. })) => {
                assert_eq!(batches, u64::from(length > first.len()));
            }
            end => panic!("{end:?}"),
        }
    }
}

#[test]
fn a_single_reading_is_taken_out_and_verified_alone() {
    let scene = Scene::new();
    let batches = stream(&scene);
    let policy = scene.host.policy(&scene.vm);
    for (number, text) in [(3, "d"), (5, "f")] {
        let proven = batches[1].take(number, scene.credentials()).unwrap();
        let bytes = proven.to_cbor();
        assert!(ProvenReading::begins(&bytes));
        assert!(!ProvenReading::begins(&scene.attached().to_cbor()));
        let read = ProvenReading::from_cbor(&bytes).unwrap();
        assert_eq!(read, proven);
        let verified = read.verify(&scene.anchors(), now()).unwrap();
        assert_eq!(
            (verified.number(), verified.reading()),
            (number, text.as_bytes())
        );
        let demand = Demand {
            identity_alone: true,
            after: Some(7),
            ..Demand::default()
        };
        let result = appraise(verified.into_data(), &policy.clone().into(), &demand).unwrap();
        assert_eq!(result.verdict(), Verdict::Affirming);
        // No byte can be changed, and none left out.
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x01;
            let accepted = ProvenReading::from_cbor(&changed)
                .is_ok_and(|read| read.verify(&scene.anchors(), now()).is_ok());
            assert!(!accepted, "byte {at}");
            assert!(ProvenReading::from_cbor(&bytes[..at]).is_err(), "{at}");
        }
    }
    assert_eq!(batches[1].take(6, scene.credentials()), None);
    assert_eq!(batches[1].take(2, scene.credentials()), None);
}

#[test]
fn a_single_reading_under_another_number_is_refused() {
    let scene = Scene::new();
    let proven = stream(&scene)[1].take(4, scene.credentials()).unwrap();
    let mut bytes = proven.to_cbor();
    // Behind the signature: the number.
    let at = bytes.len() - (1 + 2 * 34) - 2 - 1;
    assert_eq!(bytes[at], 4);
    for (number, there) in [(3, true), (5, true), (6, false), (0, false)] {
        bytes[at] = number;
        let refused = ProvenReading::from_cbor(&bytes)
            .unwrap()
            .verify(&scene.anchors(), now());
        assert!(
            matches!(refused, Err(StreamRefusal::NotInBatch { .. })),
            "{there} {refused:?}"
        );
    }
}

#[test]
fn a_verifier_goes_on_from_a_position_that_was_kept() {
    let scene = Scene::new();
    let batches = stream(&scene);
    let mut verifier = StreamVerifier::new();
    for batch in &batches[..2] {
        verifier
            .verify(batch.clone(), &scene.anchors(), now())
            .unwrap();
    }
    let kept = verifier.position().unwrap().to_cbor();
    let read = Position::from_cbor(&kept).unwrap();
    assert_eq!(Some(&read), verifier.position());
    for at in 0..kept.len() {
        assert!(Position::from_cbor(&kept[..at]).is_err(), "{at}");
    }
    // With the credentials of the batches before, and no batch that was seen.
    let mut again = StreamVerifier::after(read);
    let seen = again.verify(batches[1].clone(), &scene.anchors(), now());
    assert!(
        matches!(seen, Err(StreamRefusal::Replayed { from: 3, to: 5 })),
        "{seen:?}"
    );
    let older = again.verify(batches[0].clone(), &scene.anchors(), now());
    assert!(
        matches!(older, Err(StreamRefusal::Replayed { from: 0, to: 2 })),
        "{older:?}"
    );
    let next = again
        .verify(batches[2].clone(), &scene.anchors(), now())
        .unwrap();
    assert_eq!(next.statement().first, 6);
}

#[test]
fn evidence_counts_for_the_batches_that_follow_as_long_as_its_age_is_demanded() {
    let scene = Scene::new();
    let policy = PolicyAbout::from(scene.host.policy(&scene.vm));
    let (first, after) = with_evidence(&scene);
    let mut late = scene.label(8);
    late.time = NOW + 30;
    let second = sign(&scene, batch_with(late, Some(after), &["d"]), None);
    let judge = |verifier: &mut StreamVerifier, batch: &Batch, most| {
        let anchors = scene.anchors();
        let verified = verifier.verify(batch.clone(), &anchors, now()).unwrap();
        let demand = Demand {
            max_evidence_age: most,
            ..Demand::default()
        };
        let result = verifier.appraise(verified, &policy, &demand).unwrap();
        let codes = result.reasons().map(|reason| reason.code);
        (
            result.verdict(),
            result.evidence_age(),
            codes.collect::<Vec<_>>(),
        )
    };
    let judged = |most| {
        let mut verifier = StreamVerifier::new();
        let first = judge(&mut verifier, &first, most);
        (first, judge(&mut verifier, &second, most))
    };
    let good = |age| (Verdict::Affirming, Some(age), vec![]);
    assert_eq!(judged(Some(30)), (good(0), good(30)));
    let old = (Verdict::Contraindicated, Some(30), vec!["evidence-old"]);
    assert_eq!(judged(Some(29)), (good(0), old));
    // Of any age, it is that of its own batch alone.
    let missing = (Verdict::Contraindicated, None, vec!["evidence-missing"]);
    assert_eq!(judged(None), (good(0), missing.clone()));
    // Not beyond a new beginning.
    let anew = sign(
        &scene,
        unsigned(&scene, 20, None, &["x"]),
        Some(scene.credentials()),
    );
    let mut verifier = StreamVerifier::new().allow_restarts();
    let verdicts = [&first, &anew].map(|batch| judge(&mut verifier, batch, Some(30)));
    assert_eq!(verdicts, [good(0), missing]);
}

#[test]
fn a_clock_that_goes_back_makes_no_evidence_younger() {
    let scene = Scene::new();
    let policy = PolicyAbout::from(scene.host.policy(&scene.vm));
    let demand = Demand {
        max_evidence_age: Some(20),
        ..Demand::default()
    };
    let mut verifier = StreamVerifier::new();
    let mut judge = |batch: Batch| {
        let verified = verifier.verify(batch, &scene.anchors(), now()).unwrap();
        let result = verifier.appraise(verified, &policy, &demand).unwrap();
        (result.verdict(), result.evidence(), result.evidence_age())
    };
    let (first, mut after) = with_evidence(&scene);
    assert_eq!(
        judge(first),
        (Verdict::Affirming, BatchEvidence::Own, Some(0))
    );
    let mut found = Vec::new();
    for (sequence, time) in [(8, NOW + 10), (9, NOW + 30), (10, NOW + 10)] {
        let label = Label {
            time,
            ..scene.label(sequence)
        };
        let unsigned = batch_with(label, Some(after), &["x"]);
        after = unsigned.link();
        found.push(judge(sign(&scene, unsigned, None)));
    }
    let earlier = BatchEvidence::Earlier(Verdict::Affirming);
    let old = (Verdict::Contraindicated, earlier, Some(30));
    let good = (Verdict::Affirming, earlier, Some(10));
    assert_eq!(found, [good, old, old]);
}

#[test]
fn revocation_lists_that_came_with_evidence_count_for_the_batches_that_follow() {
    let scene = Scene::new();
    let text = scene.host.policy_text(&scene.vm) + "\n[revocation]\nmax_crl_age_s = 86400\n";
    let policy = scene.host.read_policy(&text).unwrap();
    let anchors = policy.anchors().clone();
    let policy = PolicyAbout::from(policy);
    let judged = |revoked: &[&[u8]]| {
        let list = scene.host.revocation_list(1, 60, revoked).der().to_vec();
        let (first, after) = with_evidence_carrying(&scene, CarriedCrls::new([list]));
        let second = sign(&scene, unsigned(&scene, 8, Some(after), &["b"]), None);
        let mut verifier = StreamVerifier::new();
        let found = [first, second].map(|batch| {
            let verified = verifier.verify(batch, &anchors, now())?;
            let demand = Demand {
                max_evidence_age: Some(30),
                ..Demand::default()
            };
            let result = verifier.appraise(verified, &policy, &demand)?;
            Ok::<_, StreamRefusal>(result.verdict())
        });
        found.map(|found| found.map_err(|refusal| refusal.code()))
    };
    assert_eq!(judged(&[]), [Ok(Verdict::Affirming); 2]);
    assert_eq!(judged(&[&scene.host.certificate])[0], Err("chain"));
}

#[test]
fn only_a_batch_to_which_the_digests_lead_back_vouches_behind_a_position() {
    let scene = Scene::new();
    let policy = PolicyAbout::from(scene.host.policy(&scene.vm));
    let (first, after) = with_evidence(&scene);
    let second = unsigned(&scene, 8, Some(after), &["b"]);
    let third = unsigned(&scene, 9, Some(second.link()), &["c"]);
    let [second, third] = [second, third].map(|batch| sign(&scene, batch, None));
    let mut verifier = StreamVerifier::new();
    for batch in [&first, &second] {
        let verified = verifier.verify(batch.clone(), &scene.anchors(), now());
        verified.unwrap();
    }
    let position = verifier.position().unwrap();
    let judged = |batches: &[&Batch]| {
        let mut seen = Seen::up_to(position.clone());
        let ends: Vec<_> = (batches.iter())
            .map(|batch| seen.pass((*batch).clone()))
            .collect();
        let mut verifier = StreamVerifier::after_seen(seen, &policy, &scene.anchors(), now());
        let verified = verifier.verify(third.clone(), &scene.anchors(), now());
        let demand = Demand {
            max_evidence_age: Some(30),
            ..Demand::default()
        };
        let result = verifier.appraise(verified.unwrap(), &policy, &demand);
        (ends.last().copied(), result.unwrap().evidence())
    };
    let earlier = BatchEvidence::Earlier(Verdict::Affirming);
    assert_eq!(judged(&[&first, &second]), (Some(true), earlier));
    // Another beginning, nothing between, and no batch of the position.
    let (other, _) = with_evidence(&scene);
    assert_eq!(
        judged(&[&other, &second]),
        (Some(true), BatchEvidence::None)
    );
    assert_eq!(judged(&[&second]), (Some(true), BatchEvidence::None));
    assert_eq!(judged(&[&first]), (Some(false), BatchEvidence::None));
}

/// A first batch with evidence for it.
fn with_evidence(scene: &Scene) -> (Batch, Link) {
    with_evidence_carrying(scene, CarriedCrls::default())
}

fn with_evidence_carrying(scene: &Scene, lists: CarriedCrls) -> (Batch, Link) {
    let mut label = scene.label(7);
    let statement = unsigned(scene, 7, None, &["a"]).content().digest();
    let nonce = evidence_nonce(&label.key, label.sequence, &statement).unwrap();
    let evidence = scene.host.evidence(&scene.vm, &nonce, Binding::SignedData);
    let evidence = evidence.carrying(lists).to_cbor();
    label.evidence = Some(EvidenceReference {
        digest: Digest32::of(&evidence),
        taken: NOW,
    });
    let credentials = Credentials {
        evidence: Some(evidence.into()),
        ..scene.credentials()
    };
    let unsigned = batch_with(label, None, &["a"]);
    let link = unsigned.link();
    (sign(scene, unsigned, Some(credentials)), link)
}

#[test]
fn other_data_and_batches_that_are_too_large_are_none_of_a_stream() {
    let scene = Scene::new();
    // The signature of other data, with readings beside it.
    let label = Label {
        content_type: signed_data::stream::BATCH_TYPE.parse().unwrap(),
        ..scene.label(7)
    };
    let data = scene.signed(label, Content::Attached(b"\x80".to_vec()));
    let batch = [
        &[0x82][..],
        &data.to_cbor(),
        &[0x81, 0x82, 0x00, 0x41, b'a'],
    ]
    .concat();
    assert!(Batch::from_cbor(&batch).is_err());
    assert!(Readings::new(Vec::new()).is_err());
    assert!(Readings::new(vec![vec![0; MAX_READING + 1]]).is_err());
    assert!(Readings::new(vec![Vec::new(); 65_537]).is_err());
    assert!(Readings::new(vec![vec![0; MAX_READING]; 65]).is_err());
    assert!(Readings::new(vec![vec![0; MAX_READING]; 64]).is_ok());
    // A header that promises more than there can be.
    let mut input = BatchInput::new(&b"\x5a\xff\xff\xff\xff"[..]);
    assert!(matches!(input.next(), Some(Err(InputError::Format { .. }))));
    assert!(input.next().is_none());
}

#[test]
fn a_batch_is_verified_as_other_signed_data_are() {
    let scene = Scene::new();
    let batches = stream(&scene);
    let bytes = batches[0].to_cbor();
    // The COSE_Sign1 by itself: behind the array's first byte, before the readings.
    let readings = 1 + 3 * 4;
    let alone = SignedData::from_cbor(&bytes[1..bytes.len() - readings]).unwrap();
    assert!(alone.verify(None, &scene.anchors(), now()).is_ok());
    // By a key of another VM.
    let other = Scene::new();
    let refused = StreamVerifier::new().verify(batches[0].clone(), &other.anchors(), now());
    assert!(
        matches!(refused, Err(StreamRefusal::Data(DataRefusal::Chain(_)))),
        "{refused:?}"
    );
    // Nobody knows whose batches without credentials are.
    let refused = StreamVerifier::new()
        .join()
        .verify(batches[1].clone(), &scene.anchors(), now());
    assert!(
        matches!(refused, Err(StreamRefusal::CredentialsMissing(3))),
        "{refused:?}"
    );
}

/// The statement of version 1, byte by byte.
#[test]
fn what_is_signed_is_written_as_the_format_says() {
    let mut key = [0x22; 34];
    key[..2].copy_from_slice(&[0x00, 0x0b]);
    let label = Label {
        key: TpmName::from_bytes(&key).unwrap(),
        ..Scene::new().label(7)
    };
    let after = Link {
        digest: Digest32::new([0x11; 32]),
        next: 300,
    };
    let mut written = String::new();
    for after in [None, Some(after)] {
        let unsigned = batch_with(label.clone(), after, &["a", "", "b"]);
        written.push_str(&hex::encode(unsigned.statement().to_cbor()));
        written.push('\n');
    }
    assert_eq!(written, include_str!("batch_statement_v1.hex"));
}
