//! What is said of an archive.

use std::fmt::Write as _;

use archive::records::Records;
use archive::{VerifiedArchive, VerifiedTimeStamp};
use attestation::Verdict;
use cert_chain::RevocationStatus;
use printable::{Printable, WithCauses};
use serde_json::{Value, json};

use super::judgement::{ArchiveRefusal, ArchivedData};
use crate::outcome::Outcome;
use crate::times::rfc3339;
use crate::tree::{Colour, mark};
use crate::verify_data::{result_to_json, result_to_text};

/// Whose policy it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PolicyOf {
    /// The verifier's.
    Verifier,
    /// That of whoever made the archive, with the verifier's roots.
    Archiver,
}

pub(super) fn verdict(judged: &Result<ArchivedData, ArchiveRefusal>) -> Verdict {
    let verdict = judged.as_ref().map(|archived| archived.result().verdict());
    verdict.unwrap_or(Verdict::Contraindicated)
}

pub(super) fn to_json(judged: &Result<ArchivedData, ArchiveRefusal>, policy: PolicyOf) -> Value {
    match judged {
        Err(refusal) => refusal_to_json(refusal),
        Ok(archived) => json!({
            "verdict": archived.result().verdict(),
            "policy_of": policy.name(),
            "time": time_to_json(archived.archive()),
            "data": result_to_json(archived.result()),
            "records": archived.records().map(records_to_json),
            "record": archived.record().map(|record| json!({
                "name": record.name(),
                "index": record.index(),
                "length": record.content().len(),
            })),
        }),
    }
}

pub(super) fn records_to_json(records: &Records) -> Value {
    json!({ "count": records.count(), "length": records.length(), "root": records.root() })
}

/// What is proven about the time, what was signed, and last `verdict: …`.
pub(super) fn to_text(judged: &Result<ArchivedData, ArchiveRefusal>, policy: PolicyOf) -> String {
    let mut text = String::new();
    match judged {
        Err(refusal) => text.push_str(&refusal_to_text(refusal)),
        Ok(archived) => {
            let time = archived.archive();
            said(&mut text, "proven", &before("signed", time.signature()));
            said(
                &mut text,
                "proven",
                &before("archived", time.record().first()),
            );
            for renewal in time.record().renewals() {
                said(&mut text, "", &before("renewed", renewal));
            }
            let ends = rfc3339(time.record().not_after().as_secs());
            said(
                &mut text,
                "until",
                &format!("{ends}, unless it is renewed before"),
            );
            if policy == PolicyOf::Archiver {
                said(
                    &mut text,
                    "policy",
                    "of whoever made the archive, with your roots",
                );
            }
            let count = archived.records().map(Records::count);
            match (archived.record(), count) {
                (Some(record), Some(count)) => {
                    let number = record.index().saturating_add(1);
                    let name = record.name();
                    said(
                        &mut text,
                        "record",
                        &format!("{name}, number {number} of {count}"),
                    );
                }
                (None, Some(count)) => said(&mut text, "records", &count.to_string()),
                (_, None) => {}
            }
            text.push('\n');
            text.push_str(&result_to_text(archived.result()));
        }
    }
    let _ = writeln!(text, "\nverdict: {}", verdict(judged));
    text
}

fn time_to_json(archive: &VerifiedArchive) -> Value {
    let record = archive.record();
    json!({
        "signed": stamp_to_json(archive.signature()),
        "archived": stamp_to_json(record.first()),
        "renewed": record.renewals().iter().map(stamp_to_json).collect::<Vec<_>>(),
        "proof_ends": rfc3339(record.not_after().as_secs()),
    })
}

pub(super) fn stamp_to_json(stamp: &VerifiedTimeStamp) -> Value {
    json!({
        "before": rfc3339(stamp.before().as_secs()),
        "authority": stamp.authority().name(),
        "hash": stamp.imprint().algorithm().name(),
        "revocation": match stamp.authority().revocation() {
            RevocationStatus::NotAsked => Value::Null,
            RevocationStatus::NotListed(list) => json!({
                "crl_number": list.number.to_string(),
                "crl_this_update": rfc3339(list.this_update.as_secs()),
            }),
        },
    })
}

pub(super) fn before(what: &str, stamp: &VerifiedTimeStamp) -> String {
    let (time, authority) = (rfc3339(stamp.before().as_secs()), stamp.authority().name());
    let revocation = match stamp.authority().revocation() {
        RevocationStatus::NotAsked => "whether it was revoked is not known".to_owned(),
        RevocationStatus::NotListed(list) => {
            let made = rfc3339(list.this_update.as_secs());
            format!("not revoked by the list of {made}")
        }
    };
    format!("{what} before {time}, says {authority} ({revocation})")
}

pub(super) fn said(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "{name:<10} {}", Printable(value));
}

pub(super) fn refusal_to_json(refusal: &ArchiveRefusal) -> Value {
    json!({
        "verdict": Verdict::Contraindicated,
        "refusal": { "code": refusal.code(), "text": WithCauses(refusal).to_string() },
    })
}

pub(super) fn refusal_to_text(refusal: &ArchiveRefusal) -> String {
    let mark = mark(Verdict::Contraindicated, Colour::of_output());
    let (why, code) = (WithCauses(refusal).to_string(), refusal.code());
    format!("{mark} refused: {} ({code})\n", Printable(&why))
}

/// Says why nothing was written.
pub(super) fn say_refusal(refusal: &ArchiveRefusal, json: bool) -> anyhow::Result<Outcome> {
    match json {
        true => crate::command_line::say_json(&refusal_to_json(refusal))?,
        false => crate::command_line::say(&refusal_to_text(refusal))?,
    }
    Ok(Outcome::NotAffirming)
}

impl PolicyOf {
    fn name(self) -> &'static str {
        match self {
            Self::Verifier => "verifier",
            Self::Archiver => "archiver",
        }
    }
}
