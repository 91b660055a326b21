//! Results as EAT attestation results (draft-ietf-rats-ear), for programs.
//!
//! There is one for refused evidence too: who reads results need not know a second form.

use std::collections::BTreeMap;

use cert_chain::{Digest32, NamedHash};
use ear::{Appraisal, Ear, Extensions, RawValue, TrustTier, TrustVector, VerifierID};
use rustls_pki_types::UnixTime;
use serde_json::{Map, Value, json};

use super::{AttestationResult, Claim, LayerResult, Reason, Verdict};
use crate::host_leaf::{Anchoring, CutOff, Durability, LaunchMeasurement, StateLoss};
use crate::nonce::Nonce;
use crate::policy::Policy;
use crate::refusal::{Layer, Refusal};

/// `ear_verifier_id` of draft-ietf-rats-ear.
const VERIFIER: &str = concat!("vrot-attestation ", env!("CARGO_PKG_VERSION"));
const DEVELOPER: &str = "vRoT host project";
/// draft-ietf-rats-ar4si §2.3.2: cryptographic validation of the evidence has failed.
const VALIDATION_FAILED: i8 = 99;

impl AttestationResult {
    /// As EAT attestation result (draft-ietf-rats-ear) with one submodule for each layer.
    pub fn to_ear(&self) -> Ear {
        Ear {
            exp: Some(seconds(self.expires_at)),
            status: Some(self.verdict().tier()),
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
            ..envelope(self.evidence.nonce(), self.issued_at)
        }
    }

    /// The EAR as unsigned JSON claims, with the verdict in a word and the reasons at the top.
    pub fn to_json(&self) -> Value {
        let mut value = unsigned(self.to_ear());
        value.insert("verdict".to_owned(), json!(self.verdict()));
        let reasons: Vec<Value> = [("host", &self.host), ("vm", &self.vm)]
            .into_iter()
            .flat_map(|(layer, result)| {
                let reasons = result.reasons.iter();
                reasons.map(move |reason| reason_of(Some(layer), reason))
            })
            .collect();
        value.insert("reasons".to_owned(), json!(reasons));
        Value::Object(value)
    }

    fn host_claims(&self) -> BTreeMap<String, RawValue> {
        let chain = self.evidence.chain();
        let claims = chain.host_claims();
        let layer = self.evidence.layer(Layer::Host);
        let clock = layer.clock();
        texts([
            ("name", chain.host().to_string()),
            ("issuer", chain.issuer().to_owned()),
            ("ik", claims.ik.to_string()),
            ("ek", claims.ek.to_string()),
            ("policy-key", claims.policy_key.to_string()),
            ("pcr-bank", layer.bank().to_string()),
            // Opaque: equal in two results means that the host's TPM was not reset or restarted
            // between them. The counts themselves are obfuscated for a key of the owner's.
            ("boot-cycle", clock.boot_cycle(&claims.ik).to_string()),
            ("clock-ms", clock.clock_ms.to_string()),
            ("clock-safe", clock.safe.to_string()),
        ])
    }

    fn vm_claims(&self) -> BTreeMap<String, RawValue> {
        let leaf = self.evidence.leaf();
        let claims = self.evidence.chain().claims();
        let layer = self.evidence.layer(Layer::Vm);
        let clock = layer.clock();
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
        let state_loss = match leaf.state_loss {
            StateLoss::Excluded => "excluded".to_owned(),
            StateLoss::Possible { batch, time } => {
                format!("possible, noted after batch {batch} at {time}")
            }
        };
        texts([
            ("vm", leaf.vm.to_string()),
            ("vrot", leaf.vrot.to_string()),
            ("tenant", leaf.tenant.to_string()),
            ("generation", leaf.generation.to_string()),
            ("vik", leaf.vik.to_string()),
            ("pcr-bank", layer.bank().to_string()),
            ("launch", launch),
            ("state", durability.to_owned()),
            ("anchor", anchor),
            ("cut-off", cut_off),
            ("state-loss", state_loss),
            ("manager", claims.manager.to_string()),
            ("backend", claims.backend.to_string()),
            ("reset-count", clock.reset_count.to_string()),
            ("restart-count", clock.restart_count.to_string()),
            ("clock-ms", clock.clock_ms.to_string()),
            ("clock-safe", clock.safe.to_string()),
        ])
    }
}

