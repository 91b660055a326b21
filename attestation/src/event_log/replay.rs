//! What the PCRs must hold if the log tells the truth.

use std::collections::BTreeMap;
use std::fmt;

use cert_chain::{HashAlgorithm, HashValue};

use super::{EventLog, UserspaceLog};

/// For each bank that the log has digests of, the values of its PCRs. A bank that nothing was
/// measured into is not among them: anybody can extend its PCRs to any value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replay {
    banks: BTreeMap<HashAlgorithm, BankReplay>,
}

/// The PCR values of one bank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BankReplay {
    bank: HashAlgorithm,
    start_of_pcr_0: u8,
    /// The PCRs that events name, with what became of them.
    extended: BTreeMap<u8, Result<HashValue, MissingDigest>>,
}

/// One of the two logs of a boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogPart {
    /// What firmware and boot loader measured.
    Firmware,
    /// What the running system measured.
    Userspace,
}

/// A measurement of which the log lacks the digest of one bank. The TPM may have extended that
/// bank or not: what the PCR holds afterwards cannot be known.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "event {event} (offset {offset}) of {log} has no {bank} digest, so PCR {pcr} of that bank is \
     unknown"
)]
pub struct MissingDigest {
    /// The log that the event is in.
    pub log: LogPart,
    /// The bank.
    pub bank: HashAlgorithm,
    /// The PCR that the event names.
    pub pcr: u8,
    /// The event, from zero.
    pub event: usize,
    /// Where it starts in its log.
    pub offset: usize,
}

impl Replay {
    /// One bank; `None` if the log accounts for nothing in it.
    pub fn bank(&self, bank: HashAlgorithm) -> Option<&BankReplay> {
        self.banks.get(&bank)
    }

    /// All banks.
    pub fn banks(&self) -> impl Iterator<Item = &BankReplay> {
        self.banks.values()
    }
}

impl BankReplay {
    /// The algorithm of the bank.
    pub fn bank(&self) -> HashAlgorithm {
        self.bank
    }

    /// The value of a PCR: what the events lead to, or what a reset gave it.
    pub fn value(&self, pcr: u8) -> Result<HashValue, MissingDigest> {
        let untouched = || reset_value(self.bank, pcr, self.start_of_pcr_0);
        self.extended
            .get(&pcr)
            .copied()
            .unwrap_or_else(|| Ok(untouched()))
    }

    /// The PCRs among these that hold something else than the log leads to, in their order.
    pub fn unaccounted(
        &self,
        found: impl IntoIterator<Item = (u8, HashValue)>,
    ) -> Result<Vec<u8>, MissingDigest> {
        let mut others = Vec::new();
        for (pcr, found) in found {
            if self.value(pcr)? != found {
                others.push(pcr);
            }
        }
        Ok(others)
    }

    /// The PCRs that events extend, with their values.
    pub fn extended(&self) -> impl Iterator<Item = (u8, Result<HashValue, MissingDigest>)> {
        self.extended.iter().map(|(pcr, value)| (*pcr, *value))
    }

    /// The first event that has no digest of this bank.
    pub fn first_gap(&self) -> Option<MissingDigest> {
        self.extended
            .values()
            .filter_map(|value| value.err())
            .min_by_key(|gap| (gap.log, gap.event))
    }

    fn new(bank: HashAlgorithm, start_of_pcr_0: u8) -> Self {
        Self {
            bank,
            start_of_pcr_0,
            extended: BTreeMap::new(),
        }
    }

    fn extend(
        &mut self,
        pcr: u8,
        digest: Option<&HashValue>,
        (log, event, offset): (LogPart, usize, usize),
    ) {
        let bank = self.bank;
        let start = first_value(bank, pcr, self.start_of_pcr_0);
        let digest = digest.ok_or(MissingDigest {
            log,
            bank,
            pcr,
            event,
            offset,
        });
        let value = self.extended.entry(pcr).or_insert(Ok(start));
        *value = (*value).and_then(|old| Ok(old.extended(digest?.as_bytes())));
    }
}

impl fmt::Display for LogPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Firmware => "the firmware's log",
            Self::Userspace => "the running system's log",
        })
    }
}

pub(super) fn replay(log: &EventLog, userspace: &UserspaceLog) -> Replay {
    let banks = log.algorithms().iter();
    Replay {
        banks: banks
            .filter_map(|bank| Some((*bank, replay_bank(log, userspace, *bank)?)))
            .collect(),
    }
}

/// One bank; `None` if firmware measured nothing into it.
pub(super) fn replay_bank(
    log: &EventLog,
    userspace: &UserspaceLog,
    bank: HashAlgorithm,
) -> Option<BankReplay> {
    let mut replay = BankReplay::new(bank, log.start_of_pcr_0());
    let mut has_digests = false;
    for (number, event) in log.events().iter().enumerate() {
        if let Some(pcr) = event.extended_pcr() {
            let digest = event.digest(bank);
            has_digests |= digest.is_some();
            let place = (LogPart::Firmware, number, event.offset);
            replay.extend(pcr, digest, place);
        }
    }
    for (number, event) in userspace.events().iter().enumerate() {
        if let Some(pcr) = event.pcr {
            let place = (LogPart::Userspace, number, event.offset);
            replay.extend(pcr, event.digest(bank), place);
        }
    }
    has_digests.then_some(replay)
}

/// What `TPM2_Startup` gives a PCR (TCG PC Client Platform TPM Profile §4.6.2): zero, all ones for
/// the PCRs of a dynamic launch, and in PCR 0 where the boot began.
fn reset_value(bank: HashAlgorithm, pcr: u8, start_of_pcr_0: u8) -> HashValue {
    match pcr {
        17..=22 => bank.filled(0xff),
        _ => first_value(bank, pcr, start_of_pcr_0),
    }
}

/// What a PCR holds before its first event. What is measured into the PCRs of a dynamic launch,
/// is measured after that launch, which sets them to zero.
fn first_value(bank: HashAlgorithm, pcr: u8, start_of_pcr_0: u8) -> HashValue {
    match pcr {
        0 => bank.filled(0).with_last_byte(start_of_pcr_0),
        _ => bank.filled(0),
    }
}
