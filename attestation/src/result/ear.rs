//! EAT attestation results in JSON (draft-ietf-rats-ear-04), as far as results here need them.
//!
//! Absent and empty claims are left out, as the draft's CDDL asks (appendix A). Beside its claims
//! stand three of our own: `verdict`, `reasons` and `refusal`.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls_pki_types::UnixTime;
use serde::Serialize;

use super::{Reason, Verdict};
use crate::nonce::Nonce;

/// `eat_profile` of results in this form (draft-ietf-rats-ear-04 §3).
const PROFILE: &str = "tag:ietf.org,2026:rats/ear#04";
/// `ear_verifier_id`: which program appraised, and whose it is.
const VERIFIER: VerifierId = VerifierId {
    build: concat!("vrot-attestation ", env!("CARGO_PKG_VERSION")),
    developer: "vRoT host project",
};

/// A claims set. The tier of the whole (`ear_status`) is the verdict.
#[derive(Serialize)]
pub(crate) struct Ear<'a> {
    pub(crate) eat_profile: &'static str,
    pub(crate) iat: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) exp: Option<u64>,
    /// Base64url without padding (RFC 9711 §4.1).
    pub(crate) eat_nonce: String,
    pub(crate) ear_verifier_id: VerifierId,
    pub(crate) ear_status: Verdict,
    pub(crate) submods: BTreeMap<&'static str, Appraisal>,
    pub(crate) verdict: Verdict,
    pub(crate) reasons: Vec<ListedReason<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) refusal: Option<RefusedFor<'a>>,
}

#[derive(Serialize)]
pub(crate) struct VerifierId {
    build: &'static str,
    developer: &'static str,
}

/// What was found about one layer (draft-ietf-rats-ear-04 §3.1). Its tier is the layer's verdict.
#[derive(Serialize)]
pub(crate) struct Appraisal {
    pub(crate) ear_status: Verdict,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) ear_trustworthiness_vector: TrustVector,
    pub(crate) ear_appraisal_policy_ids: [String; 1],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) ear_attester_claims: BTreeMap<&'static str, AttesterClaim>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) ear_verifier_claims: BTreeMap<&'static str, Vec<String>>,
}

/// What an attester says of itself.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum AttesterClaim {
    One(String),
    Named(BTreeMap<String, String>),
}

/// Trustworthiness claims by name, each with a value of draft-ietf-rats-ar4si §2.3.
pub(crate) type TrustVector = BTreeMap<&'static str, u8>;

/// A reason with the layer that it is about.
#[derive(Serialize)]
pub(crate) struct ListedReason<'a> {
    pub(crate) layer: Option<&'static str>,
    #[serde(flatten)]
    pub(crate) reason: &'a Reason,
}

/// Why evidence was refused, and what to do about it.
#[derive(Serialize)]
pub(crate) struct RefusedFor<'a> {
    pub(crate) code: &'static str,
    pub(crate) text: &'a str,
    pub(crate) remedy: &'static str,
}

impl Ear<'_> {
    /// A result that was made at `at`, as the answer to the challenge `nonce`.
    pub(crate) fn new(verdict: Verdict, nonce: &Nonce, at: UnixTime) -> Self {
        Self {
            eat_profile: PROFILE,
            iat: at.as_secs(),
            exp: None,
            eat_nonce: URL_SAFE_NO_PAD.encode(nonce.as_bytes()),
            ear_verifier_id: VERIFIER,
            ear_status: verdict,
            submods: BTreeMap::new(),
            verdict,
            reasons: Vec::new(),
            refusal: None,
        }
    }
}
