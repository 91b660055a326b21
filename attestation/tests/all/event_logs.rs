//! Event logs as firmware writes them, with the oddities of real machines, against the PCRs that a
//! TPM has after such a boot.

use attestation::event_log::writer::{LogWriter, replayed};
use attestation::event_log::{
    EventLogError, EventType, LogPart, MAX_EVENTS, MAX_LOG, UserspaceLog, UserspaceLogError,
};
use attestation::{BOOT_PCRS, EventLog, ReferenceError, reference_values};
use cert_chain::HashAlgorithm::{self, Sha1, Sha256, Sha384, Sha512};

const NO_PCR: u32 = u32::MAX;

/// The measurements of a small boot, into whatever banks the log announces.
fn boot(log: &mut LogWriter) {
    log.measure(0, EventType::S_CRTM_VERSION, b"firmware 1.2");
    log.measure(0, EventType::EFI_PLATFORM_FIRMWARE_BLOB, b"firmware");
    for pcr in 0..8 {
        log.measure(pcr, EventType::SEPARATOR, &[0; 4]);
    }
    log.measure(4, EventType::EFI_BOOT_SERVICES_APPLICATION, b"boot loader");
    log.measure(8, EventType::IPL, b"kernel_cmdline: ro");
}

fn booted(mut log: LogWriter) -> LogWriter {
    boot(&mut log);
    log
}

/// The log leads to the PCRs of the TPM, in each of these banks.
fn assert_replayed(log: &LogWriter, banks: &[HashAlgorithm]) {
    let read = EventLog::parse(log.bytes()).unwrap();
    for bank in banks {
        assert_eq!(replayed(&read, *bank), log.pcrs(*bank), "{bank}");
        assert!(!log.pcrs(*bank).is_empty(), "{bank}");
    }
}

fn refused(log: &LogWriter) -> EventLogError {
    EventLog::parse(log.bytes()).unwrap_err()
}

#[test]
fn every_bank_is_replayed_whatever_the_others_are() {
    for banks in [
        [Sha1].as_slice(),
        &[Sha256],
        &[Sha384],
        &[Sha512],
        &[Sha384, Sha1],
        &HashAlgorithm::ALL,
    ] {
        assert_replayed(&booted(LogWriter::crypto_agile(banks)), banks);
    }
    assert_replayed(&booted(LogWriter::sha1()), &[Sha1]);
}

#[test]
fn algorithms_that_are_not_computed_here_are_skipped_by_the_length_that_the_header_states() {
    const SM3: u16 = 0x12;
    const SHA3_384: u16 = 0x28;
    let banks = [
        (SM3, 32),
        (Sha256.identifier(), 32),
        (SHA3_384, 48),
        (0x7fff, 7),
    ];
    let mut log = LogWriter::announcing(&banks, b"made by somebody");
    let digest = vec![7; 32];
    log.extend(Sha256, 4, &digest);
    let digests = [
        (SHA3_384, vec![1; 48]),
        (0x7fff, vec![2; 7]),
        (Sha256.identifier(), digest),
        (SM3, vec![3; 32]),
    ];
    log.event(4, EventType::SEPARATOR, &digests, b"data");
    assert_replayed(&log, &[Sha256]);
    let read = EventLog::parse(log.bytes()).unwrap();
    assert_eq!(read.algorithms(), [Sha256]);
    assert_eq!(read.events().last().unwrap().data, b"data");
}

#[test]
fn pcr_0_begins_where_the_startup_locality_says_however_the_note_is_padded() {
    for (locality, padding) in [(0, 0), (3, 0), (3, 3), (3, 23), (4, 0), (4, 1)] {
        let note = [
            b"StartupLocality\0".as_slice(),
            &[locality],
            &vec![0; padding],
        ]
        .concat();
        for mut log in [LogWriter::crypto_agile(&[Sha1, Sha256]), LogWriter::sha1()] {
            log = log.started_at(locality);
            log.note(0, &note);
            // Noted twice is as good, if it says the same.
            log.note(NO_PCR, &note);
            assert_replayed(&booted(log), &[Sha1]);
        }
    }
}

