//! An event log for people and programs.

use std::fmt::Write as _;

use attestation::EventLog;
use attestation::event_log::{BankReplay, Replay, UserspaceLog};
use cert_chain::HashValue;
use serde_json::{Map, Value, json};

/// The log and the PCR values that it leads to: `pcrs` has the banks that the log accounts for
/// completely, `incomplete` those that some event has no digest of, with what is known of them.
pub fn to_json(log: &EventLog, userspace: Option<&UserspaceLog>) -> Value {
    let events: Vec<Value> = log
        .events()
        .iter()
        .map(|event| {
            json!({
                "pcr": event.pcr,
                "type": event.event_type.to_string(),
                "digests": digests(&event.digests),
                "data": hex::encode(&event.data),
            })
        })
        .collect();
    let mut told = json!({ "events": events });
    if let (Some(userspace), Some(told)) = (userspace, told.as_object_mut()) {
        let events: Vec<Value> = userspace
            .events()
            .iter()
            .map(|event| {
                json!({
                    "pcr": event.pcr,
                    "type": event.kind,
                    "digests": digests(&event.digests),
                    "description": event.description,
                })
            })
            .collect();
        told.insert("userspace_events".to_owned(), events.into());
    }
    let (mut pcrs, mut incomplete) = (Map::new(), Map::new());
    for bank in replay(log, userspace).banks() {
        let name = bank.bank().to_string();
        match bank.first_gap() {
            None => drop(pcrs.insert(name, values(bank).into())),
            Some(gap) => drop(incomplete.insert(
                name,
                json!({ "reason": gap.to_string(), "pcrs": values(bank) }),
            )),
        }
    }
    if let Some(told) = told.as_object_mut() {
        told.insert("pcrs".to_owned(), pcrs.into());
        if !incomplete.is_empty() {
            told.insert("incomplete".to_owned(), incomplete.into());
        }
    }
    told
}

/// The same as a table.
pub fn to_text(log: &EventLog, userspace: Option<&UserspaceLog>) -> String {
    let mut text = String::new();
    for event in log.events() {
        let _ = writeln!(text, "{:8}  {}", place(event.pcr), event.event_type);
        for digest in &event.digests {
            let _ = writeln!(text, "          {} {digest}", digest.algorithm());
        }
    }
    for event in userspace.into_iter().flat_map(UserspaceLog::events) {
        let place = event
            .pcr
            .map_or("NV index".to_owned(), |pcr| place(pcr.into()));
        // Escaped: the running system can write anything.
        let _ = writeln!(text, "{place:8}  {:?} {:?}", event.kind, event.description);
        for digest in &event.digests {
            let _ = writeln!(text, "          {} {digest}", digest.algorithm());
        }
    }
    let replay = replay(log, userspace);
    if replay.banks().next().is_none() {
        text.push_str(
            "\nno PCR value is known: the log tells of no measurement, or has digests of no algorithm that is \
             computed here (sha1, sha256, sha384, sha512)\n",
        );
    }
    for bank in replay.banks() {
        let _ = writeln!(text, "\n{} after these events:", bank.bank());
        for (pcr, value) in bank.extended() {
            let _ = match value {
                Ok(value) => writeln!(text, "  {pcr:2}: {value}"),
                Err(gap) => writeln!(text, "  {pcr:2}: unknown: {gap}"),
            };
        }
    }
    text
}

fn replay(log: &EventLog, userspace: Option<&UserspaceLog>) -> Replay {
    userspace.map_or_else(|| log.replay(), |userspace| log.replay_with(userspace))
}

fn digests(digests: &[HashValue]) -> Map<String, Value> {
    digests
        .iter()
        .map(|digest| (digest.algorithm().to_string(), digest.to_string().into()))
        .collect()
}

fn values(bank: &BankReplay) -> Map<String, Value> {
    bank.extended()
        .filter_map(|(pcr, value)| Some((pcr.to_string(), value.ok()?.to_string().into())))
        .collect()
}

/// A note can name a PCR that there is not.
fn place(pcr: u32) -> String {
    match u8::try_from(pcr) {
        Ok(pcr) => format!("PCR {pcr:2}"),
        Err(_) => format!("PCR 0x{pcr:08x}"),
    }
}
