//! `vrot-device verify`: evidence from a file, of one VM's service or of many VMs for their tenant.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use attestation::evidence::MAX_EVIDENCE;
use attestation::evidence_set::{
    MAX_EVIDENCE_SET, SetResult, VmOutcome, appraise_set, said_purpose,
};
use attestation::{Evidence, EvidenceSet, Nonce, Policy, Purpose, QuotePurpose, Refusal, Verdict};
use bounded_file::read_bounded;
use cert_chain::{RevocationLists, VmId};
use clap::{Args, ValueEnum};
use printable::Printable;
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};

use crate::command_line::{report, say, say_json};
use crate::connection_options::load_policy;
use crate::crl_options::CrlOptions;
use crate::judgement::Judgement;
use crate::outcome::Outcome;
use crate::settings::Settings;
use crate::times::parse_time;
use crate::tree::{Colour, draw, mark};

/// What is judged, and by what.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The evidence.
    #[arg(long, value_name = "FILE")]
    evidence: PathBuf,
    /// The nonce that it must answer, in hexadecimal.
    #[arg(long, value_name = "HEX")]
    nonce: Nonce,
    /// What is expected of it.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// What it has to be for. Evidence for another purpose is refused.
    #[arg(long, value_enum, default_value_t)]
    purpose: PurposeName,
    /// Of a tenant's evidence, the VMs that are meant; one that it says nothing of is not affirmed.
    /// Without it, all that are in it. Can be given several times.
    #[arg(long, value_name = "UUID")]
    vm: Vec<VmId>,
    #[command(flatten)]
    crls: CrlOptions,
    /// Judge as of this time (RFC 3339) instead of now.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    at: Option<UnixTime>,
    /// Print the result as JSON (an EAT attestation result; for a tenant's evidence one for each VM).
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum PurposeName {
    /// A service in the VM answered a challenge with it.
    #[default]
    Service,
    /// The host made it for the VMs' tenant, without the guests.
    Tenant,
}

/// What a set is worth.
enum SetJudgement {
    Appraised(SetResult),
    Refused(Judgement),
}

impl Verify {
    pub(crate) fn run(&self, settings: &Settings) -> Result<Outcome> {
        if self.purpose == PurposeName::Service && !self.vm.is_empty() {
            bail!("--vm selects VMs of a tenant's evidence: add --purpose tenant");
        }
        let policy = load_policy(settings.policy(self.policy.as_deref())?)?;
        let crls = self.crls.open(settings)?.for_verification();
        let file = self.evidence.display();
        let bytes = read_bounded(&self.evidence, MAX_EVIDENCE.max(MAX_EVIDENCE_SET))
            .with_context(|| format!("{file} cannot be read"))?;
        let at = self.at.unwrap_or_else(UnixTime::now);
        let expected = QuotePurpose::from(self.purpose);
        let other = said_purpose(&bytes).filter(|found| *found != expected);
        let refused = other.map(|found| {
            let refusal = Refusal::Purpose { found, expected };
            Judgement::Refused {
                ear: refusal.to_json(&policy, &self.nonce, at),
                refusal,
            }
        });
        match (self.purpose, refused) {
            (PurposeName::Service, Some(refused)) => report(&refused, self.json),
            (PurposeName::Service, None) => {
                let evidence = Evidence::from_cbor(&bytes)
                    .with_context(|| format!("{file} cannot be used"))?;
                let purpose = &Purpose::Challenge;
                let judged = Judgement::of(&evidence, &self.nonce, purpose, &policy, &crls, at);
                report(&judged, self.json)
            }
            (PurposeName::Tenant, Some(refused)) => {
                self.report_set(&SetJudgement::Refused(refused), &policy, at)
            }
            (PurposeName::Tenant, None) => {
                let set = EvidenceSet::from_cbor(&bytes)
                    .with_context(|| format!("{file} cannot be used"))?;
                let judged = self.judge(&set, &policy, &crls, at);
                self.report_set(&judged, &policy, at)
            }
        }
    }

