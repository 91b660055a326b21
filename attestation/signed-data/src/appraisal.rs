//! What verified data are worth by a policy.

use attestation::policy::Expectation;
use attestation::{AttestationResult, Policy, Verdict};

use crate::refusal::DataRefusal;
use crate::text::LabelText;
use crate::verification::VerifiedData;

/// What is demanded of data beyond the policy about VM and host.
#[derive(Clone, Debug, Default)]
pub struct Demand {
    /// The stream that they must belong to.
    pub stream: Option<LabelText>,
    /// Their number must be higher.
    pub after: Option<u64>,
    /// The most seconds that the evidence may have been taken before they were signed.
    pub max_evidence_age: Option<u64>,
    /// Data without evidence are good enough: the VM's identity is compared with the policy, and nothing is
    /// known of what booted.
    pub identity_alone: bool,
}

/// Verified data with what they are worth.
#[derive(Debug)]
pub struct DataResult {
    data: VerifiedData,
    attestation: Option<AttestationResult>,
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

/// Compares verified data with a policy and a demand. What is not of the stream, or has a number that is not
/// new, is refused; evidence is appraised; and data without evidence are contraindicated unless the demand
/// says otherwise.
pub fn appraise(
    mut data: VerifiedData,
    policy: &Policy,
    demand: &Demand,
) -> Result<DataResult, DataRefusal> {
    check_label(&data, demand)?;
    let mut reasons = Vec::new();
    let age = data.evidence_age();
    match (age, demand.max_evidence_age) {
        (Some(age), Some(most)) if age > most => reasons.push(DataReason {
            code: "evidence-old",
            text: format!(
                "the evidence was taken {age} s before the data were signed; {most} s are allowed"
            ),
        }),
        (None, Some(_)) => reasons.push(without_evidence()),
        (None, None) if !demand.identity_alone => reasons.push(without_evidence()),
        _ => {}
    }
    reasons.extend(check_identity(&data, policy));
    let attestation =
        (data.evidence.take()).map(|evidence| attestation::appraise(evidence, policy));
    Ok(DataResult {
        data,
        attestation,
        reasons,
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
        text: "the data come without evidence of what booted in the VM and on its host".to_owned(),
    }
}

/// The same as for evidence, of what the certificates say.
fn check_identity(data: &VerifiedData, policy: &Policy) -> Vec<DataReason> {
    let expect: &Expectation = policy.expectation();
    let claims = data.chain.claims();
    let host = data.chain.host();
    let reason = |code, text| DataReason { code, text };
    let mut reasons = Vec::new();
    // Its own digest is of the roots alone, whatever revocation lists came along.
    if data.anchors != *policy.anchors().digest() {
        let text = "the data were verified under other roots than the policy trusts".to_owned();
        reasons.push(reason("roots-unexpected", text));
    }
    let demanded = policy.anchors().demand();
    if !data.chain.revocation().meets(demanded, data.verified_at) {
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
        let evidence = self.attestation.as_ref().map(AttestationResult::verdict);
        evidence.map_or(data, |evidence| evidence.max(data))
    }

    /// The data. Their evidence is in the [attestation result](Self::attestation).
    pub fn data(&self) -> &VerifiedData {
        &self.data
    }

    /// What the evidence is worth.
    pub fn attestation(&self) -> Option<&AttestationResult> {
        self.attestation.as_ref()
    }

    /// What was found about the data themselves.
    pub fn reasons(&self) -> &[DataReason] {
        &self.reasons
    }
}
