//! What was found about data, for people and for programs.

use std::fmt::Write as _;

use attestation::result::LayerResult;
use attestation::{Layer, Verdict};
use printable::{Printable, WithCauses};
use serde_json::{Value, json};
use signed_data::stream::StreamRefusal;
use signed_data::{DataResult, EvidenceResult, LabelText, VerifiedSource};

use crate::times::rfc3339;
use crate::tree::{Colour, mark};

/// What was found about data, or why they are refused.
pub(super) type Judged = Result<(DataResult, Subject), StreamRefusal>;

/// What was verified.
#[derive(Debug)]
pub(super) enum Subject {
    /// Data that a signature is of.
    Data,
    /// A reading of a batch.
    Reading {
        number: u64,
        reading: Vec<u8>,
        content_type: LabelText,
    },
}

pub(super) fn verdict(judged: &Judged) -> Verdict {
    let verdict = judged.as_ref().map(|(result, _)| result.verdict());
    verdict.unwrap_or(Verdict::Contraindicated)
}

pub(super) fn to_json(judged: &Judged) -> Value {
    let (result, subject) = match judged {
        Err(refusal) => return refusal_to_json(refusal),
        Ok(found) => found,
    };
    let mut value = result_to_json(result);
    if let Subject::Reading {
        number,
        reading,
        content_type,
    } = subject
        && let Some(value) = value.as_object_mut()
    {
        value.insert("reading".to_owned(), reading_to_json(*number, reading));
        value.insert("reading_content_type".to_owned(), json!(content_type));
    }
    value
}

/// Of data that are genuine.
pub(crate) fn result_to_json(result: &DataResult) -> Value {
    let (data, label) = (result.data(), result.data().label());
    let reasons = result.reasons().iter();
    json!({
        "verdict": result.verdict(),
        "source": source_to_json(data.source()),
        "stream": label.stream,
        "number": label.sequence,
        "signed_at": rfc3339(label.time),
        "content_type": label.content_type,
        "data_sha256": data.content().digest(),
        "key": label.key,
        "evidence_age_s": data.evidence_age(),
        "reasons": reasons
            .map(|reason| json!({ "code": reason.code, "text": reason.text }))
            .collect::<Vec<_>>(),
        "attestation": result.attestation().map(|attestation| attestation.to_json()),
    })
}

/// What was signed, what was found, and last `verdict: …`.
pub(super) fn to_text(judged: &Judged) -> String {
    let text = match judged {
        Err(refusal) => refusal_to_text(refusal),
        Ok((result, Subject::Data)) => result_to_text(result),
        Ok((
            result,
            Subject::Reading {
                number,
                reading,
                content_type,
            },
        )) => {
            let reading = String::from_utf8_lossy(reading);
            let content_type = content_type.to_string();
            format!(
                "{}reading    {number} of its stream, {}\n           {}\n",
                result_to_text(result),
                Printable(&content_type),
                Printable(&reading)
            )
        }
    };
    format!("{text}\nverdict: {}\n", verdict(judged))
}

/// What was signed and what was found.
pub(crate) fn result_to_text(result: &DataResult) -> String {
    let mark = mark(result.verdict(), Colour::of_output());
    let mut text = String::new();
    let (data, label) = (result.data(), result.data().label());
    let time = rfc3339(label.time);
    let evidence = match data.evidence_age() {
        Some(age) => format!("taken {age} s before the data were signed"),
        None => "none".to_owned(),
    };
    let mut lines = source_to_lines(data.source());
    lines.extend([
        ("stream", label.stream.to_string()),
        ("number", label.sequence.to_string()),
        ("signed at", format!("{time}, by its own clock")),
        ("type", label.content_type.to_string()),
        ("SHA-256", data.content().digest().to_string()),
        ("evidence", evidence),
    ]);
    for (name, value) in lines {
        let _ = writeln!(text, "{name:<10} {}", Printable(&value));
    }
    for reason in result.reasons() {
        let (why, code) = (Printable(&reason.text), reason.code);
        let _ = writeln!(text, "{mark} {why} ({code})");
    }
    text.push_str(&evidence_to_text(result.attestation()));
    text
}

/// What the evidence showed, layer by layer.
pub(super) fn evidence_to_text(evidence: Option<&EvidenceResult>) -> String {
    let mut text = String::new();
    for (layer, found) in evidence.map(layers).unwrap_or_default() {
        let _ = writeln!(text, "{layer} by the evidence: {}", found.verdict());
        for reason in found.reasons() {
            let (why, code) = (Printable(&reason.text), reason.code);
            let _ = writeln!(text, "    {why} ({code})");
        }
    }
    text
}

/// A refusal as programs are told.
pub(super) fn refusal_to_json(refusal: &StreamRefusal) -> Value {
    json!({
        "verdict": Verdict::Contraindicated,
        "refusal": { "code": refusal.code(), "text": WithCauses(refusal).to_string() },
    })
}

/// The same for people.
pub(super) fn refusal_to_text(refusal: &StreamRefusal) -> String {
    let mark = mark(Verdict::Contraindicated, Colour::of_output());
    let (why, code) = (WithCauses(refusal).to_string(), refusal.code());
    format!("{mark} refused: {} ({code})\n", Printable(&why))
}

/// A reading: its text, or what it is in hexadecimal.
pub(super) fn reading_to_json(number: u64, reading: &[u8]) -> Value {
    match std::str::from_utf8(reading) {
        Ok(text) => json!({ "number": number, "text": text }),
        Err(_) => json!({ "number": number, "hex": hex::encode(reading) }),
    }
}

pub(super) fn source_to_json(source: &VerifiedSource) -> Value {
    match source {
        VerifiedSource::Vm { chain, .. } => {
            let claims = chain.claims();
            json!({ "role": "vm", "vm": claims.vm, "vrot": claims.vrot, "tenant": claims.tenant,
                "generation": claims.generation, "host": chain.host() })
        }
        VerifiedSource::Device { certificate, .. } => {
            let claims = certificate.claims();
            json!({ "role": "device", "device": certificate.device(), "ik": claims.ik, "ek": claims.ek,
                "issuer": certificate.issuer() })
        }
    }
}

fn source_to_lines(source: &VerifiedSource) -> Vec<(&'static str, String)> {
    match source {
        VerifiedSource::Vm { chain, .. } => {
            let claims = chain.claims();
            let (vm, tenant, generation) = (claims.vm, &claims.tenant, claims.generation);
            vec![
                ("VM", format!("{vm} of {tenant}, generation {generation}")),
                ("host", chain.host().to_string()),
            ]
        }
        VerifiedSource::Device { certificate, .. } => vec![
            ("device", certificate.device().to_string()),
            ("issuer", certificate.issuer().to_owned()),
        ],
    }
}

/// What the evidence showed, from below.
fn layers(result: &EvidenceResult) -> Vec<(String, &LayerResult)> {
    match result {
        EvidenceResult::Vm(result) => [Layer::Host, Layer::Vm]
            .map(|layer| (layer.to_string(), result.layer(layer)))
            .into(),
        EvidenceResult::Device(result) => vec![("device".to_owned(), result.layer())],
    }
}
