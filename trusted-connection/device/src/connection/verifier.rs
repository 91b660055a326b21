//! Judging the other end of a connection by a policy, round after round.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use attestation::evidence::EvidenceError;
use attestation::policy::ExpectedKeyExchange;
use attestation::{AttestationResult, Binding, Evidence, Layer, Nonce, Purpose};
use attested_tls::tls::{ParameterNames, is_hybrid};
use attested_tls::{Appraisal, Demand, EvidenceRefused, Format, Peer, Verifier};
use cert_chain::profile::ProfileError;
use rustls_pki_types::UnixTime;

use super::changes::changes;
use super::setting::{InForce, Judging};
use super::tls;
use crate::judgement::Judgement;

/// What is known about a service.
pub type Appraised = Arc<AttestationResult>;

/// Why the evidence of a service is not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotAccepted {
    /// It cannot be read.
    #[error("what it showed is no evidence")]
    Malformed(#[source] EvidenceError),
    /// The connection's certificate is not a vRoT's.
    #[error("its certificate for TLS is not that of a vRoT's key")]
    Certificate(#[source] ProfileError),
    /// The connection's certificate and the evidence speak of different VMs.
    #[error("its certificate for TLS is for {certificate}, and its evidence is of {evidence}")]
    OtherVm {
        /// Whom the certificate names.
        certificate: String,
        /// Whom the evidence is of.
        evidence: String,
    },
    /// Keys of the connection come from elliptic curves alone, and the policy asks for more.
    #[error(
        "the connection's keys are agreed on by {0}, and the policy asks for hybrid key exchange \
         (`key_exchange` in [connection])"
    )]
    KeyExchange(String),
    /// The handshake authenticated nobody.
    #[error("it showed no certificate in the handshake")]
    NoKey,
    /// It proves nothing, or not what the policy asks for.
    #[error("{}", summary(.0))]
    Judged(Box<Judgement>),
}

/// Accepts one service, for as long as one connection lives, if the policy does that is in force at the
/// time.
#[derive(Debug)]
pub(super) struct ServiceVerifier {
    in_force: InForce,
    state: Mutex<State>,
}

/// What the last round brought.
#[derive(Debug, Default)]
struct State {
    accepted: Option<Appraised>,
    refused: Option<Box<NotAccepted>>,
}

impl ServiceVerifier {
    pub(super) fn new(in_force: InForce) -> Self {
        Self {
            in_force,
            state: Mutex::default(),
        }
    }

    /// Why the last evidence was refused.
    pub(super) fn why_not(&self) -> Option<Box<NotAccepted>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.refused.take()
    }

    fn judge(
        &self,
        evidence: &[u8],
        nonce: &Nonce,
        binding: &Binding,
        peer: &Peer,
        now: UnixTime,
    ) -> Result<Appraised, NotAccepted> {
        let identity = peer.identity.ok_or(NotAccepted::NoKey)?;
        let evidence = Evidence::from_cbor(evidence).map_err(NotAccepted::Malformed)?;
        let purpose = Purpose::Connection {
            binding: binding.clone(),
            key: identity.key,
        };
        let Judging { policy, crls } = self.in_force.get().judging;
        // The handshake was made by the policy of that time.
        if policy.connection().key_exchange == ExpectedKeyExchange::Hybrid
            && !is_hybrid(&peer.parameters)
        {
            let group = ParameterNames::of(&peer.parameters).group;
            return Err(NotAccepted::KeyExchange(group));
        }
        let lists = crls.for_verification();
        let judgement = Judgement::of(&evidence, nonce, &purpose, &policy, &lists, now);
        // Also that of refused evidence: it may be what the refusal is for.
        let shown: Vec<_> = evidence.crls.iter().collect();
        crls.keep_newest(policy.anchors(), &shown);
        match judgement {
            Judgement::Appraised(result) if policy.connection().accepts(result.verdict()) => {
                is_of_the_certificates_vm(&result, peer)?;
                Ok(result)
            }
            judgement => Err(NotAccepted::Judged(Box::new(judgement))),
        }
    }

    /// Says what is not as it was in the last round.
    fn note(&self, result: &Appraised) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.accepted.replace(Arc::clone(result));
        drop(state);
        match before {
            None => {}
            Some(before) => {
                for change in changes(&before, result) {
                    tracing::warn!(vm = %result.evidence().leaf().vm, "{change}");
                }
            }
        }
    }
}

/// The key is shown to live in the evidence's vRoT. That the certificate calls it the same is for all
/// who look at the certificate alone.
fn is_of_the_certificates_vm(result: &AttestationResult, peer: &Peer) -> Result<(), NotAccepted> {
    let (own, issuers) = peer.certificates.split_first().ok_or(NotAccepted::NoKey)?;
    let (certificate, host) = tls::read(own, issuers).map_err(NotAccepted::Certificate)?;
    let chain = result.evidence().chain();
    let claims = chain.claims();
    let name = |vm, vrot, host| format!("VM {vm} with vRoT {vrot} on {host}");
    let certificate = name(certificate.vm(), certificate.vrot(), &host);
    let evidence = name(claims.vm, claims.vrot, chain.host());
    if certificate == evidence {
        Ok(())
    } else {
        Err(NotAccepted::OtherVm {
            certificate,
            evidence,
        })
    }
}

