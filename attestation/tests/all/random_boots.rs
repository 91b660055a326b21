//! Random boots and policies against an oracle: what a TPM would hold after them, and what a policy
//! that lists those values must say of another boot.

use std::collections::BTreeMap;

use attestation::event_log::writer::{LogWriter, replayed};
use attestation::event_log::{EventType, UserspaceLog};
use attestation::fixture::{Host, nonce, now};
use attestation::{BOOT_PCRS, Binding, EventLog, Purpose, Verdict, appraise};
use cert_chain::HashAlgorithm;

/// SplitMix64: the same boots in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn one_in(&mut self, number: usize) -> bool {
        self.below(number) == 0
    }

    fn bytes(&mut self, longest: usize) -> Vec<u8> {
        (0..self.below(longest))
            .map(|_| self.next() as u8)
            .collect()
    }

    fn banks(&mut self) -> Vec<HashAlgorithm> {
        let mut banks = HashAlgorithm::ALL.to_vec();
        for _ in 0..self.below(4) {
            banks.remove(self.below(banks.len()));
        }
        banks
    }
}

const TYPES: [EventType; 6] = [
    EventType::SEPARATOR,
    EventType::IPL,
    EventType::EVENT_TAG,
    EventType::EFI_ACTION,
    EventType::EFI_BOOT_SERVICES_APPLICATION,
    EventType::EFI_PLATFORM_FIRMWARE_BLOB2,
];

/// A log with the oddities of real firmware, in any order.
fn boot(random: &mut Random) -> LogWriter {
    let has_hcrtm = random.one_in(4);
    let locality = [0u8, 3, 4].get(random.below(3)).copied().unwrap();
    let is_noted = random.one_in(2);
    let start = match (has_hcrtm, is_noted) {
        (true, _) => 4,
        (false, true) => locality,
        (false, false) => 0,
    };
    let mut log = if random.one_in(8) {
        LogWriter::sha1()
    } else {
        LogWriter::crypto_agile(&random.banks())
    }
    .started_at(start);
    if is_noted {
        let padding = vec![0; random.below(30)];
        log.note(
            0,
            &[b"StartupLocality\0".as_slice(), &[locality], &padding].concat(),
        );
    }
    if has_hcrtm {
        log.measure(0, EventType::EFI_HCRTM_EVENT, b"HCRTM");
    }
    log.measure(0, EventType::S_CRTM_VERSION, b"version");
    for _ in 0..random.below(60) {
        let data = random.bytes(100);
        if random.one_in(6) {
            log.note(
                [0, 24, u32::MAX].get(random.below(3)).copied().unwrap(),
                &data,
            );
        } else {
            let event_type = TYPES.get(random.below(TYPES.len())).copied().unwrap();
            log.measure(random.below(16) as u8, event_type, &data);
        }
    }
    if random.one_in(3) {
        let fill = if random.one_in(2) { 0x00 } else { 0xff };
        log.raw(&vec![fill; 5 + random.below(5000)]);
    }
    log
}

#[test]
fn every_random_boot_is_replayed_to_what_its_tpm_holds() {
    let mut random = Random(1);
    for number in 0..2000 {
        let log = boot(&mut random);
        let read = EventLog::parse(log.bytes()).unwrap();
        for bank in HashAlgorithm::ALL {
            assert_eq!(
                replayed(&read, bank),
                log.pcrs(bank),
                "boot {number}, {bank}"
            );
        }
        assert_eq!(read.replay_with(&UserspaceLog::default()), read.replay());
    }
}

