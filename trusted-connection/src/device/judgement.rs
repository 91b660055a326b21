//! What a device makes of evidence: a result, or the reason why it proves nothing.

use attestation::{
    AttestationResult, Binding, Evidence, Nonce, Policy, Refusal, Verdict, appraise,
};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};

/// The outcome of verifying and appraising one piece of evidence.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one is made for each challenge, and moved once"
)]
pub enum Judgement {
    /// The evidence is genuine; this is what it is worth.
    Appraised(AttestationResult),
    /// The evidence proves nothing.
    Refused(Refusal),
}

impl Judgement {
    /// Verifies the evidence as an answer to `nonce` and appraises it with `policy`.
    pub fn of(evidence: &Evidence, nonce: &Nonce, policy: &Policy, at: UnixTime) -> Self {
        match evidence.verify(nonce, &Binding::None, policy.anchors(), at) {
            Ok(verified) => Self::Appraised(appraise(verified, policy, at)),
            Err(refusal) => Self::Refused(refusal),
        }
    }

    /// The verdict; refused evidence is contraindicated.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Appraised(result) => result.verdict(),
            Self::Refused(_) => Verdict::Contraindicated,
        }
    }

    /// For programs: the EAR, or the refusal.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Appraised(result) => result.to_json(),
            Self::Refused(refusal) => json!({
                "verdict": Verdict::Contraindicated,
                "refusal": {
                    "code": refusal.code(),
                    "text": causes(refusal),
                    "remedy": refusal.remedy(),
                },
                "reasons": [{
                    "layer": Value::Null,
                    "code": refusal.code(),
                    "verdict": Verdict::Contraindicated,
                    "text": causes(refusal),
                }],
            }),
        }
    }
}

/// A refusal with everything that caused it.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
