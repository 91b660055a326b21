//! Attestation results: a verdict with its reasons, for people and, as EAR, for programs.

use std::collections::BTreeMap;
use std::fmt;

use cert_chain::Digest32;
use ear::{Appraisal, Ear, Extensions, RawValue, TrustTier, TrustVector, VerifierID};
use rustls_pki_types::UnixTime;
use serde::Serialize;
use serde_json::{Value, json};

use crate::host_leaf::{Anchoring, CutOff, Durability, LaunchMeasurement};
use crate::policy::Policy;
use crate::refusal::Layer;
use crate::verification::VerifiedEvidence;

/// The outcome of an appraisal. Only [`appraise`](crate::appraise) makes one.
#[derive(Clone, Debug)]
pub struct AttestationResult {
    evidence: VerifiedEvidence,
    host: LayerResult,
    vm: LayerResult,
    policy: Digest32,
    issued_at: UnixTime,
    expires_at: UnixTime,
}

/// How far a layer can be relied on: the tiers of AR4SI (draft-ietf-rats-ar4si §2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Everything is as the policy expects.
    Affirming,
    /// Nothing contradicts the policy, but it does not speak of everything.
    Warning,
    /// Something contradicts the policy.
    Contraindicated,
}

/// What was found about one layer.
#[derive(Clone, Debug)]
pub struct LayerResult {
    verdict: Verdict,
    claims: BTreeMap<Claim, Verdict>,
    reasons: Vec<Reason>,
    booted: Vec<(String, Digest32)>,
}

/// Why a layer's verdict is not affirming.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// A short name for programs, which stays the same from version to version.
    pub code: &'static str,
    /// How much it weighs.
    pub verdict: Verdict,
    /// A sentence for people.
    pub text: String,
}

/// The trustworthiness claims of AR4SI that an appraisal here makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Claim {
    Identity,
    Configuration,
    Executables,
}

/// `ear_verifier_id` of draft-ietf-rats-ear.
const VERIFIER: &str = concat!("vrot-attestation ", env!("CARGO_PKG_VERSION"));
const DEVELOPER: &str = "vRoT host project";

impl AttestationResult {
    pub(crate) fn new(
        evidence: VerifiedEvidence,
        policy: &Policy,
        host: LayerResult,
        vm: LayerResult,
        at: UnixTime,
    ) -> Self {
        let by_policy = at
            .as_secs()
            .saturating_add(policy.result_lifetime().as_secs());
        let expires_at = by_policy.min(evidence.chain().not_after().as_secs());
        Self {
            evidence,
            host,
            vm,
            policy: *policy.digest(),
            issued_at: at,
            expires_at: UnixTime::since_unix_epoch(std::time::Duration::from_secs(expires_at)),
        }
    }

    /// The verdict on the whole: the VM's, which is never better than the host's.
    pub fn verdict(&self) -> Verdict {
        self.vm.verdict.max(self.host.verdict)
    }

    /// What was found about a layer.
    pub fn layer(&self, layer: Layer) -> &LayerResult {
        match layer {
            Layer::Host => &self.host,
            Layer::Vm => &self.vm,
        }
    }

    /// The evidence that was appraised.
    pub fn evidence(&self) -> &VerifiedEvidence {
        &self.evidence
    }

    /// SHA-256 value of the policy's text.
    pub fn policy(&self) -> &Digest32 {
        &self.policy
    }

    /// When the appraisal took place.
    pub fn issued_at(&self) -> UnixTime {
        self.issued_at
    }

    /// From when on the result must not be relied on.
    pub fn expires_at(&self) -> UnixTime {
        self.expires_at
    }

