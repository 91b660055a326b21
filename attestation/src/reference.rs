//! Reference values (RFC 9334 §8.3): what a layer may have booted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use cert_chain::pcr::{BANKS, is_unextended};
use cert_chain::{HashAlgorithm, HashValue, NamedHash, PcrSelection, PcrValues};
use printable::is_printable;
use serde::{Deserialize, Deserializer};

use crate::event_log::{BankReplay, Event, EventLog, EventType, MissingDigest, PCR_COUNT, Replay};

/// The PCRs into which a boot chain measures (PFP §3.3.4; for 11 to 13 the UAPI Group's "Linux TPM
/// PCR Registry"): firmware, boot loader, kernel, unified kernel images with what is passed to them,
/// and machine owner keys. Both layers quote them, and an appraisal asks for each of them: what is
/// left out of a quote could have measured anything.
///
/// Not among them: PCR 10 and 15, which a running kernel (IMA) and its services go on extending, so
/// that no log of the boot accounts for them. A policy may name them.
pub const BOOT_PCRS: [u8; 14] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14];

/// The acceptable measurements of one layer, as they stand in a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceValues {
    /// The acceptable values of each PCR; each names its bank. A quote is of one bank, and only the
    /// values of that bank count for it.
    #[serde(default, deserialize_with = "pcr_keys")]
    pub pcrs: BTreeMap<u8, Vec<HashValue>>,
    /// PCRs that do not matter, for instance because they hold a boot order. They need not be
    /// quoted either.
    #[serde(default)]
    pub ignored_pcrs: BTreeSet<u8>,
    /// The acceptable digests of single events. They name what differs where a PCR's value
    /// alone cannot.
    #[serde(default)]
    pub events: Vec<EventReference>,
}

/// The acceptable digests of one kind of event in one PCR.
///
/// Each such event in the log must have one of the digests that references of this kind list,
/// and each reference that is not optional must be met by an event.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventReference {
    /// What people call it: "kernel", "firmware".
    pub name: String,
    /// The PCR it is measured into.
    pub pcr: u8,
    /// Its type, by the name that the TCG gives it.
    #[serde(rename = "type", deserialize_with = "event_type")]
    pub event_type: EventType,
    /// The acceptable digests; each names its bank.
    #[serde(deserialize_with = "digests")]
    pub digests: Vec<HashValue>,
    /// Whether a boot without such an event is as good.
    #[serde(default)]
    pub optional: bool,
}

/// Why a log makes no reference values.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReferenceError {
    /// Nothing was measured into the bank.
    #[error(
        "the log tells of no firmware's measurement in the {} bank (it has {}): anybody could extend \
         that bank to any value. Activate the bank in the firmware's setup and boot again",
        banks(wanted),
        banks(found)
    )]
    Bank {
        /// The banks that would have done.
        wanted: Vec<HashAlgorithm>,
        /// Those that the log tells of.
        found: Vec<HashAlgorithm>,
    },
    /// PCRs of a bank that nothing was measured into.
    #[error(
        "PCRs 0 to 7 ({0}) are as after a reset: no boot was measured into that bank, and anybody could \
         extend it to any value"
    )]
    Unextended(HashAlgorithm),
    /// The log leaves open what a PCR holds.
    #[error("the log leaves a PCR open, which can have no reference value")]
    Gap(#[source] MissingDigest),
}

/// Takes the reference values from the log of a boot that is known to be good: the value of
/// each selected PCR, and the events that carry firmware, boot loader, kernel and initramfs.
///
/// They are of one bank. A log that tells of no firmware's measurement in that bank makes no
/// reference: the firmware's PCRs hold then what a reset gave them, and anybody can extend them to
/// any value.
pub fn reference_values(
    log: &EventLog,
    bank: HashAlgorithm,
    pcrs: impl IntoIterator<Item = u8>,
) -> Result<ReferenceValues, ReferenceError> {
    let replayed = log
        .replay_bank(bank)
        .filter(|replayed| BANKS.contains(&bank) && is_measured_into(replayed))
        .ok_or_else(|| ReferenceError::Bank {
            wanted: vec![bank],
            found: measured_banks(&log.replay()),
        })?;
    let mut values = BTreeMap::new();
    for pcr in pcrs.into_iter().filter(|pcr| *pcr < PCR_COUNT) {
        let value = replayed.value(pcr).map_err(ReferenceError::Gap)?;
        values.insert(pcr, vec![value]);
    }
    let mut events: Vec<EventReference> = Vec::new();
    for event in log.events() {
        let Some((pcr, name, digest)) = nameable(event, bank) else {
            continue;
        };
        let known = events.iter_mut().find(|reference| {
            event.extends(reference.pcr)
                && reference.event_type == event.event_type
                && reference.name == name
        });
        match known {
            Some(reference) if reference.digests.contains(&digest) => {}
            Some(reference) => reference.digests.push(digest),
            None => events.push(EventReference {
                name,
                pcr,
                event_type: event.event_type,
                digests: vec![digest],
                optional: false,
            }),
        }
    }
    Ok(ReferenceValues {
        pcrs: values,
        ignored_pcrs: BTreeSet::new(),
        events,
    })
}

