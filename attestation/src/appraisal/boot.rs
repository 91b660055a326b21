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

use std::collections::BTreeMap;

use cert_chain::{Digest32, HashAlgorithm};

use super::list;
use crate::event_log::{Event, EventType};
use crate::reference::{EventReference, ReferenceValues};
use crate::result::{Claim, LayerResult};
use crate::verification::VerifiedLayer;

/// Compares the layer's events, then its PCRs.
pub(super) fn check_boot(
    result: &mut LayerResult,
    layer: &VerifiedLayer,
    reference: &ReferenceValues,
) {
    result.approve(Claim::Executables);
    check_events(result, layer, &reference.events);
    for (pcr, found) in layer.pcrs() {
        check_pcr(result, layer, reference, *pcr, found);
    }
    for pcr in reference.demanded_pcrs() {
        if !layer.pcrs().contains_key(&pcr) {
            not_quoted(result, pcr);
        }
    }
}

fn check_pcr(
    result: &mut LayerResult,
    layer: &VerifiedLayer,
    reference: &ReferenceValues,
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
    let has_events = reference.events.iter().any(|event| event.pcr == pcr);
    let unaccounted = measured_into(layer, pcr).find(|event| {
        let known = |reference: &EventReference| {
            event.extends(reference.pcr) && reference.event_type == event.event_type
        };
        !event.is_separator(HashAlgorithm::Sha256) && !reference.events.iter().any(known)
    });
    match unaccounted {
        None => {}
        Some(event) if has_events => result.warn(
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

fn check_events(result: &mut LayerResult, layer: &VerifiedLayer, references: &[EventReference]) {
    let mut kinds: BTreeMap<(u8, EventType), Vec<&EventReference>> = BTreeMap::new();
    for reference in references {
        kinds
            .entry((reference.pcr, reference.event_type))
            .or_default()
            .push(reference);
    }
    for ((pcr, event_type), references) in kinds {
        // What was not quoted is said once, and not for each of its events.
        if layer.pcrs().contains_key(&pcr) {
            let events: Vec<&Event> = measured_into(layer, pcr)
                .filter(|event| event.event_type == event_type)
                .collect();
            check_kind(result, &events, &references, pcr, event_type);
        }
    }
}

/// All events of one type in one PCR, against all references to them.
fn check_kind(
    result: &mut LayerResult,
    events: &[&Event],
    references: &[&EventReference],
    pcr: u8,
    event_type: EventType,
) {
    let mut explained: Vec<&str> = Vec::new();
    for event in events {
        let Some(found) = sha256(event) else { continue };
        if references
            .iter()
            .any(|reference| reference.digests.contains(&found))
        {
            continue;
        }
        let meant = meant_by(event, references);
        let names: Vec<&str> = meant.iter().map(|r| r.name.as_str()).collect();
        let accepted: Vec<Digest32> = meant
            .iter()
            .flat_map(|reference| reference.digests.iter().copied())
            .collect();
        result.contradict(
            Claim::Executables,
            "event-unexpected",
            format!(
                "{}: found {found}, accepted {} ({event_type} in PCR {pcr})",
                names.join(" / "),
                list(&accepted)
            ),
        );
        if let [name] = names.as_slice() {
            explained.push(name);
        }
    }
    for reference in references {
        let measured = events
            .iter()
            .filter_map(|event| sha256(event))
            .find(|digest| reference.digests.contains(digest));
        match measured {
            Some(digest) => result.booted(&reference.name, digest),
            None if reference.optional || explained.contains(&reference.name.as_str()) => {}
            None => result.contradict(
                Claim::Executables,
                "event-missing",
                format!(
                    "{}: nothing was measured, accepted {} ({event_type} in PCR {pcr})",
                    reference.name,
                    list(&reference.digests)
                ),
            ),
        }
    }
}

/// The references that speak of the same thing as an event, going by its name; all of its kind
/// where the name says nothing.
fn meant_by<'r>(event: &Event, references: &[&'r EventReference]) -> Vec<&'r EventReference> {
    let subject = event.subject();
    let named: Vec<&EventReference> = references
        .iter()
        .copied()
        .filter(|reference| subject.as_deref() == Some(&reference.name))
        .collect();
    if named.is_empty() {
        references.to_vec()
    } else {
        named
    }
}

fn measured_into(layer: &VerifiedLayer, pcr: u8) -> impl Iterator<Item = &Event> {
    layer
        .log()
        .events()
        .iter()
        .filter(move |event| event.extends(pcr))
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
