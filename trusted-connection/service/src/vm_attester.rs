//! Evidence of this VM for attested connections.

use std::sync::Arc;

use attestation::{Binding, KeyStatement, Nonce};
use attested_tls::{Attester, Demand, EvidenceFuture, Format, NoEvidence};
use printable::WithCauses;
use tokio::sync::oneshot;

use crate::attester::AttesterError;
use crate::attester::batches::{Batches, Full};
use crate::attester::quoting::EvidenceRequest;

/// Shows what the VM and its host are. All connections that wait for evidence share one quote and one
/// request to the host.
#[derive(Debug)]
pub struct VmAttester {
    batches: Arc<Batches>,
    /// The key of this end of all connections, certified by the vIK.
    tls_key: KeyStatement,
}

impl VmAttester {
    /// Evidence of this vRoT, for connections with this key.
    pub fn new(batches: Arc<Batches>, tls_key: KeyStatement) -> Self {
        Self { batches, tls_key }
    }
}

impl Attester for VmAttester {
    fn evidence(&self, demand: &Demand, nonce: Nonce, binding: Binding) -> EvidenceFuture {
        let known =
            matches!(demand, Demand::Evidence { formats, .. } if formats.contains(&Format::Vrot));
        if !known {
            return Box::pin(async { Err(NoEvidence::Format) });
        }
        let request = EvidenceRequest {
            nonce,
            binding,
            tls_key: Some(self.tls_key.clone()),
        };
        let (sender, receiver) = oneshot::channel();
        // A connection that has ended meanwhile needs no answer.
        let reply = move |outcome| drop(sender.send(outcome));
        let asked = self.batches.request(request, reply);
        Box::pin(async move {
            if let Err(Full) = asked {
                return Err(NoEvidence::Busy);
            }
            match receiver.await {
                Ok(Ok(evidence)) => Ok(evidence),
                Ok(Err(error)) => {
                    tracing::error!(error = %WithCauses(&*error), "no evidence");
                    Err(match *error {
                        AttesterError::Host(_) | AttesterError::HostLayer(_) => NoEvidence::Host,
                        _ => NoEvidence::Tpm,
                    })
                }
                Err(_) => Err(NoEvidence::Host),
            }
        })
    }
}
