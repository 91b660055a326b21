//! Whom a service lets connect: devices, judged by a policy file.
//!
//! A device with a TPM shows evidence ([`attestation::device`]). One whose identity is a key in software
//! has none; it is asked for a client certificate only where the policy exempts such devices, and what
//! becomes of it, the same policy says.
//!
//! [`Devices`] are those of all connections; each has a [`DeviceVerifier`] of its own, which holds it to the
//! device that it accepted first.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use attestation::device::{
    DeviceEvidence, DeviceIdentity, DevicePolicy, DeviceResult, appraise_device,
    appraise_software_key,
};
use attestation::policy::PolicyError;
use attestation::{Binding, Nonce, Verdict};
use attested_tls::tls::{KeyExchange, provider};
use attested_tls::{Appraisal, Demand, EvidenceRefused, Format, Peer, Verifier};
use cert_chain::{RevocationDemand, TpmName, VerifiedClientCertificate};
use printable::WithCauses;
use rustls::RootCertStore;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls_pki_types::UnixTime;
use trusted_connection::crl_files::CrlFiles;
use trusted_connection::policy_files;

/// The devices that may connect, by the policy that is in force at the time.
#[derive(Debug)]
pub struct Devices {
    policy: RwLock<Arc<DevicePolicy>>,
    crls: Arc<CrlFiles>,
}

/// Judges the device at the other end of one connection, for as long as that lives. Whoever it was accepted
/// as first, it has to be in every later round: data come and go in that device's name.
#[derive(Debug)]
pub struct DeviceVerifier {
    devices: Arc<Devices>,
    first: OnceLock<Known>,
}

/// Which device it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    name: String,
    /// That of its identity key, if it has a TPM. One without has the same certificate as long as its
    /// connection lives.
    ik: Option<TpmName>,
}

impl Devices {
    /// Those that the policy in this file accepts, by the roots that it names.
    pub fn load(policy: &Path) -> Result<Self, PolicyError> {
        policy_files::load_about_devices(policy).map(Self::new)
    }

    /// Those that this policy accepts.
    pub fn new(policy: DevicePolicy) -> Self {
        Self {
            policy: RwLock::new(Arc::new(policy)),
            crls: Arc::default(),
        }
    }

    /// Puts another one's policy in force: connections are made by it from now on, and those that live are
    /// judged by it from their next round of attestation on.
    pub fn replace(&self, by: &Self) {
        let policy = by.policy();
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = policy;
    }

    /// What judges the device of a new connection, and of no other.
    pub fn verifier(self: &Arc<Self>) -> Arc<DeviceVerifier> {
        Arc::new(DeviceVerifier {
            devices: Arc::clone(self),
            first: OnceLock::new(),
        })
    }

    /// Revocation lists, in which devices with a TPM are looked for. A file that changes is read anew by
    /// the next round of attestation, of connections that live, too.
    pub fn with_crls(mut self, crls: Arc<CrlFiles>) -> Self {
        self.crls = crls;
        self
    }

    /// Whether they include no device with a TPM without a revocation list, which no device carries.
    pub fn demands_a_list(&self) -> bool {
        (self.policy().anchors()).is_some_and(|roots| roots.demand() != RevocationDemand::NotAsked)
    }