impl Verifier for ServiceVerifier {
    type Result = Appraised;

    fn demand(&self) -> Demand {
        Demand::Evidence {
            formats: vec![Format::Vrot],
            policy: *self.in_force.get().judging.policy.digest(),
        }
    }

    fn appraise(
        &self,
        evidence: &[u8],
        nonce: &Nonce,
        binding: &Binding,
        peer: &Peer,
    ) -> Result<Appraisal<Appraised>, EvidenceRefused> {
        let now = UnixTime::now();
        match self.judge(evidence, nonce, binding, peer, now) {
            Ok(result) => {
                self.note(&result);
                let left = result.expires_at().as_secs().saturating_sub(now.as_secs());
                Ok(Appraisal {
                    result,
                    valid_for: Duration::from_secs(left),
                })
            }
            Err(why) => {
                let reason = printable::WithCauses(&why).to_string();
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.refused = Some(Box::new(why));
                Err(EvidenceRefused { reason })
            }
        }
    }
}

impl NotAccepted {
    /// The judgement on evidence that could be judged.
    pub fn judgement(&self) -> Option<&Judgement> {
        match self {
            Self::Judged(judgement) => Some(judgement),
            _ => None,
        }
    }
}

/// Reasons that stand in one line; the result has all.
const REASONS: usize = 4;

fn summary(judgement: &Judgement) -> String {
    let result = match judgement {
        Judgement::Refused { refusal, .. } => {
            return format!("{} ({})", refusal.explanation(), refusal.code());
        }
        Judgement::Appraised(result) => result,
    };
    let reasons: Vec<_> = [Layer::Host, Layer::Vm]
        .into_iter()
        .flat_map(|layer| result.layer(layer).reasons())
        .collect();
    let mut text = format!("the verdict is {}", result.verdict());
    for (reason, begin) in reasons
        .iter()
        .take(REASONS)
        .zip([": "].into_iter().chain(std::iter::repeat("; ")))
    {
        text.push_str(&format!("{begin}{} ({})", reason.text, reason.code));
    }
    if let Some(more) = reasons.len().checked_sub(REASONS).filter(|more| *more > 0) {
        text.push_str(&format!("; and {more} more"));
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::Result;
    use attestation::connection::{EndIdentity, TlsParameters};
    use attestation::fixture::Host;
    use cert_chain::Digest32;
    use rcgen::PublicKeyData;

    use super::*;
    use crate::connection::{Connector, DeviceIdentity};

    #[test]
    fn a_policy_that_asks_for_hybrid_key_exchange_from_now_on_ends_connections_without()
    -> Result<()> {
        let host = Host::made_at(UnixTime::now(), "host-1");
        let vm = host.vm();
        let any = host.policy_text(&vm);
        let hybrid = format!("[connection]\nkey_exchange = \"hybrid\"\n\n{any}");
        let connector = |policy: &str| {
            let policy = Arc::new(host.read_policy(policy)?);
            anyhow::Ok(Connector::new(policy, DeviceIdentity::none(), None)?)
        };
        let own = host.tls_certificate(&vm);
        let identity = EndIdentity {
            key: Digest32::of(&vm.tls_key.subject_public_key_info()),
            certificate: Digest32::of(&own),
        };
        let peer = |group| Peer {
            certificates: vec![own.clone(), host.certificate.clone()],
            identity: Some(identity),
            parameters: TlsParameters {
                version: 0x0304,
                suite: 0x1302,
                group,
            },
        };
        let nonce = Nonce::new([1; 32])?;
        let binding = Binding::Connection(Digest32::of(b"this one"));
        let evidence = host.evidence(&vm, &nonce, binding.clone()).to_cbor();
        let connecting = connector(&any)?;
        let verifier = ServiceVerifier::new(connecting.in_force.clone());
        let round = |group| {
            let appraised = verifier.appraise(&evidence, &nonce, &binding, &peer(group));
            appraised.map(drop).map_err(|refused| refused.reason)
        };
        let (x25519, with_ml_kem) = (0x001d, 0x11ec);
        assert_eq!((round(x25519), round(with_ml_kem)), (Ok(()), Ok(())));
        connecting.replace(&connector(&hybrid)?);
        assert_eq!(round(with_ml_kem), Ok(()));
        let reason = round(x25519).err().unwrap_or_default();
        assert!(reason.contains("agreed on by X25519,"), "{reason}");
        let why = verifier.why_not();
        let why = why.as_deref();
        assert!(matches!(why, Some(NotAccepted::KeyExchange(_))), "{why:?}");
        Ok(())
    }
}