    /// As EAT attestation result (draft-ietf-rats-ear) with one submodule for each layer.
    pub fn to_ear(&self) -> Ear {
        Ear {
            profile: ear::EAR_PROFILE.to_owned(),
            iat: seconds(self.issued_at),
            exp: Some(seconds(self.expires_at)),
            vid: VerifierID {
                build: VERIFIER.to_owned(),
                developer: DEVELOPER.to_owned(),
            },
            raw_evidence: None,
            nonce: ear::Nonce::try_from(self.evidence.nonce().as_bytes()).ok(),
            status: Some(self.verdict().tier()),
            topology: None,
            submods: BTreeMap::from([
                (
                    "host".to_owned(),
                    self.host.to_appraisal(&self.policy, self.host_claims()),
                ),
                (
                    "vm".to_owned(),
                    self.vm.to_appraisal(&self.policy, self.vm_claims()),
                ),
            ]),
            extensions: Extensions::new(),
        }
    }

    /// The EAR as unsigned JSON claims, with the verdict in a word and the reasons at the top.
    pub fn to_json(&self) -> Value {
        // The library refuses to write an EAR that expired by this machine's clock, but the
        // appraisal may have been made as of another time.
        let unexpiring = Ear {
            exp: None,
            ..self.to_ear()
        };
        let mut value = match serde_json::to_value(unexpiring) {
            Ok(Value::Object(claims)) => claims,
            other => unreachable!("an EAR is a JSON object: {other:?}"),
        };
        value.insert("exp".to_owned(), json!(seconds(self.expires_at)));
        value.insert("verdict".to_owned(), json!(self.verdict()));
        let reasons: Vec<Value> = [("host", &self.host), ("vm", &self.vm)]
            .into_iter()
            .flat_map(|(layer, result)| {
                result.reasons.iter().map(move |reason| {
                    json!({
                        "layer": layer,
                        "code": reason.code,
                        "verdict": reason.verdict,
                        "text": reason.text,
                    })
                })
            })
            .collect();
        value.insert("reasons".to_owned(), json!(reasons));
        Value::Object(value)
    }

    fn host_claims(&self) -> BTreeMap<String, RawValue> {
        let chain = self.evidence.chain();
        let claims = chain.host_claims();
        let clock = self.evidence.layer(Layer::Host).clock();
        texts([
            ("name", chain.host().to_string()),
            ("issuer", chain.issuer().to_owned()),
            ("ik", claims.ik.to_string()),
            ("ek", claims.ek.to_string()),
            ("policy-key", claims.policy_key.to_string()),
            ("reset-count", clock.reset_count.to_string()),
            ("restart-count", clock.restart_count.to_string()),
            ("clock-ms", clock.clock_ms.to_string()),
            ("clock-safe", clock.safe.to_string()),
        ])
    }

    fn vm_claims(&self) -> BTreeMap<String, RawValue> {
        let leaf = self.evidence.leaf();
        let claims = self.evidence.chain().claims();
        let clock = self.evidence.layer(Layer::Vm).clock();
        let launch = match leaf.launch {
            LaunchMeasurement::NotMeasured => "not measured".to_owned(),
            LaunchMeasurement::Measured(digest) => digest.to_string(),
        };
        let durability = match leaf.durability {
            Durability::Durable => "durable",
            Durability::Degraded => "degraded",
        };
        let anchor = match leaf.anchoring {
            Anchoring::Strict => "strict".to_owned(),
            Anchoring::Checkpoint(seconds) => format!("checkpoint, {seconds} s"),
        };
        let cut_off = match leaf.cut_off {
            CutOff::Excluded => "excluded".to_owned(),
            CutOff::Possible {
                batch,
                time,
                window_s,
            } => format!("possible before batch {batch} at {time}: the last {window_s} s"),
        };
        texts([
            ("vm", leaf.vm.to_string()),
            ("vrot", leaf.vrot.to_string()),
            ("tenant", leaf.tenant.to_string()),
            ("generation", leaf.generation.to_string()),
            ("vik", leaf.vik.to_string()),
            ("launch", launch),
            ("state", durability.to_owned()),
            ("anchor", anchor),
            ("cut-off", cut_off),
            ("manager", claims.manager.to_string()),
            ("backend", claims.backend.to_string()),
            ("reset-count", clock.reset_count.to_string()),
            ("restart-count", clock.restart_count.to_string()),
            ("clock-ms", clock.clock_ms.to_string()),
            ("clock-safe", clock.safe.to_string()),
        ])
    }
}

