//! What booted in a layer, against the reference values for it.
//!
//! A PCR's value says that something differs, single events say what. Neither the type nor the
//! data of an event is measured, only its digest: an attacker who owns the layer may have
//! extended the digest of a good kernel after booting a bad one, and may call the bad one what
//! it likes in the log. So events vouch for a PCR only when *every* event in that PCR is
//! accounted for; where its value is pinned as well, they only name the difference.
//!
//! Whoever makes a quote chooses its PCRs. So a PCR that a boot chain uses counts as contradicted
//! where it was not quoted: leaving it out is no way around what would be found in it. It chooses, too,
//! whether a log goes with the quote; `without_log.rs` says when one may be missing.

use std::collections::{BTreeMap, BTreeSet};

use cert_chain::{HashAlgorithm, HashValue};

use super::listing::{list, shortened};
use crate::event_log::{Event, EventLog, EventType};
use crate::reference::{EventReference, ReferenceValues};
use crate::result::{Claim, LayerResult};
use crate::verification::VerifiedLayer;

/// A PCR and the type of an event in it: what references speak of.
type Kind = (u8, EventType);

/// Compares the layer's events, then its PCRs. Everything is of the quoted bank: of an event, no
/// other digest is verified.
///
/// Events and references are sorted once, so the time is that of sorting both, not their product:
/// the events come from whoever is appraised, and there may be tens of thousands of each.
pub(crate) fn check_log(
    result: &mut LayerResult,
    layer: &VerifiedLayer,
    log: &EventLog,
    reference: &ReferenceValues,
) {
    result.approve(Claim::Executables);
    if !is_comparable(result, layer, reference) {
        return;
    }
    let bank = layer.bank();
    let mut measured: BTreeMap<u8, Vec<&Event>> = BTreeMap::new();
    for event in log.events() {
        if let Some(pcr) = event.extended_pcr() {
            measured.entry(pcr).or_default().push(event);
        }
    }
    let mut references: BTreeMap<Kind, Vec<&EventReference>> = BTreeMap::new();
    for event in &reference.events {
        let kind = (event.pcr, event.event_type);
        references.entry(kind).or_default().push(event);
    }
    // What was not quoted is said once, and not for each of its events.
    let quoted = |(pcr, _): &Kind| layer.pcrs().get(*pcr).is_some();
    for (kind, references) in references.iter().filter(|(kind, _)| quoted(kind)) {
        let events = events_in(&measured, kind.0);
        check_kind(result, bank, events, references, *kind);
    }
    for (pcr, found) in layer.pcrs().iter() {
        let events = events_in(&measured, pcr);
        check_pcr(result, events, reference, &references, pcr, found);
    }
    for pcr in reference.demanded_pcrs() {
        if layer.pcrs().get(pcr).is_none() {
            not_quoted(result, pcr, bank);
        }
    }
}

/// Compares the layer's PCRs where there is no log: each has to have a value that is listed, or to be
/// ignored.
pub(crate) fn check_pcrs(
    result: &mut LayerResult,
    layer: &VerifiedLayer,
    reference: &ReferenceValues,
) {
    result.approve(Claim::Executables);
    if !is_comparable(result, layer, reference) {
        return;
    }
    for (pcr, found) in layer.pcrs().iter() {
        match reference.pcrs.get(&pcr) {
            Some(accepted) => check_value(result, accepted, pcr, found),
            None if reference.ignores(pcr) => {}
            None => without_reference(result, pcr, found.algorithm()),
        }
    }
    for pcr in reference.demanded_pcrs() {
        if layer.pcrs().get(pcr).is_none() {
            not_quoted(result, pcr, layer.bank());
        }
    }
}

/// Whether the quoted bank tells of the boot, and the policy of the bank. Whoever makes a quote
/// chooses its bank, too.
fn is_comparable(
    result: &mut LayerResult,
    layer: &VerifiedLayer,
    reference: &ReferenceValues,
) -> bool {
    let bank = layer.bank();
    if layer.pcrs().are_unextended() {
        result.contradict(
            Claim::Executables,
            "bank-not-extended",
            format!(
                "PCRs 0 to 7 ({bank}) are as after a reset: no boot was measured into the bank that \
                 was quoted, and anybody could extend it to any value"
            ),
        );
        return false;
    }
    let known = reference.banks();
    if known.contains(&bank) {
        return true;
    }
    let known: Vec<&str> = known.iter().map(|bank| bank.name()).collect();
    result.contradict(
        Claim::Executables,
        "bank-without-reference",
        format!(
            "PCRs of the {bank} bank were quoted, and the policy has reference values of {} alone: \
             add those of {bank}, or have the other bank quoted",
            known.join(" and ")
        ),
    );
    false
}

fn events_in<'e>(measured: &'e BTreeMap<u8, Vec<&'e Event>>, pcr: u8) -> &'e [&'e Event] {
    measured.get(&pcr).map_or(&[], Vec::as_slice)
}