    /// The policy.
    pub fn policy(&self) -> Arc<DevicePolicy> {
        let policy = self.policy.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&policy)
    }

    /// How handshakes treat clients' certificates: they are asked for where the policy exempts devices
    /// with software keys, and demanded nowhere, for others have evidence instead.
    ///
    /// The handshake shows that the client has the certificate's key, and refuses certificates of
    /// strangers. Whether it is accepted, each appraisal says anew.
    pub fn client_certificates(&self) -> Result<Arc<dyn ClientCertVerifier>, VerifierBuilderError> {
        let policy = self.policy();
        let Some(exemption) = policy.software_keys() else {
            return Ok(WebPkiClientVerifier::no_client_auth());
        };
        let roots = RootCertStore {
            roots: exemption.anchors().as_slice().to_vec(),
        };
        let provider = provider(KeyExchange::HybridFirst);
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .allow_unauthenticated()
            .build()
    }

    fn judge(
        &self,
        evidence: &[u8],
        nonce: &Nonce,
        binding: &Binding,
        peer: &Peer,
        at: UnixTime,
    ) -> Result<DeviceResult, EvidenceRefused> {
        if evidence.is_empty() {
            self.judge_software_key(nonce, peer, at)
        } else {
            self.judge_evidence(evidence, nonce, binding, at)
        }
    }

    fn judge_evidence(
        &self,
        evidence: &[u8],
        nonce: &Nonce,
        binding: &Binding,
        at: UnixTime,
    ) -> Result<DeviceResult, EvidenceRefused> {
        let policy = self.policy();
        let roots = policy
            .anchors()
            .ok_or_else(|| refused("the policy accepts no device with a TPM"))?;
        let anchors = self.crls.anchors(roots);
        let evidence =
            DeviceEvidence::from_cbor(evidence).map_err(|error| refused(WithCauses(&error)))?;
        let verified = evidence
            .verify(nonce, binding, &anchors, at)
            .map_err(|refusal| {
                refused(format_args!(
                    "{}: {}",
                    refusal.code(),
                    refusal.explanation()
                ))
            })?;
        Ok(appraise_device(verified, &policy))
    }

    fn judge_software_key(
        &self,
        nonce: &Nonce,
        peer: &Peer,
        at: UnixTime,
    ) -> Result<DeviceResult, EvidenceRefused> {
        let policy = self.policy();
        let Some(exemption) = policy.software_keys() else {
            return Err(refused(
                "the device shows no evidence of a root of trust, and the policy exempts no device \
                 from having one",
            ));
        };
        if peer.certificates.is_empty() {
            return Err(refused(
                "the device shows neither evidence of a root of trust nor a client certificate",
            ));
        }
        let certificate =
            VerifiedClientCertificate::verify(&peer.certificates, exemption.anchors(), at)
                .map_err(|error| refused(WithCauses(&error)))?;
        Ok(appraise_software_key(certificate, &policy, nonce, at))
    }
}

impl Verifier for DeviceVerifier {
    type Result = Arc<DeviceResult>;

    fn demand(&self) -> Demand {
        let policy = self.devices.policy();
        let attested = policy.anchors().map(|_| Format::Device);
        let exempted = policy.software_keys().map(|_| Format::ClientCertificate);
        Demand::Evidence {
            formats: [attested, exempted].into_iter().flatten().collect(),
            policy: *policy.digest(),
        }
    }

    fn appraise(
        &self,
        evidence: &[u8],
        nonce: &Nonce,
        binding: &Binding,
        peer: &Peer,
    ) -> Result<Appraisal<Self::Result>, EvidenceRefused> {
        let now = UnixTime::now();
        let result = self.devices.judge(evidence, nonce, binding, peer, now)?;
        if !result.is_accepted() {
            return Err(refused(format_args!(
                "{} is {}: {}",
                result.name(),
                result.verdict(),
                reasons(&result)
            )));
        }
        let known = Known::of(&result);
        let first = self.first.get_or_init(|| known.clone());
        if known != *first {
            return Err(refused(format_args!(
                "the connection is that of {first}, and the evidence is of {known}"
            )));
        }
        let valid_for = result
            .expires_at()
            .as_secs()
            .saturating_sub(result.issued_at().as_secs());
        Ok(Appraisal {
            valid_for: Duration::from_secs(valid_for),
            result: Arc::new(result),
        })
    }
}

impl Known {
    fn of(device: &DeviceResult) -> Self {
        let ik = match device.identity() {
            DeviceIdentity::Attested(device) => Some(device.certificate().claims().ik.clone()),
            DeviceIdentity::SoftwareKey { .. } => None,
        };
        Self {
            name: device.name(),
            ik,
        }
    }
}

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.ik {
            Some(ik) => write!(f, "{} with the identity key {ik}", self.name),
            None => write!(f, "{} without a root of trust", self.name),
        }
    }
}

/// What the log says of an accepted device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its name, if anything was demanded of it.
    pub device: Option<String>,
    /// Its name, and the verdict.
    pub name: String,
    /// Why the verdict is not the best one, if it is not.
    pub reasons: Option<String>,
}

impl Told {
    /// About a device of which nothing was demanded.
    pub fn any() -> Self {
        Self {
            device: None,
            name: "any".to_owned(),
            reasons: None,
        }
    }

    /// About this device.
    pub fn of(device: &DeviceResult) -> Self {
        let is_affirming = device.verdict() == Verdict::Affirming;
        Self {
            device: Some(device.name().to_string()),
            name: format!("{} ({})", device.name(), device.verdict()),
            reasons: (!is_affirming).then(|| reasons(device)),
        }
    }
}

fn reasons(device: &DeviceResult) -> String {
    let reasons = device.layer().reasons().iter();
    let reasons: Vec<_> = reasons
        .map(|reason| format!("{}: {}", reason.code, reason.text))
        .collect();
    reasons.join("; ")
}

fn refused(reason: impl ToString) -> EvidenceRefused {
    EvidenceRefused {
        reason: reason.to_string(),
    }
}
