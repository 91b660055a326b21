//! What a device makes of evidence: a result, or the reason why it proves nothing.

use std::sync::Arc;

use attestation::{
    AttestationResult, Evidence, Nonce, Policy, Purpose, Refusal, Verdict, appraise,
};
use cert_chain::RevocationLists;
use rustls_pki_types::UnixTime;
use serde_json::Value;

/// The outcome of verifying and appraising one piece of evidence.
#[derive(Debug)]
pub enum Judgement {
    /// The evidence is genuine; this is what it is worth.
    Appraised(Arc<AttestationResult>),
    /// The evidence proves nothing.
    Refused {
        /// Why.
        refusal: Refusal,
        /// The same as an EAR.
        ear: Value,
    },
}

impl Judgement {
    /// Verifies the evidence as an answer to `nonce` for a purpose, and appraises it with `policy`.
    /// `crls` are revocation lists beside those that the evidence carries.
    pub fn of(
        evidence: &Evidence,
        nonce: &Nonce,
        purpose: &Purpose,
        policy: &Policy,
        crls: &RevocationLists,
        at: UnixTime,
    ) -> Self {
        let anchors = policy.anchors().with_lists(crls);
        match evidence.verify(nonce, purpose, &anchors, at) {
            Ok(verified) => Self::Appraised(Arc::new(appraise(verified, policy))),
            Err(refusal) => Self::Refused {
                ear: refusal.to_json(policy, nonce, at),
                refusal,
            },
        }
    }

    /// The verdict; refused evidence is contraindicated.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Appraised(result) => result.verdict(),
            Self::Refused { .. } => Verdict::Contraindicated,
        }
    }

    /// For programs: an EAR, of refused evidence too.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Appraised(result) => result.to_json(),
            Self::Refused { ear, .. } => ear.clone(),
        }
    }
}