#[test]
fn a_startup_locality_that_cannot_be_is_refused_and_named() {
    let note = |locality: &[u8]| [b"StartupLocality\0".as_slice(), locality].concat();
    for notes in [
        vec![note(&[5])],
        vec![note(&[])],
        vec![note(&[3]), note(&[0])],
    ] {
        let mut log = LogWriter::crypto_agile(&[Sha256]);
        for note in &notes {
            log.note(0, note);
        }
        let error = refused(&log);
        let EventLogError::StartupLocality { event, offset } = error else {
            panic!("{error}");
        };
        assert_eq!(event, notes.len());
        assert!(error.to_string().contains(&format!("offset {offset}")));
    }
}

/// TPM 2.0 Part 1 §34.3: what was measured before `TPM2_Startup` outlives it, whatever its
/// locality.
#[test]
fn pcr_0_begins_at_4_where_an_h_crtm_was_measured() {
    for locality in [None, Some(0), Some(3), Some(4)] {
        let mut log = LogWriter::crypto_agile(&[Sha1, Sha256, Sha384]).started_at(4);
        if let Some(locality) = locality {
            log.note(0, &[b"StartupLocality\0".as_slice(), &[locality]].concat());
        }
        log.measure(0, EventType::EFI_HCRTM_EVENT, b"HCRTM");
        assert_replayed(&booted(log), &[Sha1, Sha256, Sha384]);
    }
    // Somewhere else it says nothing about PCR 0.
    let mut log = LogWriter::crypto_agile(&[Sha256]);
    log.measure(1, EventType::EFI_HCRTM_EVENT, b"HCRTM");
    assert_replayed(&booted(log), &[Sha256]);
}

