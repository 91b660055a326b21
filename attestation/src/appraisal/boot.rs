//! What booted in a layer, against the reference values for it.
//!
//! A PCR's value says that something differs, single events say what. Neither the type nor the
//! data of an event is measured, only its digest: an attacker who owns the layer may have
//! extended the digest of a good kernel after booting a bad one, and may call the bad one what
//! it likes in the log. So events vouch for a PCR only when *every* event in that PCR is
//! accounted for; where its value is pinned as well, they only name the difference.
//!
//! Whoever makes a quote chooses its PCRs. So a PCR that a boot chain uses counts as contradicted
//! where it was not quoted: leaving it out is no way around what would be found in it.

use std::collections::{BTreeMap, BTreeSet};

use cert_chain::{Digest32, HashAlgorithm};

use super::listing::{list, shortened};
use crate::event_log::{Event, EventType};
use crate::reference::{EventReference, ReferenceValues};
use crate::result::{Claim, LayerResult};
use crate::verification::VerifiedLayer;

/// A PCR and the type of an event in it: what references speak of.
type Kind = (u8, EventType);

/// Compares the layer's events, then its PCRs.
///
/// Events and references are sorted once, so the time is that of sorting both, not their product:
/// the events come from whoever is appraised, and there may be tens of thousands of each.
pub(super) fn check_boot(
    result: &mut LayerResult,
    layer: &VerifiedLayer,
    reference: &ReferenceValues,
) {
    result.approve(Claim::Executables);
    let mut measured: BTreeMap<u8, Vec<&Event>> = BTreeMap::new();
    for event in layer.log().events() {
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
    let quoted = |(pcr, _): &Kind| layer.pcrs().contains_key(pcr);
    for (kind, references) in references.iter().filter(|(kind, _)| quoted(kind)) {
        check_kind(result, events_in(&measured, kind.0), references, *kind);
    }
    for (pcr, found) in layer.pcrs() {
        let events = events_in(&measured, *pcr);
        check_pcr(result, events, reference, &references, *pcr, found);
    }
    for pcr in reference.demanded_pcrs() {
        if !layer.pcrs().contains_key(&pcr) {
            not_quoted(result, pcr);
        }
    }
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
    found: &Digest32,
) {
    if let Some(accepted) = reference.pcrs.get(&pcr) {
        if !accepted.contains(found) {
            result.contradict(
                Claim::Executables,
                "pcr-unexpected",
                format!(
                    "PCR {pcr} ({}): found {found}, accepted {}",
                    measures(pcr),
                    list(accepted)
                ),
            );
        }
        return;
    }
    if reference.ignores(pcr) {
        return;
    }
    let unaccounted = events.iter().find(|event| {
        !event.is_separator(HashAlgorithm::Sha256)
            && !references.contains_key(&(pcr, event.event_type))
    });
    match unaccounted {
        None => {}
        Some(event) if references.keys().any(|kind| kind.0 == pcr) => result.warn(
            Claim::Executables,
            "event-without-reference",
            format!(
                "PCR {pcr} ({}): {} with digest {} has no reference; list it under events, or \
                 give the PCR's value",
                measures(pcr),
                event.event_type,
                sha256(event).map_or_else(|| "none".to_owned(), |digest| digest.to_string()),
            ),
        ),
        Some(_) => result.warn(
            Claim::Executables,
            "pcr-without-reference",
            format!(
                "PCR {pcr} ({}) has no reference value: add one, or list the PCR in ignored_pcrs",
                measures(pcr)
            ),
        ),
    }
}

/// All events of one kind, among those of its PCR, against all references to them.
fn check_kind(
    result: &mut LayerResult,
    events: &[&Event],
    references: &[&EventReference],
    (pcr, event_type): Kind,
) {
    let mut accepted: BTreeSet<Digest32> = BTreeSet::new();
    let mut by_name: BTreeMap<&str, Vec<&EventReference>> = BTreeMap::new();
    for reference in references {
        accepted.extend(&reference.digests);
        by_name.entry(&reference.name).or_default().push(reference);
    }
    let mut measured: BTreeSet<Digest32> = BTreeSet::new();
    let mut explained: BTreeSet<&str> = BTreeSet::new();
    for event in events.iter().filter(|e| e.event_type == event_type) {
        let Some(found) = sha256(event) else { continue };
        measured.insert(found);
        if accepted.contains(&found) {
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
            let accepted: Vec<_> = meant.iter().flat_map(|r| &r.digests).collect();
            format!(
                "{}: found {found}, accepted {} ({event_type} in PCR {pcr})",
                list(meant.iter().map(|reference| &reference.name)),
                list(accepted)
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
                    "{}: nothing was measured, accepted {} ({event_type} in PCR {pcr})",
                    shortened(&reference.name),
                    list(&reference.digests)
                )
            }),
        }
    }
}

fn not_quoted(result: &mut LayerResult, pcr: u8) {
    result.contradict(
        Claim::Executables,
        "pcr-not-quoted",
        format!(
            "PCR {pcr} ({}) was not quoted: have it quoted, or list it in ignored_pcrs",
            measures(pcr)
        ),
    );
}

fn sha256(event: &Event) -> Option<Digest32> {
    event.digest(HashAlgorithm::Sha256)?.sha256()
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
