//! An event log for people and programs.

use std::fmt::Write as _;

use attestation::EventLog;
use serde_json::{Map, Value, json};

/// The log and the PCR values that it leads to.
pub fn to_json(log: &EventLog) -> Value {
    let events: Vec<Value> = log
        .events()
        .iter()
        .map(|event| {
            let digests: Map<String, Value> = event
                .digests
                .iter()
                .map(|(algorithm, digest)| {
                    (algorithm.name().to_owned(), hex::encode(digest).into())
                })
                .collect();
            json!({
                "pcr": event.pcr,
                "type": event.event_type.to_string(),
                "digests": digests,
                "data": hex::encode(&event.data),
            })
        })
        .collect();
    let pcrs: Map<String, Value> = log
        .replay()
        .iter()
        .map(|(algorithm, values)| {
            let values: Map<String, Value> = values
                .iter()
                .map(|(pcr, value)| (pcr.to_string(), hex::encode(value).into()))
                .collect();
            (algorithm.name().to_owned(), values.into())
        })
        .collect();
    json!({ "events": events, "pcrs": pcrs })
}

/// The same as a table.
pub fn to_text(log: &EventLog) -> String {
    let mut text = String::new();
    for event in log.events() {
        let _ = writeln!(text, "PCR {:2}  {}", event.pcr, event.event_type);
        for (algorithm, digest) in &event.digests {
            let _ = writeln!(text, "        {} {}", algorithm.name(), hex::encode(digest));
        }
    }
    for (algorithm, values) in log.replay() {
        let _ = writeln!(text, "\n{} after these events:", algorithm.name());
        for (pcr, value) in values {
            let _ = writeln!(text, "  {pcr:2}: {}", hex::encode(value));
        }
    }
    text
}
