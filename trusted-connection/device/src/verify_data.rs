//! `vrot-device verify-data`: data that the TPM of a VM or a device signed.

use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use attestation::result::LayerResult;
use attestation::{Layer, PolicyAbout, Verdict};
use bounded_file::read_bounded;
use cert_chain::{Digest32, TrustAnchors};
use clap::Args;
use printable::{Printable, WithCauses};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};
use signed_data::{
    DataRefusal, DataResult, Demand, EvidenceResult, LabelText, MAX_SIGNED_DATA, SignedData,
    VerifiedSource, appraise, hash_of_data,
};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use trusted_connection::policy_files;

use crate::command_line::{parse_time, say, say_json};
use crate::crl_options::CrlOptions;
use crate::outcome::Outcome;
use crate::tree::{Colour, mark};

/// What is judged, and by what.
#[derive(Debug, Args)]
pub(crate) struct VerifyData {
    /// The signed data.
    #[arg(value_name = "FILE")]
    signed: PathBuf,
    /// The data, unless they are in the signed file.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// What is expected of their source: a policy about VMs and their hosts, or one about devices.
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// The stream that they must belong to.
    #[arg(long, value_name = "NAME")]
    stream_name: Option<LabelText>,
    /// The highest number seen so far of this source: data with this or a lower one are refused as replayed.
    #[arg(long, value_name = "NUMBER")]
    after: Option<u64>,
    /// The most seconds before the signature that their evidence may have been taken.
    #[arg(long, value_name = "SECONDS", conflicts_with = "identity_alone")]
    max_evidence_age: Option<u64>,
    /// Take data without evidence too: it is known who signed them, and not what had booted there.
    #[arg(long)]
    identity_alone: bool,
    #[command(flatten)]
    crls: CrlOptions,
    /// Judge as of this time (RFC 3339) instead of now. The time in the data is their source's word.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    at: Option<UnixTime>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl VerifyData {
    pub(crate) fn run(&self) -> Result<Outcome> {
        let policy = policy_files::load_about_either(&self.policy)
            .with_context(|| format!("the policy {} cannot be used", self.policy.display()))?;
        let file = self.signed.display();
        let bytes = read_bounded(&self.signed, MAX_SIGNED_DATA)
            .with_context(|| format!("{file} cannot be read"))?;
        let signed =
            SignedData::from_cbor(&bytes).with_context(|| format!("{file} cannot be used"))?;
        let data = self.data.as_deref().map(hash_of).transpose()?;
        let lists = self.crls.open()?.for_verification();
        let anchors = anchors_of(&policy)?.with_lists(&lists);
        let at = self.at.unwrap_or_else(UnixTime::now);
        let judged = signed
            .verify(data.as_ref(), &anchors, at)
            .and_then(|verified| appraise(verified, &policy, &self.demand()));
        if self.json {
            say_json(&to_json(&judged))?;
        } else {
            say(&to_text(&judged))?;
        }
        Ok(verdict(&judged).into())
    }

    fn demand(&self) -> Demand {
        Demand {
            stream: self.stream_name.clone(),
            after: self.after,
            max_evidence_age: self.max_evidence_age,
            identity_alone: self.identity_alone,
        }
    }
}

/// The issuers that the policy trusts. One that exempts devices without a TPM and accepts no other is of no
/// use here: nothing that they sign proves who they are.
pub(crate) fn anchors_of(policy: &PolicyAbout) -> Result<&TrustAnchors> {
    match policy {
        PolicyAbout::Vms(policy) => Ok(policy.anchors()),
        PolicyAbout::Devices(policy) => policy.anchors().context(
            "the policy accepts no device with a TPM, and others sign nothing that can be verified",
        ),
    }
}

fn verdict(judged: &Result<DataResult, DataRefusal>) -> Verdict {
    let verdict = judged.as_ref().map(DataResult::verdict);
    verdict.unwrap_or(Verdict::Contraindicated)
}

fn to_json(judged: &Result<DataResult, DataRefusal>) -> Value {
    match judged {
        Err(refusal) => json!({
            "verdict": Verdict::Contraindicated,
            "refusal": { "code": refusal.code(), "text": WithCauses(refusal).to_string() },
        }),
        Ok(result) => result_to_json(result),
    }
}

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
fn to_text(judged: &Result<DataResult, DataRefusal>) -> String {
    let text = match judged {
        Err(refusal) => {
            let mark = mark(verdict(judged), Colour::of_output());
            let (why, code) = (WithCauses(refusal).to_string(), refusal.code());
            format!("{mark} refused: {} ({code})\n", Printable(&why))
        }
        Ok(result) => result_to_text(result),
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
    for (layer, found) in result.attestation().map(layers).unwrap_or_default() {
        let _ = writeln!(text, "{layer} by the evidence: {}", found.verdict());
        for reason in found.reasons() {
            let (why, code) = (Printable(&reason.text), reason.code);
            let _ = writeln!(text, "    {why} ({code})");
        }
    }
    text
}

fn source_to_json(source: &VerifiedSource) -> Value {
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

pub(crate) fn rfc3339(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok();
    let time = time.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    let text = time.and_then(|time| time.format(&Rfc3339).ok());
    text.unwrap_or_else(|| format!("{seconds} s after 1970"))
}

/// SHA-256 value of a file of any length.
fn hash_of(path: &Path) -> Result<Digest32> {
    File::open(path)
        .and_then(|mut file| hash_of_data(&mut file))
        .with_context(|| format!("{} cannot be read", path.display()))
}
