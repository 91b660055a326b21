//! What verified data are worth by a policy.

use attestation::device::{DeviceResult, appraise_device, check_device_identity};
use attestation::policy::Expectation;
use attestation::{AttestationResult, Policy, PolicyAbout, Verdict};
use cert_chain::{Digest32, VerifiedVikChain};
use rustls_pki_types::UnixTime;
use serde_json::Value;

use crate::refusal::DataRefusal;
use crate::text::LabelText;
use crate::verification::{VerifiedData, VerifiedSource};

/// What is demanded of data beyond the policy about their source.
#[derive(Clone, Debug, Default)]
pub struct Demand {
    /// The stream that they must belong to.
    pub stream: Option<LabelText>,
    /// Their number must be higher.
    pub after: Option<u64>,
    /// The most seconds that the evidence may have been taken before they were signed.
    pub max_evidence_age: Option<u64>,
    /// The most seconds before the time of verification at which they may say that they were signed: for who
    /// verifies data as they come.
    pub max_delay: Option<u64>,
    /// Data without evidence are good enough: the source's identity is compared with the policy, and nothing
    /// is known of what booted.
    pub identity_alone: bool,
}

/// Verified data with what they are worth.
#[derive(Debug)]
pub struct DataResult {
    data: VerifiedData,
    attestation: Option<EvidenceResult>,
    reasons: Vec<DataReason>,
}

/// Why data are contraindicated that are genuine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataReason {
    /// A short name for programs.
    pub code: &'static str,
    /// For people.
    pub text: String,
}

/// What the evidence that came along is worth.
#[derive(Clone, Debug)]
pub enum EvidenceResult {
    /// Of a VM and its host.
    Vm(Box<AttestationResult>),
    /// Of a device.
    Device(Box<DeviceResult>),
}

/// Compares verified data with a policy about VMs or devices, and a demand. What is of the other kind or
/// another stream, or has a number that is not new, is refused; evidence is appraised; and data without
/// evidence are contraindicated unless the demand says otherwise.
///
/// A policy's exemption of devices whose keys are in software is for connections: nothing that such a device
/// signs gets here.
pub fn appraise(
    mut data: VerifiedData,
    policy: &PolicyAbout,
    demand: &Demand,
) -> Result<DataResult, DataRefusal> {
    check_label(&data, demand)?;
    let mut reasons = check_evidence_age(&data, demand);
    reasons.extend(check_delay(&data, demand));
    let attestation = match (&mut data.source, policy) {
        (VerifiedSource::Vm { chain, evidence }, PolicyAbout::Vms(policy)) => {
            reasons.extend(check_vm(chain, &data.anchors, data.verified_at, policy));
            let appraise = |evidence: Box<_>| Box::new(attestation::appraise(*evidence, policy));
            evidence.take().map(appraise).map(EvidenceResult::Vm)
        }
        (
            VerifiedSource::Device {
                certificate,
                evidence,
            },
            PolicyAbout::Devices(policy),
        ) => {
            let found = check_device_identity(certificate, &data.anchors, data.verified_at, policy);
            reasons.extend(found.into_iter().map(|reason| DataReason {
                code: reason.code,
                text: reason.text,
            }));
            let appraise = |evidence: Box<_>| Box::new(appraise_device(*evidence, policy));
            evidence.take().map(appraise).map(EvidenceResult::Device)
        }
        _ => return Err(DataRefusal::PolicyOfOthers(data.label.source)),
    };
    Ok(DataResult {
        data,
        attestation,
        reasons,
    })
}

fn check_evidence_age(data: &VerifiedData, demand: &Demand) -> Vec<DataReason> {
    match (data.evidence_age(), demand.max_evidence_age) {
        (Some(age), Some(most)) if age > most => vec![DataReason {
            code: "evidence-old",
            text: format!(
                "the evidence was taken {age} s before the data were signed; {most} s are allowed"
            ),
        }],
        (None, Some(_)) => vec![without_evidence()],
        (None, None) if !demand.identity_alone => vec![without_evidence()],
        _ => Vec::new(),
    }
}

