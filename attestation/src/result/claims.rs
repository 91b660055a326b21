//! What results and refusals say as EAR, for programs.
//!
//! There is an EAR for refused evidence too, so that programs read one form.

use std::collections::BTreeMap;

use cert_chain::{Digest32, NamedHash, RevocationStatus};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};

use super::ear::{Appraisal, AttesterClaim, Ear, ListedReason, RefusedFor, TrustVector};
use super::{AttestationResult, Claim, LayerResult, Reason, Verdict};
use crate::host_leaf::{Anchoring, CutOff, Durability, StateLoss};
use crate::launch::LaunchMeasurement;
use crate::nonce::Nonce;
use crate::policy::Policy;
use crate::refusal::{Layer, Refusal};

/// draft-ietf-rats-ar4si §2.3.2: cryptographic validation of the evidence has failed.
const VALIDATION_FAILED: u8 = 99;

pub(crate) type AttesterClaims = BTreeMap<&'static str, AttesterClaim>;
pub(crate) type VerifierClaims = BTreeMap<&'static str, Vec<String>>;

impl AttestationResult {
    /// An EAR with one submodule for each layer, as unsigned JSON claims.
    pub fn to_json(&self) -> Value {
        let layers = [("host", &self.host), ("vm", &self.vm)];
        let revocation = revocation_claims(self.evidence.chain().revocation());
        json!(Ear {
            exp: Some(self.expires_at.as_secs()),
            submods: BTreeMap::from([
                (
                    "host",
                    (self.host).to_appraisal(&self.policy, self.host_claims(), revocation),
                ),
                (
                    "vm",
                    (self.vm).to_appraisal(&self.policy, self.vm_claims(), BTreeMap::new()),
                ),
            ]),
            reasons: layers
                .into_iter()
                .flat_map(|(layer, result)| {
                    result.reasons.iter().map(move |reason| ListedReason {
                        layer: Some(layer),
                        reason,
                    })
                })
                .collect(),
            ..Ear::new(self.verdict(), self.evidence.nonce(), self.issued_at)
        })
    }

    fn host_claims(&self) -> AttesterClaims {
        let chain = self.evidence.chain();
        let claims = chain.host_claims();
        let layer = self.evidence.layer(Layer::Host);
        let clock = layer.clock();
        claims_of([
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

    fn vm_claims(&self) -> AttesterClaims {
        let leaf = self.evidence.leaf();
        let certified = self.evidence.chain().claims();
        let layer = self.evidence.layer(Layer::Vm);
        let clock = layer.clock();
        let (launch, parts) = match &leaf.launch {
            LaunchMeasurement::NotMeasured => ("not measured".to_owned(), None),
            LaunchMeasurement::Measured(launch) => {
                let parts = launch.parts().iter();
                let parts = parts.map(|part| (part.id.to_string(), part.value.to_string()));
                (launch.digest().to_string(), Some(parts.collect()))
            }
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
        let mut claims = claims_of([
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
            ("manager", certified.manager.to_string()),
            ("backend", certified.backend.to_string()),
            ("reset-count", clock.reset_count.to_string()),
            ("restart-count", clock.restart_count.to_string()),
            ("clock-ms", clock.clock_ms.to_string()),
            ("clock-safe", clock.safe.to_string()),
            ("tpm-transport", leaf.transport.name().to_owned()),
            ("purpose", leaf.purpose.name().to_owned()),
            ("boot-record", layer.boot_record().to_owned()),
        ]);
        if let Some(parts) = parts {
            claims.insert("launch-parts", AttesterClaim::Named(parts));
        }
        claims
    }
}

impl Refusal {
    /// As an EAR in unsigned JSON claims: both layers are contraindicated, since the evidence's
    /// cryptographic validation failed. `nonce` is the challenge that it should have answered.
    /// The reason stands at the top, and under `refusal` with what to do about it.
    pub fn to_json(&self, policy: &Policy, nonce: &Nonce, at: UnixTime) -> Value {
        let refused = || Appraisal {
            ear_status: Verdict::Contraindicated,
            ear_trustworthiness_vector: TrustVector::from([(
                "instance-identity",
                VALIDATION_FAILED,
            )]),
            ear_appraisal_policy_ids: [policy_id(policy.digest())],
            ear_attester_claims: BTreeMap::new(),
            ear_verifier_claims: BTreeMap::new(),
        };
        let reason = Reason {
            code: self.code(),
            verdict: Verdict::Contraindicated,
            text: self.explanation(),
        };
        json!(Ear {
            submods: BTreeMap::from(["host", "vm"].map(|layer| (layer, refused()))),
            reasons: vec![ListedReason {
                layer: None,
                reason: &reason,
            }],
            refusal: Some(RefusedFor {
                code: reason.code,
                text: &reason.text,
                remedy: self.remedy(),
            }),
            ..Ear::new(Verdict::Contraindicated, nonce, at)
        })
    }
}

impl LayerResult {
    pub(crate) fn to_appraisal(
        &self,
        policy: &Digest32,
        attester_claims: AttesterClaims,
        mut verifier_claims: VerifierClaims,
    ) -> Appraisal {
        let booted: Vec<String> = (self.booted.iter())
            .map(|(name, digest)| format!("{name}: {}", NamedHash(*digest)))
            .collect();
        if !booted.is_empty() {
            verifier_claims.insert("booted", booted);
        }
        Appraisal {
            ear_status: self.verdict,
            ear_trustworthiness_vector: self.trust_vector(),
            ear_appraisal_policy_ids: [policy_id(policy)],
            ear_attester_claims: attester_claims,
            ear_verifier_claims: verifier_claims,
        }
    }

    /// Values of draft-ietf-rats-ar4si §2.3.4.
    fn trust_vector(&self) -> TrustVector {
        (self.claims.iter())
            .map(|(claim, verdict)| match claim {
                Claim::Identity => (
                    "instance-identity",
                    match verdict {
                        Verdict::Affirming => 2,
                        Verdict::Warning | Verdict::Contraindicated => 97,
                    },
                ),
                Claim::Configuration => (
                    "configuration",
                    match verdict {
                        Verdict::Affirming => 2,
                        Verdict::Warning => 32,
                        Verdict::Contraindicated => 96,
                    },
                ),
                Claim::Executables => (
                    "executables",
                    match verdict {
                        Verdict::Affirming => 2,
                        Verdict::Warning => 33,
                        Verdict::Contraindicated => 96,
                    },
                ),
            })
            .collect()
    }
}

/// Claims that are a text each.
pub(crate) fn claims_of<const N: usize>(claims: [(&'static str, String); N]) -> AttesterClaims {
    let one = |(name, text)| (name, AttesterClaim::One(text));
    claims.map(one).into()
}

/// What was found about the revocation of a certificate; times in seconds since 1970.
pub(crate) fn revocation_claims(status: &RevocationStatus) -> VerifierClaims {
    let claim = |name, value: String| (name, vec![value]);
    match status {
        RevocationStatus::NotAsked => {
            VerifierClaims::from([claim("revocation", "not asked".to_owned())])
        }
        RevocationStatus::NotListed(list) => VerifierClaims::from([
            claim("revocation", "not revoked".to_owned()),
            claim("crl-number", list.number.to_string()),
            claim("crl-this-update", list.this_update.as_secs().to_string()),
            claim("crl-next-update", list.next_update.as_secs().to_string()),
        ]),
    }
}

fn policy_id(policy: &Digest32) -> String {
    format!("sha256:{policy}")
}