fn check_pcr(
    result: &mut LayerResult,
    events: &[&Event],
    reference: &ReferenceValues,
    references: &BTreeMap<Kind, Vec<&EventReference>>,
    pcr: u8,
    found: HashValue,
) {
    let bank = found.algorithm();
    if let Some(accepted) = reference.pcrs.get(&pcr) {
        return check_value(result, accepted, pcr, found);
    }
    if reference.ignores(pcr) {
        return;
    }
    let unaccounted = events.iter().find(|event| {
        !event.is_separator(bank) && !references.contains_key(&(pcr, event.event_type))
    });
    match unaccounted {
        None => {}
        Some(event) if references.keys().any(|kind| kind.0 == pcr) => result.warn(
            Claim::Executables,
            "event-without-reference",
            format!(
                "{}: {} with digest {} has no reference; list it under events, or give the PCR's \
                 value",
                described(pcr, bank),
                event.event_type,
                event
                    .digest(bank)
                    .map_or_else(|| "none".to_owned(), ToString::to_string),
            ),
        ),
        Some(_) => without_reference(result, pcr, bank),
    }
}

fn check_value(result: &mut LayerResult, accepted: &[HashValue], pcr: u8, found: HashValue) {
    let bank = found.algorithm();
    if !accepted.contains(&found) {
        result.contradict(
            Claim::Executables,
            "pcr-unexpected",
            format!(
                "{}: found {found}, accepted {}",
                described(pcr, bank),
                list(of_bank(bank, accepted))
            ),
        );
    }
}

fn without_reference(result: &mut LayerResult, pcr: u8, bank: HashAlgorithm) {
    result.warn(
        Claim::Executables,
        "pcr-without-reference",
        format!(
            "{} has no reference value: add one, or list the PCR in ignored_pcrs",
            described(pcr, bank)
        ),
    );
}

/// All events of one kind, among those of its PCR, against all references to them.
fn check_kind(
    result: &mut LayerResult,
    bank: HashAlgorithm,
    events: &[&Event],
    references: &[&EventReference],
    (pcr, event_type): Kind,
) {
    let mut accepted: BTreeSet<HashValue> = BTreeSet::new();
    let mut by_name: BTreeMap<&str, Vec<&EventReference>> = BTreeMap::new();
    for reference in references {
        accepted.extend(&reference.digests);
        by_name.entry(&reference.name).or_default().push(reference);
    }
    let mut measured: BTreeSet<HashValue> = BTreeSet::new();
    let mut explained: BTreeSet<&str> = BTreeSet::new();
    for event in events.iter().filter(|e| e.event_type == event_type) {
        let Some(found) = event.digest(bank) else {
            continue;
        };
        measured.insert(*found);
        if accepted.contains(found) {
            continue;
        }
        // The references that speak of the same thing as the event, going by its name; all of its
        // kind where the name says nothing.
        let subject = event.subject();
        let meant = subject
            .as_deref()
            .and_then(|subject| by_name.get(subject))
            .map_or(references, Vec::as_slice);
        result.contradict_with(Claim::Executables, "event-unexpected", || {
            let accepted = meant.iter().flat_map(|reference| &reference.digests);
            format!(
                "{}: found {found}, accepted {} ({event_type} in PCR {pcr}, {bank})",
                list(meant.iter().map(|reference| &reference.name)),
                list(of_bank(bank, accepted))
            )
        });
        if let [reference] = meant {
            explained.insert(&reference.name);
        }
    }
    for reference in references {
        let found = reference.digests.iter().find(|d| measured.contains(d));
        match found {
            Some(digest) => result.booted(&reference.name, *digest),
            None if reference.optional || explained.contains(reference.name.as_str()) => {}
            None => result.contradict_with(Claim::Executables, "event-missing", || {
                format!(
                    "{}: nothing was measured, accepted {} ({event_type} in PCR {pcr}, {bank})",
                    shortened(&reference.name),
                    list(of_bank(bank, &reference.digests))
                )
            }),
        }
    }
}

fn not_quoted(result: &mut LayerResult, pcr: u8, bank: HashAlgorithm) {
    result.contradict(
        Claim::Executables,
        "pcr-not-quoted",
        format!(
            "{} was not quoted: have it quoted, or list it in ignored_pcrs",
            described(pcr, bank)
        ),
    );
}

/// The values of one bank. Those of another do not tell what was expected of this one.
fn of_bank<'v>(
    bank: HashAlgorithm,
    values: impl IntoIterator<Item = &'v HashValue>,
) -> Vec<&'v HashValue> {
    values
        .into_iter()
        .filter(|value| value.algorithm() == bank)
        .collect()
}

fn described(pcr: u8, bank: HashAlgorithm) -> String {
    format!("PCR {pcr} ({bank}, {})", measures(pcr))
}

/// What goes into a PCR (PFP §3.3.4 "PCR Usage").
fn measures(pcr: u8) -> &'static str {
    match pcr {
        0 => "firmware code",
        1 => "firmware configuration",
        2 => "drivers and option ROMs",
        3 => "their configuration",
        4 => "boot loader and kernel",
        5 => "boot loader configuration",
        6 => "platform events",
        7 => "secure boot policy",
        8 | 9 => "what the boot loader loaded",
        10 => "integrity measurements of the running kernel",
        11 => "unified kernel image",
        12 => "command line and credentials passed to it",
        13 => "system extensions passed to it",
        14 => "machine owner keys",
        _ => "other measurements",
    }
}
