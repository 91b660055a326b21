//! Evidence of this device for its connections.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use attestation::device::{DeviceEvidence, DeviceQuote};
use attestation::event_log::MAX_LOG;
use attestation::{Binding, EventLog, Nonce, accounted_bank, device_qualifying_data};
use attested_tls::{Attester, Demand, EvidenceFuture, Format, NoEvidence};
use bounded_file::read_bounded;
use cert_chain::{Digest32, HashAlgorithm, PcrSelection};
use printable::WithCauses;

use super::folder::{IdentityFolder, RootOfTrustError};
use crate::tpm::{DeviceTpm, TpmError};

/// Makes evidence of a device with its TPM, one quote at a time.
#[derive(Clone)]
pub struct DeviceAttester(Arc<Shared>);

struct Shared {
    tpm: Mutex<DeviceTpm>,
    identity: IdentityFolder,
    event_log: PathBuf,
    quoted: PcrSelection,
}

impl DeviceAttester {
    /// An attester with the identity in this folder. It reads certificate and log anew each time: the
    /// certificate is renewed while the device runs.
    pub fn new(
        tpm: DeviceTpm,
        identity: IdentityFolder,
        event_log: impl Into<PathBuf>,
        quoted: PcrSelection,
    ) -> Result<Self, RootOfTrustError> {
        let attester = Shared {
            identity,
            event_log: event_log.into(),
            quoted,
            tpm: Mutex::new(tpm),
        };
        // Early, so that what lacks is told before the first connection.
        attester.read_log()?;
        let tpm = attester.tpm.lock().unwrap_or_else(PoisonError::into_inner);
        attester.identity.certificate(tpm.identity_key())?;
        drop(tpm);
        Ok(Self(Arc::new(attester)))
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
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let making = tokio::task::spawn_blocking(move || shared.evidence(nonce, binding));
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

impl Shared {
    fn read_log(&self) -> Result<Vec<u8>, RootOfTrustError> {
        read_bounded(&self.event_log, MAX_LOG).map_err(|source: io::Error| RootOfTrustError::File {
            path: self.event_log.clone(),
            action: "read (is securityfs mounted, and may this user read it?)",
            source,
        })
    }

    fn evidence(&self, nonce: Nonce, binding: Binding) -> Result<DeviceEvidence, RootOfTrustError> {
        let log = self.read_log()?;
        let event_log_digest = Digest32::of(&log);
        let mut tpm = self.tpm.lock().unwrap_or_else(PoisonError::into_inner);
        let key = tpm.identity_key().clone();
        let certificate = self.identity.certificate(&key)?;
        let bank = self.bank(&mut tpm, &log)?;
        let qualifying_data =
            device_qualifying_data(&nonce, &binding, &key.name(), &event_log_digest);
        let quote = tpm.quote(bank, self.quoted, &qualifying_data)?;
        Ok(DeviceEvidence::new(DeviceQuote {
            nonce,
            binding,
            attest: quote.attest.into(),
            signature: quote.signature.into(),
            ik_public: key.public_area().as_bytes().to_vec().into(),
            event_log_digest,
            event_log: log.into(),
            certificate: certificate.to_vec().into(),
            pcr_values: quote.pcrs.to_bytes().into(),
        }))
    }

    /// The first bank that the log accounts for; where it accounts for none, the first at all. What the
    /// log lacks then, the verifier says.
    fn bank(&self, tpm: &mut DeviceTpm, log: &[u8]) -> Result<HashAlgorithm, TpmError> {
        let banks = tpm.banks(self.quoted)?;
        let accounted = EventLog::parse(log)
            .ok()
            .and_then(|log| accounted_bank(&log, &banks, self.quoted).ok());
        accounted.or(banks.first().copied()).ok_or(TpmError::Bank)
    }
}
