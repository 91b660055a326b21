//! What happens while a batch is signed.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use attestation::fixture::now;
use attestation::{PolicyAbout, Verdict};
use data_signing::stream::collector::Collector;
use data_signing::stream::framing::FramingError;
use signed_data::Demand;
use signed_data::stream::{BatchInput, StreamVerifier};

use crate::scene::{SoftwareSigner, batches, options};

fn collector(most: usize) -> Collector {
    Collector::new(most, Duration::from_secs(3600))
}

fn reading(number: usize) -> Vec<u8> {
    number.to_string().into_bytes()
}

#[test]
fn the_next_batch_fills_while_one_is_signed_however_long_that_takes() {
    const MEANWHILE: usize = 1000;
    // A batch is ready with its first reading.
    let collector = Collector::new(65_536, Duration::ZERO);
    collector.add(reading(0));
    let mut signatures = 0;
    let mut source = SoftwareSigner::new();
    source.meanwhile = Box::new(|| {
        signatures += 1;
        if signatures == 1 {
            // The TPM signs for as long as a thousand readings take to come.
            for number in 1..=MEANWHILE {
                collector.add(reading(number));
            }
            assert_eq!(collector.waiting(), (MEANWHILE, false));
            collector.end(None);
        }
    });
    let (summary, bytes) = source.sign(&options(65_536), &collector);
    let found = source.verified(&bytes);
    drop(source);
    assert_eq!((summary.batches, summary.readings), (2, 1001));
    assert_eq!(signatures, 2);
    let expected: Vec<_> = (0..=MEANWHILE).map(reading).collect();
    assert_eq!(found.concat(), expected);
    assert_eq!(found[1].len(), MEANWHILE);
}

#[test]
fn a_batch_ends_when_it_is_full_and_what_has_no_room_waits() {
    let collector = Arc::new(collector(3));
    let filled = Arc::clone(&collector);
    let readings = thread::spawn(move || {
        (0..10).for_each(|number| filled.add(reading(number)));
        filled.end(None);
    });
    let mut sizes = Vec::new();
    while let Some(collected) = collector.take().unwrap() {
        sizes.push(collected.readings.len());
        // Nobody adds more than fits.
        assert!(collector.waiting().0 <= 3);
    }
    readings.join().unwrap();
    assert_eq!(sizes, [3, 3, 3, 1]);
}

#[test]
fn what_came_before_the_input_failed_is_signed_and_then_the_failure_is_told() {
    let collector = collector(65_536);
    collector.add(reading(0));
    collector.end(Some(FramingError::CutOff(2)));
    // Nothing comes behind the end.
    collector.add(reading(1));
    assert_eq!(collector.take().unwrap().unwrap().readings, [reading(0)]);
    let failed = collector.take();
    assert!(matches!(failed, Err(FramingError::CutOff(2))), "{failed:?}");
}

#[test]
fn credentials_come_with_the_first_batch_and_with_evidence() {
    let collector = collector(1);
    let mut number = 0;
    let mut source = SoftwareSigner::new();
    // The host does not answer at the second time: the stream goes on.
    source.evidence = [true, false, true].into();
    source.meanwhile = Box::new(|| {
        number += 1;
        match number {
            1 | 2 => collector.add(reading(number)),
            _ => collector.end(None),
        }
    });
    collector.add(reading(0));
    let (summary, bytes) = source.sign(&options(1), &collector);
    assert_eq!(summary.batches, 3);
    let credentials: Vec<_> = batches(&bytes)
        .iter()
        .map(|batch| batch.credentials().map(|found| found.evidence.is_some()))
        .collect();
    assert_eq!(credentials, [Some(true), None, Some(true)]);
    let policy = PolicyAbout::Vms(Box::new(source.host.policy(&source.vm)));
    let mut verifier = StreamVerifier::new();
    for batch in BatchInput::new(&bytes[..]) {
        let verified = verifier.verify(batch.unwrap(), &source.anchors(), now());
        let demand = Demand {
            max_evidence_age: Some(0),
            ..Demand::default()
        };
        let result = verifier.appraise(verified.unwrap(), &policy, &demand);
        assert_eq!(result.unwrap().verdict(), Verdict::Affirming);
    }
}

#[test]
fn a_host_that_does_not_answer_is_not_asked_for_each_batch() {
    const BATCHES: usize = 10;
    let collector = collector(1);
    let mut number = 0;
    let mut failing_since = None;
    let mut source = SoftwareSigner::new();
    source.evidence = [&[true][..], &[false; BATCHES]].concat().into();
    source.meanwhile = Box::new(|| {
        number += 1;
        if number == 1 {
            // Until evidence is due.
            thread::sleep(Duration::from_secs(1));
            failing_since = Some(Instant::now());
        }
        match number {
            BATCHES => collector.end(None),
            _ => collector.add(reading(number)),
        }
    });
    collector.add(reading(0));
    let mut options = options(1);
    options.evidence_seconds = 1;
    let (summary, _) = source.sign(&options, &collector);
    let failed = BATCHES - source.evidence.len();
    drop(source);
    assert_eq!(summary.batches, BATCHES as u64);
    // Once, or once for each second that the machine took.
    let seconds = failing_since.unwrap().elapsed().as_secs();
    assert!(failed >= 1, "evidence was due");
    assert!(failed as u64 <= 1 + seconds, "{failed} in {seconds} s");
}