impl Refusal {
    /// As an EAR in unsigned JSON claims: both layers are contraindicated, since the evidence's
    /// cryptographic validation failed. `nonce` is the challenge that it should have answered.
    /// The reason stands at the top, and under `refusal` with what to do about it.
    pub fn to_json(&self, policy: &Policy, nonce: &Nonce, at: UnixTime) -> Value {
        let refused = || {
            let mut appraisal = Appraisal::new();
            appraisal.status = TrustTier::Contraindicated;
            appraisal
                .trust_vector
                .instance_identity
                .set(VALIDATION_FAILED);
            appraisal.policy_ids = vec![policy_id(policy.digest())];
            appraisal
        };
        let submodules = ["host", "vm"].map(|layer| (layer.to_owned(), refused()));
        let mut claims = unsigned(Ear {
            status: Some(TrustTier::Contraindicated),
            submods: BTreeMap::from(submodules),
            ..envelope(nonce, at)
        });
        let text = self.explanation();
        claims.insert("verdict".to_owned(), json!(Verdict::Contraindicated));
        claims.insert(
            "refusal".to_owned(),
            json!({"code": self.code(), "text": text, "remedy": self.remedy()}),
        );
        let reason = Reason {
            code: self.code(),
            verdict: Verdict::Contraindicated,
            text,
        };
        claims.insert("reasons".to_owned(), json!([reason_of(None, &reason)]));
        Value::Object(claims)
    }
}

impl LayerResult {
    fn to_appraisal(
        &self,
        policy: &Digest32,
        attester_claims: BTreeMap<String, RawValue>,
    ) -> Appraisal {
        let mut appraisal = Appraisal::new();
        appraisal.status = self.verdict.tier();
        appraisal.trust_vector = self.trust_vector();
        appraisal.policy_ids = vec![policy_id(policy)];
        appraisal.attester_claims = attester_claims;
        if !self.booted.is_empty() {
            let booted = self
                .booted
                .iter()
                .map(|(name, digest)| RawValue::String(format!("{name}: {}", NamedHash(*digest))))
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

/// What every EAR of this verifier has.
fn envelope(nonce: &Nonce, at: UnixTime) -> Ear {
    Ear {
        profile: ear::EAR_PROFILE.to_owned(),
        iat: seconds(at),
        exp: None,
        vid: VerifierID {
            build: VERIFIER.to_owned(),
            developer: DEVELOPER.to_owned(),
        },
        raw_evidence: None,
        nonce: ear::Nonce::try_from(nonce.as_bytes()).ok(),
        status: None,
        topology: None,
        submods: BTreeMap::new(),
        extensions: Extensions::new(),
    }
}

/// The claims. The library writes no EAR of the first second of 1970, which it takes for a time that
/// was forgotten, nor one that has expired by this machine's clock; but an appraisal may be made as
/// of any time. So both times are put in afterwards.
fn unsigned(ear: Ear) -> Map<String, Value> {
    let (iat, exp) = (ear.iat, ear.exp);
    let accepted = Ear {
        iat: 1,
        exp: None,
        ..ear
    };
    // What the library refuses all the same is told with what is known.
    let mut claims = match serde_json::to_value(accepted) {
        Ok(Value::Object(claims)) => claims,
        Ok(other) => Map::from_iter([("problem".to_owned(), other)]),
        Err(error) => Map::from_iter([("problem".to_owned(), json!(error.to_string()))]),
    };
    claims.insert("iat".to_owned(), json!(iat));
    if let Some(exp) = exp {
        claims.insert("exp".to_owned(), json!(exp));
    }
    claims
}

fn reason_of(layer: Option<&str>, reason: &Reason) -> Value {
    json!({
        "layer": layer,
        "code": reason.code,
        "verdict": reason.verdict,
        "text": reason.text,
    })
}

fn policy_id(policy: &Digest32) -> String {
    format!("sha256:{policy}")
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
