//! `vrot-device archive show`.

use std::path::PathBuf;

use anyhow::Result;
use archive::{Form, Head, Token};
use clap::Args;
use serde_json::{Value, json};
use signed_data::{Content, SignedData};

use super::describe::said;
use super::judgement::read_signed;
use super::records::Opened;
use crate::command_line::{say, say_json};
use crate::outcome::Outcome;
use crate::times::rfc3339;

/// What is shown.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The archive, or a record that was taken out of one.
    #[arg(value_name = "ARCHIVE")]
    archive: PathBuf,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(super) fn run(&self) -> Result<Outcome> {
        let opened = Opened::open(&self.archive)?;
        let (signed, stamped) = read_signed(&opened.head().signed)?;
        let stamps: Vec<&Token> = opened.record().tokens().collect();
        let (head, signature) = (opened.head(), stamped.token.as_ref());
        let record = opened.unverified_name()?;
        match self.json {
            true => {
                let mut told = to_json(head, &signed, signature, &stamps);
                if let Some(told) = told.as_object_mut() {
                    told.insert("record".to_owned(), json!(record));
                }
                say_json(&told)?;
            }
            false => {
                let mut text = to_text(head, &signed, signature, &stamps);
                if let Some(record) = record {
                    said(&mut text, "record", &format!("{record}, taken out of it"));
                }
                say(&text)?;
            }
        }
        Ok(Outcome::Good)
    }
}

fn to_json(
    head: &Head,
    signed: &SignedData,
    signature: Option<&Token>,
    stamps: &[&Token],
) -> Value {
    let label = signed.unverified_label();
    let stamp = |token: &Token| json!({ "time": time_of(token), "hash": token.imprint().algorithm().name() });
    json!({
        "verified": false,
        "source": label.source.to_string(),
        "stream": label.stream,
        "number": label.sequence,
        "signed_at": rfc3339(label.time),
        "content_type": label.content_type,
        "data_sha256": signed.unverified_content().digest(),
        "data": where_data_are(head.form, signed.unverified_content()),
        "length": head.length,
        "evidence": label.evidence.is_some(),
        "revocation_lists": head.crls().count(),
        "signature_stamp": signature.map(stamp),
        "stamps": stamps.iter().map(|token| stamp(token)).collect::<Vec<_>>(),
        "policy": head.policy,
        "verdict": head.verdict.as_deref().map(verdict_of),
    })
}

fn to_text(
    head: &Head,
    signed: &SignedData,
    signature: Option<&Token>,
    stamps: &[&Token],
) -> String {
    let label = signed.unverified_label();
    let content = signed.unverified_content();
    let mut text = String::from("Nothing was verified. The archive says:\n");
    let stamps = stamps
        .iter()
        .map(|token| time_of(token))
        .collect::<Vec<_>>();
    for (name, value) in [
        ("source", label.source.to_string()),
        ("stream", label.stream.to_string()),
        ("number", label.sequence.to_string()),
        (
            "signed at",
            format!("{}, by its own clock", rfc3339(label.time)),
        ),
        ("type", label.content_type.to_string()),
        ("SHA-256", content.digest().to_string()),
        (
            "data",
            match head.form {
                Form::Elsewhere => where_data_are(head.form, content).to_owned(),
                Form::File | Form::Records => {
                    format!(
                        "{}, {} bytes",
                        where_data_are(head.form, content),
                        head.length
                    )
                }
            },
        ),
        (
            "evidence",
            match label.evidence {
                Some(_) => "in the archive".to_owned(),
                None => "none".to_owned(),
            },
        ),
        (
            "stamped",
            signature.map_or_else(|| "not".to_owned(), time_of),
        ),
        ("archived", stamps.join(", renewed ")),
        ("lists", format!("{} of revocations", head.crls().count())),
        (
            "verdict",
            match head.verdict.as_deref().map(verdict_of) {
                Some(verdict) => {
                    let verdict = verdict
                        .get("verdict")
                        .and_then(Value::as_str)
                        .map(str::to_owned);
                    format!(
                        "{}, said who archived it",
                        verdict.unwrap_or_else(|| "unreadable".to_owned())
                    )
                }
                None => "none".to_owned(),
            },
        ),
    ] {
        said(&mut text, name, &value);
    }
    text
}

/// JSON where it is that; it is the archiver's word either way.
fn verdict_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

fn where_data_are(form: Form, content: &Content) -> &'static str {
    match (form, content) {
        (Form::Elsewhere, Content::Attached(_)) => "with the signature",
        (Form::Elsewhere, Content::Hash(_)) => "elsewhere",
        (Form::File, _) => "in the archive",
        (Form::Records, _) => "in the archive, as records",
    }
}

fn time_of(token: &Token) -> String {
    rfc3339(token.unverified_time().as_secs())
}
