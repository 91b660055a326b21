//! Answers as programs read them.

use api_types::wire::{TenantVmDetails, TenantVmList};
use attestation::evidence_set::{SetResult, VmOutcome};
use serde_json::{Value, json};

use crate::attestations::{Attestation, JudgedHost, SetOutcome};
use crate::error::HostError;
use crate::events::Told;
use crate::tenant::FromHost;
use crate::watching::{FromStream, Happening};

pub(crate) fn vms(told: &[FromHost<TenantVmList>]) -> Value {
    json!({ "hosts": by_host(told, |list| json!({ "vms": list.vms })) })
}

pub(crate) fn vm(told: &[FromHost<Option<TenantVmDetails>>]) -> Value {
    json!({ "hosts": by_host(told, |details| json!({ "vm": details })) })
}

/// The worst verdict, what each host answered, and the VMs that are missing.
pub(crate) fn attestation(told: &Attestation) -> Value {
    json!({
        "verdict": told.verdict(),
        "hosts": by_host(&told.hosts, judged),
        "missing": told.missing,
    })
}

fn judged(judged: &JudgedHost) -> Value {
    let told = json!({ "nonce": judged.nonce.to_string(), "verdict": judged.outcome.verdict() });
    let (refused, results) = match &judged.outcome {
        SetOutcome::Nothing => (json!({}), &[][..]),
        SetOutcome::Appraised(results) => (json!({}), results.as_slice()),
        SetOutcome::Refused(why) => {
            let why = refusal(why.code(), &why.to_string(), why.remedy());
            (why, &[][..])
        }
    };
    let vms: Vec<Value> = (results.iter().flat_map(SetResult::vms))
        .map(outcome)
        .collect();
    let unquoted: Vec<Value> = (results.iter().flat_map(SetResult::unquoted))
        .map(|unquoted| json!({ "vm": unquoted.vm, "reason": unquoted.reason }))
        .collect();
    and(
        and(told, refused),
        json!({ "vms": vms, "unquoted": unquoted }),
    )
}

fn outcome(outcome: &VmOutcome) -> Value {
    let told = json!({ "vm": outcome.vm(), "verdict": outcome.verdict() });
    let more = match outcome {
        VmOutcome::Appraised(result) => json!({ "result": result.to_json() }),
        VmOutcome::Refused(refused) => {
            let refused = &refused.refusal;
            refusal(refused.code(), &refused.explanation(), refused.remedy())
        }
    };
    and(told, more)
}

fn refusal(code: &str, text: &str, remedy: &str) -> Value {
    json!({ "refused": { "code": code, "text": text, "remedy": remedy } })
}

fn error(error: &HostError) -> Value {
    json!({ "error": { "code": error.code(), "text": error.explanation() } })
}

/// Of each host its name, and its answer or the error.
fn by_host<T>(told: &[FromHost<T>], answer: impl Fn(&T) -> Value) -> Vec<Value> {
    let hosts = told.iter().map(|from| {
        let told = match &from.answer {
            Ok(told) => answer(told),
            Err(why) => error(why),
        };
        and(json!({ "host": from.host }), told)
    });
    hosts.collect()
}

/// An event as the host told it, with the host's name; or what else there is to say, under a kind of its
/// own.
pub(crate) fn happening(from: &FromStream) -> Value {
    let told = match &from.what {
        Happening::Told(Told::Following) => json!({ "kind": "following" }),
        Happening::Told(Told::Restarted { after }) => {
            json!({ "kind": "manager-restarted", "after": after })
        }
        Happening::Told(Told::Missed { from, to }) => {
            json!({ "kind": "missed", "from": from, "to": to })
        }
        Happening::Lost(why) => and(json!({ "kind": "lost" }), error(why)),
        Happening::Ended => json!({ "kind": "ended" }),
        Happening::Told(Told::Event(event)) => json!(event),
    };
    and(json!({ "host": from.host }), told)
}

/// The members of both objects.
fn and(mut told: Value, more: Value) -> Value {
    if let (Some(told), Value::Object(more)) = (told.as_object_mut(), more) {
        told.extend(more);
    }
    told
}
