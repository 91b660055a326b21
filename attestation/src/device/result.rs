//! What was found about a device.

use std::collections::BTreeMap;
use std::time::Duration;

use cert_chain::{Digest32, RevocationStatus, VerifiedClientCertificate};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};

use super::policy::DevicePolicy;
use super::verification::VerifiedDevice;
use crate::nonce::Nonce;
use crate::result::claims::{AttesterClaims, VerifierClaims, claims_of, revocation_claims};
use crate::result::ear::{Ear, ListedReason};
use crate::result::{LayerResult, Verdict};
use crate::verification::TpmReport;

/// The outcome of an appraisal of a device.
#[derive(Clone, Debug)]
pub struct DeviceResult {
    identity: DeviceIdentity,
    nonce: Nonce,
    layer: LayerResult,
    policy: Digest32,
    issued_at: UnixTime,
    expires_at: UnixTime,
}

/// How a device is known.
#[derive(Clone, Debug)]
pub enum DeviceIdentity {
    /// By a key in its TPM, with what that reported.
    Attested(Box<VerifiedDevice<TpmReport>>),
    /// By a key in software: it has no root of trust.
    SoftwareKey {
        /// Its certificate.
        certificate: Box<VerifiedClientCertificate>,
        /// Which of the certificate's names the policy exempts; none, if it exempts none of them.
        exempted: Option<String>,
    },
}

impl DeviceResult {
    pub(super) fn new(
        identity: DeviceIdentity,
        nonce: Nonce,
        mut layer: LayerResult,
        policy: &DevicePolicy,
        at: UnixTime,
    ) -> Self {
        layer.count_what_was_left_out();
        let not_after = match &identity {
            DeviceIdentity::Attested(device) => device.certificate().not_after(),
            DeviceIdentity::SoftwareKey { certificate, .. } => certificate.not_after(),
        };
        let by_policy = at
            .as_secs()
            .saturating_add(policy.result_lifetime().as_secs());
        let expires_at = by_policy.min(not_after.as_secs());
        Self {
            identity,
            nonce,
            layer,
            policy: *policy.digest(),
            issued_at: at,
            expires_at: UnixTime::since_unix_epoch(Duration::from_secs(expires_at)),
        }
    }

    /// Whether the policy accepts the device: one with a TPM, if the verdict is affirming; one without,
    /// if it is no worse than the warning that it has none.
    pub fn is_accepted(&self) -> bool {
        match &self.identity {
            DeviceIdentity::Attested(_) => self.verdict() == Verdict::Affirming,
            DeviceIdentity::SoftwareKey { exempted, .. } => {
                exempted.is_some() && self.verdict() <= Verdict::Warning
            }
        }
    }

    /// The verdict. It is never affirming for a device without a root of trust.
    pub fn verdict(&self) -> Verdict {
        self.layer.verdict()
    }

    /// What was found, with the reasons for the verdict.
    pub fn layer(&self) -> &LayerResult {
        &self.layer
    }

    /// How the device is known.
    pub fn identity(&self) -> &DeviceIdentity {
        &self.identity
    }

    /// The device's name: as its issuer certified it, or as the policy exempts it.
    pub fn name(&self) -> String {
        match &self.identity {
            DeviceIdentity::Attested(device) => device.certificate().device().to_string(),
            DeviceIdentity::SoftwareKey {
                certificate,
                exempted,
            } => exempted
                .as_ref()
                .or(certificate.names().first())
                .cloned()
                .unwrap_or_default(),
        }
    }

    /// The policy, as [`DevicePolicy::digest`] names it.
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

    /// An EAR with one submodule, as unsigned JSON claims.
    pub fn to_json(&self) -> Value {
        let appraisal = (self.layer).to_appraisal(&self.policy, self.claims(), self.revocation());
        let reasons = self.layer.reasons().iter();
        json!(Ear {
            exp: Some(self.expires_at.as_secs()),
            submods: BTreeMap::from([("device", appraisal)]),
            reasons: reasons
                .map(|reason| ListedReason {
                    layer: Some("device"),
                    reason,
                })
                .collect(),
            ..Ear::new(self.verdict(), &self.nonce, self.issued_at)
        })
    }

    fn revocation(&self) -> VerifierClaims {
        match &self.identity {
            DeviceIdentity::Attested(device) => {
                revocation_claims(device.certificate().revocation())
            }
            // Its authority may be anybody's, and is not asked.
            DeviceIdentity::SoftwareKey { .. } => revocation_claims(&RevocationStatus::NotAsked),
        }
    }

    fn claims(&self) -> AttesterClaims {
        match &self.identity {
            DeviceIdentity::Attested(device) => {
                let certificate = device.certificate();
                let claims = certificate.claims();
                let clock = device.layer().clock();
                claims_of([
                    ("name", certificate.device().to_string()),
                    ("issuer", certificate.issuer().to_owned()),
                    ("root-of-trust", "TPM".to_owned()),
                    ("ik", claims.ik.to_string()),
                    ("ek", claims.ek.to_string()),
                    ("pcr-bank", device.layer().bank().to_string()),
                    ("reset-count", clock.reset_count.to_string()),
                    ("restart-count", clock.restart_count.to_string()),
                    ("clock-ms", clock.clock_ms.to_string()),
                    ("clock-safe", clock.safe.to_string()),
                ])
            }
            DeviceIdentity::SoftwareKey { certificate, .. } => claims_of([
                ("name", self.name()),
                ("issuer", certificate.issuer().to_owned()),
                ("root-of-trust", "none".to_owned()),
            ]),
        }
    }
}