/// Takes the reference values from the PCRs of a boot that is known to be good, where no log is at hand.
pub fn reference_values_of_pcrs(pcrs: &PcrValues) -> Result<ReferenceValues, ReferenceError> {
    if pcrs.are_unextended() {
        return Err(ReferenceError::Unextended(pcrs.bank()));
    }
    Ok(ReferenceValues {
        pcrs: pcrs.iter().map(|(pcr, value)| (pcr, vec![value])).collect(),
        ..ReferenceValues::default()
    })
}

/// The first of these banks for which the log tells of the firmware's measurements and accounts for
/// all of these PCRs: the one that quotes and references are made of.
pub fn accounted_bank(
    log: &EventLog,
    among: &[HashAlgorithm],
    pcrs: PcrSelection,
) -> Result<HashAlgorithm, ReferenceError> {
    let mut gap = None;
    for bank in among.iter().copied() {
        let replayed = log.replay_bank(bank).filter(is_measured_into);
        let Some(replayed) = replayed else { continue };
        match pcrs.iter().find_map(|pcr| replayed.value(pcr).err()) {
            None => return Ok(bank),
            Some(missing) => gap = gap.or(Some(missing)),
        }
    }
    Err(match gap {
        Some(missing) => ReferenceError::Gap(missing),
        None => ReferenceError::Bank {
            wanted: among.to_vec(),
            found: measured_banks(&log.replay()),
        },
    })
}

fn is_measured_into(replayed: &BankReplay) -> bool {
    PcrSelection::of_firmware().iter().any(|pcr| {
        // Of a PCR with a gap, too, is known that something was measured into it.
        replayed
            .value(pcr)
            .map_or(true, |value| !is_unextended(value))
    })
}

fn measured_banks(replay: &Replay) -> Vec<HashAlgorithm> {
    let measured = replay.banks().filter(|bank| is_measured_into(bank));
    measured.map(BankReplay::bank).collect()
}

impl ReferenceValues {
    /// Whether anything here is demanded of every boot: a value of a PCR that a boot chain uses
    /// (others can be reset by software, TCG PC Client Platform TPM Profile §4.6.2), or an event
    /// in such a PCR that is not optional.
    pub(crate) fn says_what_booted(&self) -> bool {
        let demanded = self.events.iter().filter(|event| !event.optional);
        self.pcrs
            .keys()
            .copied()
            .chain(demanded.map(|event| event.pcr))
            .any(|pcr| BOOT_PCRS.contains(&pcr))
    }

    /// The banks that anything here is of.
    pub(crate) fn banks(&self) -> BTreeSet<HashAlgorithm> {
        let digests = self.events.iter().flat_map(|event| &event.digests);
        let values = self.pcrs.values().flatten();
        values.chain(digests).map(HashValue::algorithm).collect()
    }

    /// A bank of which everything here about the firmware's PCRs is what they hold after a reset:
    /// whatever boots without a measurement would meet it.
    pub(crate) fn unextended_bank(&self) -> Option<HashAlgorithm> {
        let firmware = PcrSelection::of_firmware();
        let demands_event = |bank: HashAlgorithm| {
            self.events
                .iter()
                .filter(|event| !event.optional && firmware.contains(event.pcr))
                .any(|event| event.digests.iter().any(|of| of.algorithm() == bank))
        };
        BANKS.into_iter().find(|bank| {
            let of_pcr = |pcr: u8| self.pcrs.get(&pcr).into_iter().flatten();
            let mut values = firmware
                .iter()
                .flat_map(of_pcr)
                .filter(|value| value.algorithm() == *bank)
                .peekable();
            values.peek().is_some()
                && values.all(|value| is_unextended(*value))
                && !demands_event(*bank)
        })
    }

    /// Whether the policy says of a PCR that it does not matter. To ignore a PCR and yet list
    /// its value or events of it would be to rely on what the log calls them.
    pub(crate) fn ignores(&self, pcr: u8) -> bool {
        self.ignored_pcrs.contains(&pcr)
            && !self.pcrs.contains_key(&pcr)
            && !self.events.iter().any(|event| event.pcr == pcr)
    }

    /// The PCRs that a quote must contain to be held against these values.
    pub(crate) fn demanded_pcrs(&self) -> BTreeSet<u8> {
        BOOT_PCRS
            .into_iter()
            .chain(self.pcrs.keys().copied())
            .chain(self.events.iter().map(|event| event.pcr))
            .filter(|pcr| !self.ignores(*pcr))
            .collect()
    }

