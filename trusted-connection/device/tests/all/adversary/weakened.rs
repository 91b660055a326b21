//! A device from which a defence can be taken out.

use std::sync::Arc;
use std::time::Duration;

use attestation::certification::CertificationError;
use attestation::{Binding, Evidence, Nonce, Policy, Purpose, Refusal, appraise};
use attested_tls::tls::{ClientTls, KeyExchange};
use attested_tls::{
    Appraisal, AttestedStream, Demand, EvidenceRefused, Format, Peer, Unattested, Verifier, connect,
};
use cert_chain::profile::TlsCertificate;
use rustls_pki_types::UnixTime;
use tokio::io::DuplexStream;
use vrot_device::connection::BelowTheIssuer;

use super::Victim;
use crate::support::deadlines;

/// What evidence is held against.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) nonce: Nonce,
    pub(super) purpose: Purpose,
    pub(super) at: UnixTime,
}

type Change = Box<dyn Fn(&mut Evidence, &mut Asked) + Send + Sync>;

/// The defence that is not there.
pub(super) struct Without {
    /// Changes what evidence is held against, or what of it is looked at.
    change: Change,
    /// The certificate of the handshake may name another VM than the evidence is of.
    names: bool,
    /// A TLS key may be anywhere.
    attributes: bool,
    /// Results are relied on for so long, whatever they say themselves.
    relied_on: Option<Duration>,
}

impl Without {
    pub(super) fn nothing() -> Self {
        Self {
            change: Box::new(|_, _| {}),
            names: false,
            attributes: false,
            relied_on: None,
        }
    }

    /// Evidence answers a challenge, and is tied to no connection: neither to its secrets, nor to its
    /// key, nor to its certificate.
    pub(super) fn any_tie_to_the_connection() -> Self {
        let mut without = Self::changing(|_, asked| asked.purpose = Purpose::Challenge);
        without.names = true;
        without
    }

    /// Evidence is of the right key, and of whichever connection it says.
    pub(super) fn the_binding() -> Self {
        Self::changing(|evidence, asked| set_binding(asked, evidence.vm.binding.clone()))
    }

    /// Evidence answers whatever request it says.
    pub(super) fn its_own_request() -> Self {
        Self::changing(|evidence, asked| {
            asked.nonce = evidence.vm.nonce.clone();
            set_binding(asked, evidence.vm.binding.clone());
        })
    }

    /// Evidence that is bound to nothing will do, as if it came from an attester that cannot bind it.
    pub(super) fn a_binding_that_must_be_there() -> Self {
        Self::changing(|evidence, asked| {
            if evidence.vm.binding == Binding::None {
                set_binding(asked, Binding::None);
            }
        })
    }

    /// The binding that stands beside the quote is compared, and the quote verified without it.
    pub(super) fn a_binding_in_the_quote() -> Self {
        Self::changing(|evidence, asked| {
            if evidence.vm.binding == *asked.purpose.binding() {
                evidence.vm.binding = Binding::None;
                set_binding(asked, Binding::None);
            }
        })
    }

    /// The key that the evidence speaks of is not compared with that of the handshake.
    pub(super) fn the_key_of_the_handshake() -> Self {
        Self::changing(|evidence, asked| {
            let public = &evidence.vm.tls_key.as_ref().unwrap().public;
            let area = cert_chain::PublicArea::parse(public).unwrap();
            let spoken_of = cert_chain::Digest32::of(&area.subject_public_key_info());
            if let Purpose::Connection { key, .. } = &mut asked.purpose {
                *key = spoken_of;
            }
        })
    }

    /// A key that the vRoT certified need not have been made in it.
    pub(super) fn attributes_of_the_key() -> Self {
        Self {
            attributes: true,
            ..Self::nothing()
        }
    }

    /// The certificate of the handshake may name another VM.
    pub(super) fn names() -> Self {
        Self {
            names: true,
            ..Self::nothing()
        }
    }

    /// It is always that time.
    pub(super) fn a_clock(at: UnixTime) -> Self {
        Self::changing(move |_, asked| asked.at = at)
    }