fn check_delay(data: &VerifiedData, demand: &Demand) -> Option<DataReason> {
    let delay = (data.verified_at.as_secs()).saturating_sub(data.label.time);
    let most = demand.max_delay.filter(|most| delay > *most)?;
    Some(DataReason {
        code: "late",
        text: format!(
            "the data say that they were signed {delay} s before they were verified; {most} s are allowed"
        ),
    })
}

fn check_label(data: &VerifiedData, demand: &Demand) -> Result<(), DataRefusal> {
    let label = &data.label;
    if let Some(expected) = (demand.stream.as_ref()).filter(|stream| **stream != label.stream) {
        return Err(DataRefusal::Stream {
            found: label.stream.clone(),
            expected: expected.clone(),
        });
    }
    match demand.after {
        Some(after) if label.sequence <= after => Err(DataRefusal::Replayed {
            found: label.sequence,
            after,
        }),
        _ => Ok(()),
    }
}

fn without_evidence() -> DataReason {
    DataReason {
        code: "evidence-missing",
        text: "the data come without evidence of what booted where they were signed".to_owned(),
    }
}

/// The same as for evidence, of what the certificates say.
fn check_vm(
    chain: &VerifiedVikChain,
    anchors: &Digest32,
    verified_at: UnixTime,
    policy: &Policy,
) -> Vec<DataReason> {
    let expect: &Expectation = policy.expectation();
    let (claims, host) = (chain.claims(), chain.host());
    let reason = |code, text| DataReason { code, text };
    let mut reasons = Vec::new();
    // Its own digest is of the roots alone, whatever revocation lists came along.
    if anchors != policy.anchors().digest() {
        let text = "the data were verified under other roots than the policy trusts".to_owned();
        reasons.push(reason("roots-unexpected", text));
    }
    let demanded = policy.anchors().demand();
    if !chain.revocation().meets(demanded, verified_at) {
        let text = "the data were verified without the revocation list that the policy demands";
        reasons.push(reason("revocation-unchecked", text.to_owned()));
    }
    if !expect.hosts.contains(host) {
        let text = format!("the VM runs on {host}, which the policy does not allow");
        reasons.push(reason("host-unexpected", text));
    }
    if let Some(vm) = expect.vm.filter(|vm| *vm != claims.vm) {
        let text = format!("the data are of VM {}; the policy expects {vm}", claims.vm);
        reasons.push(reason("vm-unexpected", text));
    }
    if let Some(tenant) = (expect.tenant.as_ref()).filter(|tenant| **tenant != claims.tenant) {
        let text = format!(
            "the VM belongs to {}; the policy expects {tenant}",
            claims.tenant
        );
        reasons.push(reason("tenant-unexpected", text));
    }
    if claims.generation < expect.min_generation() {
        let text = format!(
            "the vRoT's state is of generation {}; the policy asks for {} or later",
            claims.generation,
            expect.min_generation()
        );
        reasons.push(reason("generation-too-low", text));
    }
    reasons
}

impl DataResult {
    /// The worst of what was found about the data and by the evidence.
    pub fn verdict(&self) -> Verdict {
        let data = match self.reasons.is_empty() {
            true => Verdict::Affirming,
            false => Verdict::Contraindicated,
        };
        let evidence = self.attestation.as_ref().map(EvidenceResult::verdict);
        evidence.map_or(data, |evidence| evidence.max(data))
    }

    /// The data. Their evidence is in the [attestation result](Self::attestation).
    pub fn data(&self) -> &VerifiedData {
        &self.data
    }

    /// What the evidence is worth.
    pub fn attestation(&self) -> Option<&EvidenceResult> {
        self.attestation.as_ref()
    }

    /// What was found about the data themselves.
    pub fn reasons(&self) -> &[DataReason] {
        &self.reasons
    }
}

impl EvidenceResult {
    /// The verdict.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Vm(result) => result.verdict(),
            Self::Device(result) => result.verdict(),
        }
    }

    /// The result as an EAR, as unsigned JSON claims.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Vm(result) => result.to_json(),
            Self::Device(result) => result.to_json(),
        }
    }
}