#[test]
fn a_random_boot_that_was_cut_off_altered_or_shuffled_is_never_replayed_to_the_same_pcrs() {
    let mut random = Random(2);
    for number in 0..1000 {
        let log = boot(&mut random);
        let mut bytes = log.bytes().to_vec();
        if random.one_in(2) {
            bytes.truncate(random.below(bytes.len()));
        } else {
            let at = random.below(bytes.len());
            *bytes.get_mut(at).unwrap() ^= 1 << random.below(8);
        }
        // What is refused, or differs in what no PCR measures, is no lie about a PCR; whatever
        // else is read leads to other values or has the same measurements.
        let Ok(read) = EventLog::parse(&bytes) else {
            continue;
        };
        let whole = EventLog::parse(log.bytes()).unwrap();
        let measured = |log: &EventLog| -> Vec<(u32, Vec<String>)> {
            let events = log.events().iter().filter(|event| event.is_measured());
            events
                .map(|event| {
                    (
                        event.pcr,
                        event.digests.iter().map(ToString::to_string).collect(),
                    )
                })
                .collect()
        };
        let same_measurements = measured(&read) == measured(&whole);
        let same_values = HashAlgorithm::ALL
            .iter()
            .filter(|bank| !log.pcrs(**bank).is_empty())
            .all(|bank| replayed(&read, *bank) == log.pcrs(*bank));
        assert!(same_measurements || !same_values, "boot {number}");
    }
}

/// A small boot of a few measurements out of a few, so that two of them are often alike.
fn small_boot(random: &mut Random) -> LogWriter {
    let mut log = LogWriter::crypto_agile(&[HashAlgorithm::Sha256]);
    log.measure(0, EventType::S_CRTM_VERSION, b"version");
    for pcr in [4, 7, 9, 12] {
        if !random.one_in(3) {
            let data = [b"one", b"two"].get(random.below(2)).copied().unwrap();
            log.measure(pcr, EventType::EFI_ACTION, data);
        }
    }
    log
}

/// A policy that lists values of PCRs is met by the boots with these values, and by no other.
#[test]
fn a_random_policy_affirms_exactly_the_boots_that_have_its_pcr_values() {
    let mut random = Random(3);
    let host = Host::new("host-1");
    let mut vm = host.vm();
    let (mut affirmed, mut denied) = (0, 0);
    for number in 0..250 {
        let accepted: Vec<LogWriter> = (0..=random.below(3))
            .map(|_| small_boot(&mut random))
            .collect();
        let ignored: Vec<u8> = [7, 9, 12]
            .into_iter()
            .filter(|_| random.one_in(4))
            .collect();
        let booted = small_boot(&mut random);

        let value = |log: &LogWriter, pcr: u8| -> Vec<u8> {
            let pcrs: BTreeMap<u8, Vec<u8>> = log.pcrs(HashAlgorithm::Sha256);
            pcrs.get(&pcr).cloned().unwrap_or_else(|| vec![0; 32])
        };
        let listed: Vec<u8> = BOOT_PCRS
            .into_iter()
            .filter(|pcr| !ignored.contains(pcr))
            .collect();
        let mut text = host.policy_text(&vm);
        let reference = text.find("[vm.reference]").unwrap();
        text.truncate(reference);
        text += &format!("[vm.reference]\nignored_pcrs = {ignored:?}\n[vm.reference.pcrs]\n");
        for pcr in &listed {
            let values: Vec<String> = accepted
                .iter()
                .map(|log| hex::encode(value(log, *pcr)))
                .collect();
            text += &format!("{pcr} = {values:?}\n");
        }
        let expected = listed.iter().all(|pcr| {
            accepted
                .iter()
                .any(|log| value(log, *pcr) == value(&booted, *pcr))
        });

        vm.log = booted.bytes().to_vec();
        let policy = host.read_policy(&text).unwrap();
        let evidence = host.evidence(&vm, &nonce(), Binding::None);
        let verified = evidence
            .verify(&nonce(), &Purpose::Challenge, policy.anchors(), now())
            .unwrap();
        let verdict = appraise(verified, &policy).verdict();
        assert_eq!(
            verdict == Verdict::Affirming,
            expected,
            "{number}: {verdict:?}\n{text}"
        );
        *(if expected { &mut affirmed } else { &mut denied }) += 1;
    }
    assert!(affirmed > 20 && denied > 20, "{affirmed} and {denied}");
}