    fn judge(
        &self,
        set: &EvidenceSet,
        policy: &Policy,
        crls: &RevocationLists,
        at: UnixTime,
    ) -> SetJudgement {
        let anchors = policy.anchors().with_lists(crls);
        match set.verify(&self.nonce, &anchors, at) {
            Ok(verified) => {
                let result = appraise_set(verified, policy);
                SetJudgement::Appraised(match self.vm.as_slice() {
                    [] => result,
                    meant => result.of(meant),
                })
            }
            Err(refusal) => SetJudgement::Refused(Judgement::Refused {
                ear: refusal.to_json(policy, &self.nonce, at),
                refusal,
            }),
        }
    }

    fn report_set(&self, judged: &SetJudgement, policy: &Policy, at: UnixTime) -> Result<Outcome> {
        if self.json {
            say_json(&self.to_json(judged, policy, at))?;
        } else {
            let colour = Colour::of_output();
            say(&match judged {
                SetJudgement::Refused(refused) => draw(refused, colour),
                SetJudgement::Appraised(result) => describe(result, colour),
            })?;
        }
        Ok(judged.verdict().into())
    }

    fn to_json(&self, judged: &SetJudgement, policy: &Policy, at: UnixTime) -> Value {
        let mut told = json!({
            "purpose": QuotePurpose::Tenant.name(),
            "nonce": self.nonce.to_string(),
            "verdict": judged.verdict(),
        });
        let more = match judged {
            SetJudgement::Refused(refused) => json!({ "refused": refused.to_json() }),
            SetJudgement::Appraised(result) => {
                let vm = |outcome: &VmOutcome| {
                    let ear = match outcome {
                        VmOutcome::Appraised(result) => result.to_json(),
                        VmOutcome::Refused(refused) => {
                            refused.refusal.to_json(policy, &self.nonce, at)
                        }
                    };
                    json!({ "vm": outcome.vm(), "verdict": outcome.verdict(), "result": ear })
                };
                let unquoted = result.unquoted().iter();
                json!({
                    "vms": result.vms().iter().map(vm).collect::<Vec<_>>(),
                    "unquoted": unquoted
                        .map(|unquoted| json!({ "vm": unquoted.vm, "reason": unquoted.reason }))
                        .collect::<Vec<_>>(),
                })
            }
        };
        if let (Some(told), Value::Object(more)) = (told.as_object_mut(), more) {
            told.extend(more);
        }
        told
    }
}

impl SetJudgement {
    fn verdict(&self) -> Verdict {
        match self {
            Self::Appraised(result) => result.verdict(),
            Self::Refused(refused) => refused.verdict(),
        }
    }
}

impl From<PurposeName> for QuotePurpose {
    fn from(purpose: PurposeName) -> Self {
        match purpose {
            PurposeName::Service => Self::Service,
            PurposeName::Tenant => Self::Tenant,
        }
    }
}

/// A line for each VM, with the reasons below it; the last line is `verdict: …`.
fn describe(result: &SetResult, colour: Colour) -> String {
    let mut text = String::from("For the VMs' tenant, without their guests:\n");
    for outcome in result.vms() {
        let vm = (outcome.vm()).map_or_else(|| "of no number".to_owned(), |vm| vm.to_string());
        let verdict = outcome.verdict();
        let _ = writeln!(text, "{} VM {vm}  {verdict}", mark(verdict, colour));
        match outcome {
            VmOutcome::Appraised(result) => {
                for layer in [attestation::Layer::Host, attestation::Layer::Vm] {
                    for reason in result.layer(layer).reasons() {
                        let (why, code) = (Printable(&reason.text), reason.code);
                        let _ = writeln!(text, "    {layer}: {why} ({code})");
                    }
                }
            }
            VmOutcome::Refused(refused) => {
                let why = refused.refusal.explanation();
                let code = refused.refusal.code();
                let _ = writeln!(text, "    refused: {} ({code})", Printable(&why));
            }
        }
    }
    for unquoted in result.unquoted() {
        let told = unquoted.to_string();
        let _ = writeln!(
            text,
            "{} {}",
            mark(Verdict::Warning, colour),
            Printable(&told)
        );
    }
    let _ = writeln!(text, "\nverdict: {}", result.verdict());
    text
}