#[test]
fn a_bank_that_an_event_has_no_digest_of_is_unknown_there_and_the_others_are_not() {
    let mut log = booted(LogWriter::crypto_agile(&[Sha1, Sha256, Sha384]));
    let (event, offset) = (12 + 1, log.bytes().len());
    log.measure_in(&[Sha256], 12, EventType::IPL, b"by the boot stub");
    log.measure(12, EventType::IPL, b"and more");
    assert_replayed(&log, &[Sha256]);
    let read = EventLog::parse(log.bytes()).unwrap();
    let replay = read.replay();
    for bank in [Sha1, Sha384] {
        let found = replay.bank(bank).unwrap();
        let gap = found.value(12).unwrap_err();
        assert_eq!((gap.event, gap.offset, gap.pcr), (event, offset, 12));
        assert_eq!(found.first_gap(), Some(gap));
        let text = gap.to_string();
        for part in [
            bank.name(),
            "event 13",
            &format!("offset {offset}"),
            "PCR 12",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let value = found.value(4).unwrap();
        assert_eq!(value.as_bytes(), log.pcrs(bank).get(&4).unwrap());
    }
}

#[test]
fn a_bank_that_is_announced_and_never_used_is_not_replayed() {
    let mut log = LogWriter::crypto_agile(&[Sha1, Sha256, Sha384]);
    log.measure_in(&[Sha256], 0, EventType::S_CRTM_VERSION, b"firmware");
    log.note(0, b"something");
    let replay = EventLog::parse(log.bytes()).unwrap().replay();
    let banks: Vec<_> = replay.banks().map(|bank| bank.bank()).collect();
    assert_eq!(banks, [Sha256]);
}

#[test]
fn a_measurement_without_any_digest_or_with_too_many_is_refused_and_a_note_without_is_not() {
    let sha256 = |byte| (Sha256.identifier(), vec![byte; 32]);
    let mut log = booted(LogWriter::crypto_agile(&[Sha256]));
    log.event(NO_PCR, EventType::NO_ACTION, &[], b"a note");
    assert_replayed(&log, &[Sha256]);
    let offset = log.bytes().len();
    for digests in [vec![], vec![sha256(1), sha256(1)]] {
        let mut log = log.clone();
        log.event(5, EventType::IPL, &digests, b"data");
        let found = digests.len() as u32;
        assert!(matches!(
            refused(&log),
            EventLogError::DigestCount { event: 14, offset: at, found: f, .. } if at == offset && f == found
        ));
    }
}

#[test]
fn a_digest_of_a_bank_that_is_not_announced_or_was_given_already_is_refused() {
    for identifier in [Sha1.identifier(), Sha256.identifier()] {
        let mut log = LogWriter::crypto_agile(&[Sha256, Sha384]);
        let digests = [
            (Sha256.identifier(), vec![1; 32]),
            (identifier, vec![2; 32]),
        ];
        log.event(5, EventType::IPL, &digests, b"data");
        let error = refused(&log);
        assert!(
            matches!(error, EventLogError::Algorithm { event: 1, algorithm, .. } if algorithm == identifier)
        );
    }
}

#[test]
fn a_header_that_announces_impossible_banks_is_refused() {
    for banks in [
        vec![],
        vec![(Sha256.identifier(), 20)],
        vec![(Sha1.identifier(), 20), (Sha1.identifier(), 20)],
        vec![(Sha1.identifier(), 20); 17],
    ] {
        let log = LogWriter::announcing(&banks, b"");
        assert!(
            matches!(refused(&log), EventLogError::Algorithms { .. }),
            "{banks:?}"
        );
    }
}

#[test]
fn what_fills_the_log_area_behind_the_last_event_is_no_event() {
    for form in [LogWriter::crypto_agile(&[Sha1, Sha256]), LogWriter::sha1()] {
        for byte in [0x00, 0xff] {
            for length in [5, 16, 31, 32, 33, 4096, 65_536] {
                let mut log = booted(form.clone());
                let events = EventLog::parse(log.bytes()).unwrap().events().len();
                log.raw(&vec![byte; length]);
                assert_replayed(&log, &[Sha1]);
                let read = EventLog::parse(log.bytes()).unwrap();
                assert_eq!(read.events().len(), events, "{length} bytes 0x{byte:02x}");
            }
        }
    }
}

#[test]
fn bytes_behind_the_last_event_that_are_neither_event_nor_fill_are_refused() {
    for form in [LogWriter::crypto_agile(&[Sha1, Sha256]), LogWriter::sha1()] {
        for junk in [
            [vec![0; 64], vec![1]].concat(),
            [vec![0xff; 64], vec![0]].concat(),
            [vec![0; 64], vec![0xff; 64]].concat(),
            [vec![0xff; 64], vec![0; 64]].concat(),
            vec![0x5a; 64],
            b"\0\0\0\x01".to_vec(),
            b"not an event, but words".to_vec(),
        ] {
            let mut log = booted(form.clone());
            let offset = log.bytes().len();
            log.raw(&junk);
            let error = refused(&log).to_string();
            assert!(error.contains("offset "), "{error}");
            let at: usize = error
                .split_once("offset ")
                .unwrap()
                .1
                .split(')')
                .next()
                .unwrap()
                .parse()
                .unwrap();
            assert!(at >= offset, "{error}");
        }
    }
}

#[test]
fn an_area_that_nothing_was_written_to_is_no_log() {
    for byte in [0x00, 0xff] {
        for length in [5, 32, 4096] {
            let area = vec![byte; length];
            assert_eq!(EventLog::parse(&area), Err(EventLogError::Filler { byte }));
        }
    }
    assert_eq!(EventLog::parse(&[]), Err(EventLogError::Empty));
    let blank_then_more = [vec![0; 4095], vec![1]].concat();
    assert!(matches!(
        EventLog::parse(&blank_then_more),
        Err(EventLogError::NoEvent {
            event: 0,
            offset: 0
        })
    ));
}

#[test]
fn a_note_without_a_pcr_is_kept_as_it_is_and_extends_nothing() {
    let mut log = LogWriter::crypto_agile(&[Sha1, Sha256]);
    log.note(NO_PCR, b"SP800-155 Event");
    log.note(24, b"elsewhere");
    boot(&mut log);
    assert_replayed(&log, &[Sha1, Sha256]);
    let read = EventLog::parse(log.bytes()).unwrap();
    let pcrs: Vec<u32> = read
        .events()
        .iter()
        .map(|event| event.pcr)
        .take(4)
        .collect();
    assert_eq!(pcrs, [0, NO_PCR, 24, 0]);
}

#[test]
fn a_measurement_into_a_pcr_that_no_tpm_has_is_refused() {
    for pcr in [24, NO_PCR] {
        let mut log = LogWriter::sha1();
        log.event(pcr, EventType::IPL, &[], b"data");
        assert!(
            matches!(refused(&log), EventLogError::Pcr { event: 0, offset: 0, pcr: p } if p == pcr)
        );
    }
}

#[test]
fn the_pcrs_of_a_dynamic_launch_begin_at_zero_once_something_was_measured_into_them() {
    let mut log = booted(LogWriter::crypto_agile(&[Sha256]));
    log.measure(17, EventType::EVENT_TAG, b"dynamic launch");
    assert_replayed(&log, &[Sha256]);
    let replay = EventLog::parse(log.bytes()).unwrap().replay();
    let untouched = replay.bank(Sha256).unwrap().value(18).unwrap();
    assert_eq!(untouched, Sha256.filled(0xff));
}

#[test]
fn every_truncation_of_a_log_is_refused_or_ends_at_an_event() {
    let log = booted(LogWriter::crypto_agile(&[Sha1, Sha256]));
    let events = EventLog::parse(log.bytes()).unwrap().events().len();
    let mut complete = 0;
    for length in 1..=log.bytes().len() {
        match EventLog::parse(log.bytes().get(..length).unwrap()) {
            Ok(read) => {
                complete += 1;
                assert_eq!(read.events().len(), complete);
            }
            Err(error) => assert!(matches!(error, EventLogError::Truncated { .. }), "{error}"),
        }
    }
    assert_eq!(complete, events);
}

#[test]
fn logs_of_several_mib_are_read_and_longer_ones_refused() {
    let mut log = booted(LogWriter::crypto_agile(&[Sha256]));
    while log.bytes().len() < 5 * 1024 * 1024 {
        log.measure(8, EventType::IPL, &[b'g'; 400]);
    }
    assert_replayed(&log, &[Sha256]);
    log.raw(&vec![0; MAX_LOG - log.bytes().len()]);
    assert_replayed(&log, &[Sha256]);
    log.raw(&[0]);
    assert_eq!(
        refused(&log),
        EventLogError::TooLong {
            length: MAX_LOG + 1
        }
    );

    let mut log = LogWriter::sha1();
    for _ in 0..=MAX_EVENTS {
        log.note(0, b"");
    }
    assert_eq!(refused(&log), EventLogError::TooManyEvents);
}

#[test]
fn a_stated_length_beyond_the_log_costs_no_memory() {
    let mut log = LogWriter::sha1();
    log.raw(&[[0, 0, 0, 0, 1, 0, 0, 0].as_slice(), &[0x11; 20], &[0xff; 4]].concat());
    assert!(matches!(refused(&log), EventLogError::Truncated { .. }));
}

#[test]
fn a_log_makes_no_reference_of_a_bank_that_nothing_was_measured_into() {
    let log = booted(LogWriter::sha1());
    let error =
        reference_values(&EventLog::parse(log.bytes()).unwrap(), Sha256, BOOT_PCRS).unwrap_err();
    let found = vec![Sha1];
    assert_eq!(
        error,
        ReferenceError::Bank {
            wanted: vec![Sha256],
            found
        }
    );
    assert!(error.to_string().contains("sha256"), "{error}");

    let mut log = LogWriter::crypto_agile(&[Sha256]);
    log.note(0, b"something");
    let error =
        reference_values(&EventLog::parse(log.bytes()).unwrap(), Sha256, BOOT_PCRS).unwrap_err();
    assert!(matches!(error, ReferenceError::Bank { .. }));

    let mut log = booted(LogWriter::crypto_agile(&[Sha1, Sha256]));
    log.measure_in(&[Sha1], 12, EventType::IPL, b"by the boot stub");
    let read = EventLog::parse(log.bytes()).unwrap();
    let error = reference_values(&read, Sha256, BOOT_PCRS).unwrap_err();
    assert!(matches!(error, ReferenceError::Gap(gap) if gap.pcr == 12));
    assert!(reference_values(&read, Sha256, [0, 4, 7]).is_ok());
}

/// A record as systemd writes it.
fn record(pcr: u8, digests: &[(&str, &[u8])], what: &str) -> String {
    let digests: Vec<String> = digests
        .iter()
        .map(|(bank, digest)| {
            let digest = hex::encode(digest);
            format!(r#"{{"hashAlg":"{bank}","digest":"{digest}"}}"#)
        })
        .collect();
    let digests = digests.join(",");
    format!(
        "\x1e{{\"pcr\":{pcr},\"digests\":[{digests}],\"content_type\":\"systemd\",\
         \"content\":{{\"eventType\":\"phase\",\"string\":\"{what}\",\"timestamp\":1}}}}\n"
    )
}

#[test]
fn what_the_running_system_measures_goes_on_from_where_the_firmwares_log_ends() {
    let mut log = booted(LogWriter::crypto_agile(&[Sha256, Sha384]));
    let firmware = EventLog::parse(log.bytes()).unwrap();
    let mut text = String::new();
    for (pcr, what) in [
        (11, "enter-initrd"),
        (11, "ready"),
        (15, "machine-id"),
        (8, "more"),
    ] {
        let (short, long) = ([pcr; 32], [pcr; 48]);
        log.extend(Sha256, pcr, &short);
        log.extend(Sha384, pcr, &long);
        // Of a bank that firmware measured nothing into, or that is not computed here.
        let digests: [(&str, &[u8]); 4] = [
            ("sha1", &[9; 20]),
            ("sha256", &short),
            ("sha384", &long),
            ("sm3_256", &[9; 32]),
        ];
        text += &record(pcr, &digests, what);
    }
    text += "\x1e{\"nv_index\":30474240,\"digests\":[{\"hashAlg\":\"sha256\",\"digest\":\"00\"}]}"
        .replace("\"00\"", &format!("\"{}\"", "07".repeat(32)))
        .as_str();
    let userspace = UserspaceLog::parse(text.as_bytes()).unwrap();
    assert_eq!(userspace.events().len(), 5);
    let replay = firmware.replay_with(&userspace);
    assert_eq!(replay.banks().count(), 2);
    for bank in [Sha256, Sha384] {
        for (pcr, value) in log.pcrs(bank) {
            let found = replay.bank(bank).unwrap().value(pcr).unwrap();
            assert_eq!(found.as_bytes(), value, "PCR {pcr}");
        }
    }
    assert_eq!(
        firmware.replay_with(&UserspaceLog::default()),
        firmware.replay()
    );
}

#[test]
fn a_bank_that_the_running_systems_log_lacks_is_unknown_in_the_pcrs_it_names() {
    let firmware =
        EventLog::parse(booted(LogWriter::crypto_agile(&[Sha1, Sha256])).bytes()).unwrap();
    let text = record(11, &[("sha256", &[1; 32])], "ready");
    let userspace = UserspaceLog::parse(text.as_bytes()).unwrap();
    let replay = firmware.replay_with(&userspace);
    let gap = replay.bank(Sha1).unwrap().value(11).unwrap_err();
    assert_eq!((gap.log, gap.event), (LogPart::Userspace, 0));
    assert!(replay.bank(Sha1).unwrap().value(8).is_ok());
    assert!(replay.bank(Sha256).unwrap().first_gap().is_none());
}

#[test]
fn a_running_systems_log_that_is_none_is_refused_with_its_record() {
    let good = record(11, &[("sha256", &[1; 32])], "ready");
    let cut = |text: &str| text.get(..text.len() - 20).unwrap().to_owned();
    for bad in [
        cut(&good),
        record(24, &[("sha256", &[1; 32])], "ready"),
        record(11, &[], "ready"),
        record(11, &[("sha256", &[1; 31])], "ready"),
        record(11, &[("sha256", &[1; 32]), ("sha256", &[2; 32])], "ready"),
        good.replace("\"pcr\":11,", ""),
        good.replace("\"pcr\":11,", "\"pcr\":11,\"pcr\":12,"),
        good.replace("\"pcr\":11,", "\"pcr\":11,\"nv_index\":1,"),
        good.replace("\"pcr\":11,", "\"pcr\":-1,"),
        "\x1e\n".to_owned(),
    ] {
        let error = UserspaceLog::parse(format!("{good}{bad}").as_bytes()).unwrap_err();
        let place = format!("record 1 (offset {})", good.len());
        assert!(error.to_string().contains(&place), "{error}");
    }
    for bytes in [good.trim_start_matches('\x1e'), "{}", "words"] {
        let error = UserspaceLog::parse(bytes.as_bytes()).unwrap_err();
        assert!(matches!(error, UserspaceLogError::Form));
    }
    let firmware = booted(LogWriter::crypto_agile(&[Sha256]));
    assert!(UserspaceLog::parse(firmware.bytes()).is_err());
}

#[test]
fn what_a_tool_made_of_a_log_is_told_apart_from_a_log() {
    for text in [
        "---\nversion: 1\nevents:\n- EventNum: 0\n",
        "0000000003000000",
        "[{\"pcr\":0}]",
    ] {
        assert_eq!(
            EventLog::parse(text.as_bytes()),
            Err(EventLogError::Text),
            "{text}"
        );
    }
}
