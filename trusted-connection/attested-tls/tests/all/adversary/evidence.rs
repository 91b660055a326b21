//! What is no evidence for a connection, before verifiers that do not look closely.

use std::sync::Arc;

use anyhow::{Result, ensure};
use attestation::{Binding, Nonce};
use attested_tls::{
    Appraisal, Demand, EvidenceRefused, Peer as PeerIdentity, Unattested, Verifier, connect,
};

use super::peer::{Peer, Request};
use super::{Defences, Scene, accepted, meanwhile, pipe};
use crate::support::{Signer, Trusting, deadlines, name};

/// A verifier that takes some other evidence as well.
struct Careless {
    trusting: Arc<Trusting>,
    takes: fn(&Signer, &[u8], &Nonce, &Binding) -> bool,
    signer: Arc<Signer>,
}

impl Verifier for Careless {
    type Result = Nonce;

    fn demand(&self) -> Demand {
        self.trusting.demand()
    }

    fn appraise(
        &self,
        evidence: &[u8],
        nonce: &Nonce,
        binding: &Binding,
        peer: &PeerIdentity,
    ) -> Result<Appraisal<Nonce>, EvidenceRefused> {
        if (self.takes)(&self.signer, evidence, nonce, binding) {
            return Ok(Appraisal {
                result: nonce.clone(),
                valid_for: self.trusting.valid_for,
            });
        }
        self.trusting.appraise(evidence, nonce, binding, peer)
    }
}

/// Shows what `make` makes to a device, with a careful verifier and with a careless one: only the
/// second may accept it.
async fn only_the_careless_take(
    make: fn(&Signer, &Request, &Binding) -> Result<Vec<u8>>,
    takes: fn(&Signer, &[u8], &Nonce, &Binding) -> bool,
) -> Result<()> {
    for is_careless in [false, true] {
        let scene = Scene::new()?;
        let (victim_end, attacker_end) = pipe();
        let attacker = async {
            let mut victim = Peer::server(scene.key.clone(), attacker_end).await?;
            victim.greet(false).await?;
            let request = victim.request().await?;
            let (_, binding) = victim.binding(Defences::ALL, super::peer::SERVER, &request)?;
            let evidence = make(&scene.service, &request, &binding)?;
            victim.send_evidence(&request, evidence).await?;
            victim.until_closed().await;
            Ok(())
        };
        let device = async {
            let (tls, trusting) = (scene.issuer.client()?, Trusting::new(&scene.service));
            let attester = Arc::new(Unattested);
            if !is_careless {
                let opened =
                    connect(victim_end, &tls, name(), attester, trusting, deadlines()).await;
                return accepted(opened);
            }
            let signer = scene.service.clone();
            let careless = Arc::new(Careless {
                trusting,
                takes,
                signer,
            });
            accepted(connect(victim_end, &tls, name(), attester, careless, deadlines()).await)
        };
        let is_accepted = meanwhile(device, attacker).await?;
        ensure!(is_accepted == is_careless, "careless: {is_careless}");
    }
    Ok(())
}

/// The service's evidence for this very nonce, as anybody gets it who sends a challenge in the clear.
fn unbound(signer: &Signer, request: &Request) -> Result<Vec<u8>> {
    Ok(signer.sign(&Nonce::new(request.nonce.clone())?, &Binding::None))
}

#[tokio::test]
async fn evidence_that_is_bound_to_nothing_needs_a_verifier_that_takes_that() -> Result<()> {
    only_the_careless_take(
        |signer, request, _| unbound(signer, request),
        |signer, evidence, nonce, _| evidence == signer.sign(nonce, &Binding::None),
    )
    .await
}

#[tokio::test]
async fn no_evidence_at_all_needs_a_verifier_that_takes_that() -> Result<()> {
    only_the_careless_take(
        |_, _, _| Ok(Vec::new()),
        |_, evidence, _, _| evidence.is_empty(),
    )
    .await
}

/// The right binding travels along, outside of what is signed.
#[tokio::test]
async fn a_binding_beside_the_evidence_needs_a_verifier_that_compares_that_one() -> Result<()> {
    only_the_careless_take(
        |signer, request, binding| {
            Ok([unbound(signer, request)?, binding.to_string().into_bytes()].concat())
        },
        |signer, evidence, nonce, binding| {
            let signed = signer.sign(nonce, &Binding::None);
            evidence == [signed, binding.to_string().into_bytes()].concat()
        },
    )
    .await
}