impl LayerResult {
    pub(crate) fn new() -> Self {
        Self {
            verdict: Verdict::Affirming,
            claims: BTreeMap::new(),
            reasons: Vec::new(),
            booted: Vec::new(),
        }
    }

    /// The layer's verdict.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Why the verdict is not better.
    pub fn reasons(&self) -> &[Reason] {
        &self.reasons
    }

    /// What booted and is known by name, with its SHA-256 value.
    pub fn boot(&self) -> &[(String, Digest32)] {
        &self.booted
    }

    pub(crate) fn approve(&mut self, claim: Claim) {
        self.claims.entry(claim).or_insert(Verdict::Affirming);
    }

    pub(crate) fn booted(&mut self, name: &str, digest: Digest32) {
        self.booted.push((name.to_owned(), digest));
    }

    pub(crate) fn warn(&mut self, claim: Claim, code: &'static str, text: String) {
        self.add(claim, Verdict::Warning, code, text);
    }

    pub(crate) fn contradict(&mut self, claim: Claim, code: &'static str, text: String) {
        self.add(claim, Verdict::Contraindicated, code, text);
    }

    /// A VM on a host that cannot be relied on cannot be relied on.
    pub(crate) fn limit_to(&mut self, host: &Self) {
        if host.verdict > self.verdict {
            self.verdict = host.verdict;
            self.reasons.push(Reason {
                code: "host-limits",
                verdict: host.verdict,
                text: format!(
                    "a VM is relied on no further than its host, whose verdict is {}",
                    host.verdict
                ),
            });
        }
    }

    fn add(&mut self, claim: Claim, verdict: Verdict, code: &'static str, text: String) {
        let known = self.claims.entry(claim).or_insert(verdict);
        *known = verdict.max(*known);
        self.verdict = self.verdict.max(verdict);
        self.reasons.push(Reason {
            code,
            verdict,
            text,
        });
    }

    fn to_appraisal(
        &self,
        policy: &Digest32,
        attester_claims: BTreeMap<String, RawValue>,
    ) -> Appraisal {
        let mut appraisal = Appraisal::new();
        appraisal.status = self.verdict.tier();
        appraisal.trust_vector = self.trust_vector();
        appraisal.policy_ids = vec![format!("sha256:{policy}")];
        appraisal.attester_claims = attester_claims;
        if !self.booted.is_empty() {
            let booted = self
                .booted
                .iter()
                .map(|(name, digest)| RawValue::String(format!("{name}: {digest}")))
                .collect();
            appraisal
                .verifier_claims
                .insert("booted".to_owned(), RawValue::Array(booted));
        }
        appraisal
    }

    /// Values of draft-ietf-rats-ar4si §2.3.4.
    fn trust_vector(&self) -> TrustVector {
        let mut vector = TrustVector::new();
        for (claim, verdict) in &self.claims {
            match claim {
                Claim::Identity => vector.instance_identity.set(match verdict {
                    Verdict::Affirming => 2,
                    Verdict::Warning | Verdict::Contraindicated => 97,
                }),
                Claim::Configuration => vector.configuration.set(match verdict {
                    Verdict::Affirming => 2,
                    Verdict::Warning => 32,
                    Verdict::Contraindicated => 96,
                }),
                Claim::Executables => vector.executables.set(match verdict {
                    Verdict::Affirming => 2,
                    Verdict::Warning => 33,
                    Verdict::Contraindicated => 96,
                }),
            }
        }
        vector
    }
}

impl Verdict {
    fn tier(self) -> TrustTier {
        match self {
            Self::Affirming => TrustTier::Affirming,
            Self::Warning => TrustTier::Warning,
            Self::Contraindicated => TrustTier::Contraindicated,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Affirming => "affirming",
            Self::Warning => "warning",
            Self::Contraindicated => "contraindicated",
        })
    }
}

fn texts<const N: usize>(claims: [(&str, String); N]) -> BTreeMap<String, RawValue> {
    claims
        .into_iter()
        .map(|(name, value)| (name.to_owned(), RawValue::String(value)))
        .collect()
}

fn seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}