    /// Adds what another good boot measured: afterwards either is acceptable.
    pub fn or(mut self, other: Self) -> Self {
        for (pcr, values) in other.pcrs {
            let known = self.pcrs.entry(pcr).or_default();
            for value in values {
                if !known.contains(&value) {
                    known.push(value);
                }
            }
        }
        self.ignored_pcrs.extend(other.ignored_pcrs);
        // What only one of the two boots measured is no longer demanded of every boot.
        for known in &mut self.events {
            known.optional |= !other.events.iter().any(|event| event.same_subject(known));
        }
        for reference in other.events {
            let known = self
                .events
                .iter_mut()
                .find(|event| event.same_subject(&reference));
            match known {
                Some(known) => {
                    known.optional |= reference.optional;
                    for digest in reference.digests {
                        if !known.digests.contains(&digest) {
                            known.digests.push(digest);
                        }
                    }
                }
                None => self.events.push(EventReference {
                    optional: true,
                    ..reference
                }),
            }
        }
        self
    }

    /// As a part of a policy; `layer` is `host` or `vm`.
    pub fn to_toml(&self, layer: &str) -> String {
        let mut text = format!("[{layer}.reference]\n");
        if !self.ignored_pcrs.is_empty() {
            let ignored: Vec<u8> = self.ignored_pcrs.iter().copied().collect();
            let _ = writeln!(text, "ignored_pcrs = {ignored:?}");
        }
        let _ = writeln!(text, "\n[{layer}.reference.pcrs]");
        for (pcr, values) in &self.pcrs {
            let _ = writeln!(text, "{pcr} = [{}]", quoted(values));
        }
        for reference in &self.events {
            let _ = write!(
                text,
                "\n[[{layer}.reference.events]]\nname = {}\npcr = {}\ntype = \"{}\"\ndigests = [{}]\n",
                basic_string(&reference.name),
                reference.pcr,
                reference.event_type,
                quoted(&reference.digests)
            );
            if reference.optional {
                text.push_str("optional = true\n");
            }
        }
        text
    }
}

impl EventReference {
    fn same_subject(&self, other: &Self) -> bool {
        (&self.name, self.pcr, self.event_type) == (&other.name, other.pcr, other.event_type)
    }
}

/// The events that have a name, with their PCRs and digests.
fn nameable(event: &Event, bank: HashAlgorithm) -> Option<(u8, String, HashValue)> {
    let pcr = u8::try_from(event.pcr).ok()?;
    Some((pcr, event.subject()?, *event.digest(bank)?))
}

fn banks(found: &[HashAlgorithm]) -> String {
    let names: Vec<&str> = found.iter().map(|bank| bank.name()).collect();
    match names.as_slice() {
        [] => "none".to_owned(),
        names => names.join(", "),
    }
}

/// A TOML basic string. Names come from event logs, and policies are read by people: what is not
/// printable is escaped, which the `toml` library does for control characters alone.
fn basic_string(text: &str) -> String {
    let mut string = String::from("\"");
    for c in text.chars() {
        let _ = match c {
            '"' | '\\' => write!(string, "\\{c}"),
            _ if is_printable(c) => write!(string, "{c}"),
            _ => write!(string, "\\U{:08x}", u32::from(c)),
        };
    }
    string.push('"');
    string
}

fn quoted(digests: &[HashValue]) -> String {
    let quoted: Vec<String> = digests
        .iter()
        .map(|digest| format!("\"{}\"", NamedHash(*digest)))
        .collect();
    quoted.join(", ")
}

/// TOML keys are text.
fn pcr_keys<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<u8, Vec<HashValue>>, D::Error> {
    BTreeMap::<String, Vec<NamedHash>>::deserialize(deserializer)?
        .into_iter()
        .map(|(key, values)| match key.parse() {
            Ok(pcr) if pcr < PCR_COUNT => Ok((pcr, accepted(values)?)),
            _ => Err(serde::de::Error::custom(format!(
                "`{key}` is no PCR: PCRs are numbered 0 to 23"
            ))),
        })
        .collect()
}

fn digests<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<HashValue>, D::Error> {
    accepted(Vec::deserialize(deserializer)?)
}

/// Values of banks that count.
fn accepted<E: serde::de::Error>(values: Vec<NamedHash>) -> Result<Vec<HashValue>, E> {
    values
        .into_iter()
        .map(|NamedHash(value)| match value.algorithm() {
            bank if BANKS.contains(&bank) => Ok(value),
            bank => Err(E::custom(format!(
                "values of the {bank} bank cannot be relied on: give those of sha256, sha384 or sha512"
            ))),
        })
        .collect()
}

fn event_type<'de, D: Deserializer<'de>>(deserializer: D) -> Result<EventType, D::Error> {
    String::deserialize(deserializer)?
        .parse()
        .map_err(serde::de::Error::custom)
}