    /// Results are relied on for an hour.
    pub(super) fn an_end_of_results() -> Self {
        Self {
            relied_on: Some(Duration::from_secs(3600)),
            ..Self::nothing()
        }
    }

    fn changing(change: impl Fn(&mut Evidence, &mut Asked) + Send + Sync + 'static) -> Self {
        Self {
            change: Box::new(change),
            ..Self::nothing()
        }
    }
}

fn set_binding(asked: &mut Asked, other: Binding) {
    if let Purpose::Connection { binding, .. } = &mut asked.purpose {
        *binding = other;
    }
}

/// A device like that of the program, step by step, but for what is taken out.
pub(super) struct Weakened {
    tls: ClientTls,
    verifier: Arc<Lenient>,
}

struct Lenient {
    policy: Policy,
    without: Without,
}

impl Weakened {
    pub(super) fn new(policy: Policy, without: Without) -> Self {
        let exchange = KeyExchange::HybridFirst;
        let servers = Arc::new(BelowTheIssuer::new(policy.anchors(), None, exchange));
        Self {
            tls: ClientTls::anonymous(servers, exchange).unwrap(),
            verifier: Arc::new(Lenient { policy, without }),
        }
    }
}

impl Victim for Weakened {
    async fn connect(&self, transport: DuplexStream) -> Option<AttestedStream> {
        let name = "vm-1.example.org".try_into().unwrap();
        let verifier = Arc::clone(&self.verifier);
        let nothing = Arc::new(Unattested);
        let attested = connect(transport, &self.tls, name, nothing, verifier, deadlines()).await;
        attested.ok().map(|attested| attested.stream)
    }
}

impl Verifier for Lenient {
    type Result = ();

    fn demand(&self) -> Demand {
        Demand::Evidence {
            formats: vec![Format::Vrot],
            policy: *self.policy.digest(),
        }
    }

    fn appraise(
        &self,
        evidence: &[u8],
        nonce: &Nonce,
        binding: &Binding,
        peer: &Peer,
    ) -> Result<Appraisal<()>, EvidenceRefused> {
        let refused = |reason: String| EvidenceRefused { reason };
        let mut evidence = Evidence::from_cbor(evidence).map_err(|e| refused(e.to_string()))?;
        let mut asked = Asked {
            nonce: nonce.clone(),
            purpose: Purpose::Connection {
                binding: binding.clone(),
                key: peer.identity.unwrap().key,
            },
            at: UnixTime::now(),
        };
        (self.without.change)(&mut evidence, &mut asked);
        let accepted = |valid_for| Appraisal {
            result: (),
            valid_for,
        };
        let (nonce, anchors) = (&asked.nonce, self.policy.anchors());
        let verified = match evidence.verify(nonce, &asked.purpose, anchors, asked.at) {
            Ok(verified) => verified,
            // Nonce, binding, chain and the VM's quote have been verified by then.
            Err(Refusal::TlsKey(CertificationError::Attributes(_))) if self.without.attributes => {
                return Ok(accepted(self.policy.result_lifetime()));
            }
            Err(refusal) => return Err(refused(refusal.explanation())),
        };
        let result = appraise(verified, &self.policy);
        if !self.policy.connection().accepts(result.verdict()) {
            return Err(refused(format!("{:#}", result.to_json())));
        }
        let chain = result.evidence().chain();
        let certificate = TlsCertificate::read(&peer.certificates[0], chain.host());
        let is_of_the_vm = |certificate: TlsCertificate| {
            (certificate.vm(), certificate.vrot()) == (chain.claims().vm, chain.claims().vrot)
        };
        if !self.without.names && !certificate.is_ok_and(is_of_the_vm) {
            return Err(refused("another VM's certificate".to_owned()));
        }
        let left = result.expires_at().as_secs() - asked.at.as_secs();
        let until_its_end = Duration::from_secs(left);
        Ok(accepted(self.without.relied_on.unwrap_or(until_its_end)))
    }
}
