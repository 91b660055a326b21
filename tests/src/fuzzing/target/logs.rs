//! Event logs, which a guest's and a host's firmware write, and what their running systems add.

use std::collections::BTreeMap;

use attestation::EventLog;
use attestation::event_log::{Event, UserspaceLog};
use cert_chain::HashAlgorithm;
use sha2::{Digest, Sha256};

use super::Target;
use crate::host_boot_log::HostBootLog;

/// A TCG event log, and its replay.
pub(super) const EVENT_LOG: Target = Target {
    name: "event-log",
    run: |input| {
        if let Ok(log) = EventLog::parse(input) {
            assert_nothing_is_left_out(&log, input);
            assert_replayed(&log);
        }
    },
    seeds: || {
        Ok(vec![
            HostBootLog::of_debian_server("6.1.0-30-amd64")
                .bytes()
                .to_vec(),
            sha1_log(),
            [sha1_log(), vec![0xff; 64]].concat(),
        ])
    },
};

/// The log of a running system, and the replay that it continues.
pub(super) const USERSPACE_LOG: Target = Target {
    name: "userspace-log",
    run: |input| {
        let Ok(userspace) = UserspaceLog::parse(input) else {
            return;
        };
        let boot = HostBootLog::of_debian_server("6.1.0-30-amd64");
        if let Ok(log) = EventLog::parse(boot.bytes()) {
            let named = |pcr| {
                userspace
                    .events()
                    .iter()
                    .any(|event| event.pcr == Some(pcr))
            };
            let (before, after) = (log.replay(), log.replay_with(&userspace));
            for pcr in (0..24).filter(|pcr| !named(*pcr)) {
                let value = |replay: &attestation::event_log::Replay| {
                    replay
                        .bank(HashAlgorithm::Sha256)
                        .map(|bank| bank.value(pcr))
                };
                assert_eq!(value(&before), value(&after), "PCR {pcr}");
            }
        }
    },
    seeds: || Ok(vec![userspace_log()]),
};

/// Every byte of the input is in an event that was read, or is fill behind the last one.
fn assert_nothing_is_left_out(log: &EventLog, input: &[u8]) {
    let is_agile = log
        .events()
        .first()
        .is_some_and(|first| !first.is_measured() && first.data.starts_with(b"Spec ID Event03\0"));
    for (number, event) in log.events().iter().enumerate() {
        let end = match log.events().get(number + 1) {
            Some(next) => next.offset,
            None => input.len(),
        };
        let bytes = input.get(event.offset..end).unwrap_or_default();
        let is_last = number + 1 == log.events().len();
        let written = written(event, bytes, is_agile && number > 0);
        let rest = bytes.strip_prefix(written.as_slice());
        let is_fill = |rest: &[u8]| {
            rest.iter().all(|byte| *byte == 0) || rest.iter().all(|byte| *byte == 0xff)
        };
        let is_right = rest.is_some_and(|rest| rest.is_empty() || is_last && is_fill(rest));
        assert!(
            is_right,
            "event {number} was read otherwise than it stands there"
        );
    }
}

/// The event as it should stand there: its fields as they were read. The digests are taken from
/// `bytes`, since those of banks that are not computed here are not kept.
fn written(event: &Event, bytes: &[u8], is_agile: bool) -> Vec<u8> {
    let head = [event.pcr.to_le_bytes(), event.event_type.0.to_le_bytes()].concat();
    let size = u32::try_from(event.data.len())
        .unwrap_or(u32::MAX)
        .to_le_bytes();
    let tail = [size.as_slice(), &event.data].concat();
    let digests = if is_agile {
        let behind = bytes.get(head.len()..).unwrap_or_default();
        let kept: usize = event
            .digests
            .iter()
            .map(|digest| 2 + digest.as_bytes().len())
            .sum();
        // The first place at or behind the digests that were kept where size and data stand.
        let begin = (4 + kept..=behind.len()).find(|begin| {
            behind
                .get(*begin..)
                .is_some_and(|rest| rest.starts_with(&tail))
        });
        behind
            .get(..begin.unwrap_or_default())
            .unwrap_or_default()
            .to_vec()
    } else {
        let digest = event.digests.first();
        digest
            .map(|digest| digest.as_bytes().to_vec())
            .unwrap_or_default()
    };
    [head, digests, tail].concat()
}

/// A second replay of the SHA-256 bank, for the PCRs whose first value does not depend on the log.
fn assert_replayed(log: &EventLog) {
    let mut pcrs: BTreeMap<u32, Option<[u8; 32]>> = BTreeMap::new();
    for event in log.events().iter().filter(|event| event.event_type.0 != 3) {
        let value = pcrs.entry(event.pcr).or_insert(Some([0; 32]));
        let digest = event.digest(HashAlgorithm::Sha256);
        *value = match (*value, digest) {
            (Some(old), Some(digest)) => Some(
                Sha256::new()
                    .chain_update(old)
                    .chain_update(digest.as_bytes())
                    .finalize()
                    .into(),
            ),
            _ => None,
        };
    }
    let replay = log.replay();
    let Some(bank) = replay.bank(HashAlgorithm::Sha256) else {
        return;
    };
    for (pcr, value) in bank.extended().filter(|(pcr, _)| *pcr != 0) {
        let expected = pcrs.get(&u32::from(pcr)).copied().flatten();
        let found = value.ok().and_then(|value| value.sha256());
        assert_eq!(found.map(|value| *value.as_bytes()), expected, "PCR {pcr}");
    }
}

/// The older form (TCG_PCR_EVENT): one SHA-1 value per event.
fn sha1_log() -> Vec<u8> {
    let mut log = Vec::new();
    for (pcr, event_type, data) in [
        (0u32, 3u32, &b"StartupLocality\0\x03"[..]),
        (0, 8, b"firmware"),
        (4, 4, &[0; 4]),
    ] {
        log.extend(pcr.to_le_bytes());
        log.extend(event_type.to_le_bytes());
        log.extend([if event_type == 3 { 0 } else { 0x11 }; 20]);
        log.extend(u32::try_from(data.len()).unwrap_or(u32::MAX).to_le_bytes());
        log.extend(data);
    }
    log
}

/// Two records as systemd writes them.
fn userspace_log() -> Vec<u8> {
    let digest = "5a".repeat(32);
    [(11, "enter-initrd"), (15, "machine-id")]
        .map(|(pcr, what)| {
            format!(
                "\u{1e}{{\"pcr\":{pcr},\"digests\":[{{\"hashAlg\":\"sha256\",\"digest\":\"{digest}\"}}],\
                 \"content_type\":\"systemd\",\"content\":{{\"eventType\":\"phase\",\"string\":\"{what}\"}}}}\n"
            )
        })
        .concat()
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use anyhow::Result;

    use super::*;

    #[test]
    fn the_seeds_are_logs() -> Result<()> {
        for seed in (EVENT_LOG.seeds)()? {
            assert!(EventLog::parse(&seed)?.events().len() >= 3);
        }
        for seed in (USERSPACE_LOG.seeds)()? {
            assert_eq!(UserspaceLog::parse(&seed)?.events().len(), 2);
        }
        Ok(())
    }
}
