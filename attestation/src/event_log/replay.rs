//! What the PCRs must hold if the log tells the truth.

use std::collections::BTreeMap;

use cert_chain::Digest32;
use sha1::Sha1;
use sha2::digest::Digest;
use sha2::{Sha256, Sha384, Sha512};

use super::{EventLog, HashAlgorithm, PCR_COUNT};

/// For each bank the values of the PCRs that the log extends.
pub type Replay = BTreeMap<HashAlgorithm, BTreeMap<u8, Vec<u8>>>;

/// The values of all PCRs of one bank, whose digests have `N` bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BankValues<const N: usize> {
    values: [[u8; N]; PCR_COUNT as usize],
    touched: [bool; PCR_COUNT as usize],
}

impl BankValues<32> {
    /// The value of a PCR of the SHA-256 bank.
    pub fn value(&self, pcr: u8) -> Digest32 {
        Digest32::new(
            self.values
                .get(usize::from(pcr))
                .copied()
                .unwrap_or_default(),
        )
    }
}

pub(super) fn replay(log: &EventLog) -> Replay {
    log.algorithms()
        .iter()
        .map(|algorithm| {
            let values = match algorithm {
                HashAlgorithm::Sha1 => bank::<Sha1, 20>(log, *algorithm).touched(),
                HashAlgorithm::Sha256 => bank::<Sha256, 32>(log, *algorithm).touched(),
                HashAlgorithm::Sha384 => bank::<Sha384, 48>(log, *algorithm).touched(),
                HashAlgorithm::Sha512 => bank::<Sha512, 64>(log, *algorithm).touched(),
            };
            (*algorithm, values)
        })
        .collect()
}

pub(super) fn replay_sha256(log: &EventLog) -> BankValues<32> {
    bank::<Sha256, 32>(log, HashAlgorithm::Sha256)
}

fn bank<H: Digest, const N: usize>(log: &EventLog, algorithm: HashAlgorithm) -> BankValues<N> {
    let mut bank = BankValues {
        values: std::array::from_fn(|pcr| reset_value(pcr, log.startup_locality.unwrap_or(0))),
        touched: [false; PCR_COUNT as usize],
    };
    for event in log.events().iter().filter(|event| event.is_measured()) {
        let pcr = usize::from(event.pcr);
        if let Some(digest) = event.digest(algorithm)
            && let Some(value) = bank.values.get_mut(pcr)
            && let Some(touched) = bank.touched.get_mut(pcr)
        {
            let extended = H::new()
                .chain_update(value.as_slice())
                .chain_update(digest)
                .finalize();
            value.copy_from_slice(&extended);
            *touched = true;
        }
    }
    bank
}

/// TCG PC Client Platform TPM Profile §4.6.2: zero, all ones for the PCRs of a dynamic launch,
/// and in PCR 0 the locality of `TPM2_Startup`.
fn reset_value<const N: usize>(pcr: usize, startup_locality: u8) -> [u8; N] {
    match pcr {
        0 => {
            let mut value = [0; N];
            if let Some(last) = value.last_mut() {
                *last = startup_locality;
            }
            value
        }
        17..=22 => [0xff; N],
        _ => [0; N],
    }
}

impl<const N: usize> BankValues<N> {
    fn touched(&self) -> BTreeMap<u8, Vec<u8>> {
        (0..)
            .zip(self.values.iter().zip(&self.touched))
            .filter(|(_, (_, touched))| **touched)
            .map(|(pcr, (value, _))| (pcr, value.to_vec()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    #![expect(clippy::indexing_slicing, reason = "a panic is a failed test")]

    use super::super::{Event, EventType};
    use super::*;

    fn log(startup_locality: u8, events: Vec<Event>) -> EventLog {
        EventLog {
            algorithms: vec![HashAlgorithm::Sha256],
            events,
            startup_locality: Some(startup_locality),
        }
    }

    fn event(pcr: u8, event_type: EventType) -> Event {
        Event {
            pcr,
            event_type,
            digests: vec![(HashAlgorithm::Sha256, vec![7; 32])],
            data: Vec::new(),
        }
    }

    #[test]
    fn an_extend_hashes_the_old_value_and_the_digest() {
        let replay = log(0, vec![event(4, EventType::SEPARATOR)]).replay();
        let expected = Sha256::digest([[0; 32], [7; 32]].concat());
        assert_eq!(replay[&HashAlgorithm::Sha256][&4], expected.to_vec());
        assert_eq!(replay[&HashAlgorithm::Sha256].len(), 1);
    }

    #[test]
    fn notes_are_not_extended_but_the_startup_locality_counts() {
        let bank = log(3, vec![event(0, EventType::NO_ACTION)]).replay_sha256();
        assert_eq!(bank.value(0).as_bytes()[31], 3);
        assert_eq!(bank.value(1), Digest32::new([0; 32]));
        assert_eq!(bank.value(17), Digest32::new([0xff; 32]));
    }

    #[test]
    fn a_log_without_sha256_leads_to_an_untouched_sha256_bank() {
        let mut event = event(4, EventType::SEPARATOR);
        event.digests = vec![(HashAlgorithm::Sha1, vec![7; 20])];
        let log = log(0, vec![event]);
        assert_eq!(log.replay_sha256().value(4), Digest32::new([0; 32]));
        assert!(log.replay().get(&HashAlgorithm::Sha256).unwrap().is_empty());
    }
}
