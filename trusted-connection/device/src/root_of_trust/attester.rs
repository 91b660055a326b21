//! Evidence of this device for its connections.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use attestation::{Binding, Nonce};
use attested_tls::{Attester, Demand, EvidenceFuture, Format, NoEvidence};
use cert_chain::PcrSelection;
use printable::WithCauses;

use super::evidence::RootOfTrust;
use super::folder::{IdentityFolder, RootOfTrustError};
use crate::tpm::DeviceTpm;

/// Makes evidence of a device with its TPM, one quote at a time.
#[derive(Clone)]
pub struct DeviceAttester(Arc<Mutex<RootOfTrust>>);

impl DeviceAttester {
    /// An attester with the identity in this folder. It reads certificate and log anew each time: the
    /// certificate is renewed while the device runs.
    pub fn new(
        tpm: DeviceTpm,
        identity: IdentityFolder,
        event_log: impl Into<PathBuf>,
        quoted: PcrSelection,
    ) -> Result<Self, RootOfTrustError> {
        let root = RootOfTrust {
            identity,
            event_log: event_log.into(),
            quoted,
            tpm,
        };
        // Early, so that what lacks is told before the first connection.
        root.read_log()?;
        root.identity.certificate(root.tpm.identity_key())?;
        Ok(Self(Arc::new(Mutex::new(root))))
    }
}

impl Attester for DeviceAttester {
    fn evidence(&self, demand: &Demand, nonce: Nonce, binding: Binding) -> EvidenceFuture {
        let is_asked_for = match demand {
            Demand::Evidence { formats, .. } => formats.contains(&Format::Device),
            Demand::Nothing => false,
        };
        if !is_asked_for {
            return Box::pin(std::future::ready(Err(NoEvidence::Format)));
        }
        let root = Arc::clone(&self.0);
        Box::pin(async move {
            let making = tokio::task::spawn_blocking(move || {
                let mut root = root.lock().unwrap_or_else(PoisonError::into_inner);
                root.evidence(nonce, binding)
            });
            match making.await {
                Ok(Ok(evidence)) => Ok(evidence.to_cbor()),
                Ok(Err(error)) => {
                    tracing::error!(error = %WithCauses(&error), "no evidence of this device");
                    Err(NoEvidence::Tpm)
                }
                Err(_) => Err(NoEvidence::Tpm),
            }
        })
    }
}
