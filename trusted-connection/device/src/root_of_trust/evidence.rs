//! Evidence of this device.

use std::io;
use std::path::PathBuf;

use attestation::device::{DeviceEvidence, DeviceQuote};
use attestation::event_log::MAX_LOG;
use attestation::{Binding, EventLog, Nonce, accounted_bank, device_qualifying_data};
use bounded_file::read_bounded;
use cert_chain::{Digest32, HashAlgorithm, PcrSelection};

use super::folder::{IdentityFolder, RootOfTrustError};
use crate::tpm::{DeviceTpm, TpmError};

/// A device's TPM, its identity, and what evidence is made of beside them.
pub(super) struct RootOfTrust {
    pub(super) tpm: DeviceTpm,
    pub(super) identity: IdentityFolder,
    pub(super) event_log: PathBuf,
    pub(super) quoted: PcrSelection,
}

impl RootOfTrust {
    pub(super) fn read_log(&self) -> Result<Vec<u8>, RootOfTrustError> {
        read_bounded(&self.event_log, MAX_LOG).map_err(|source: io::Error| RootOfTrustError::File {
            path: self.event_log.clone(),
            action: "read (is securityfs mounted, and may this user read it?)",
            source,
        })
    }

    /// Makes evidence. Certificate and log are read anew: the certificate is renewed while the device runs.
    pub(super) fn evidence(
        &mut self,
        nonce: Nonce,
        binding: Binding,
    ) -> Result<DeviceEvidence, RootOfTrustError> {
        let log = self.read_log()?;
        let event_log_digest = Digest32::of(&log);
        let key = self.tpm.identity_key().clone();
        let certificate = self.identity.certificate(&key)?;
        let bank = self.bank(&log)?;
        let qualifying_data =
            device_qualifying_data(&nonce, &binding, &key.name(), &event_log_digest);
        let quote = self.tpm.quote(bank, self.quoted, &qualifying_data)?;
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
    fn bank(&mut self, log: &[u8]) -> Result<HashAlgorithm, TpmError> {
        let banks = self.tpm.banks(self.quoted)?;
        let accounted = EventLog::parse(log)
            .ok()
            .and_then(|log| accounted_bank(&log, &banks, self.quoted).ok());
        accounted.or(banks.first().copied()).ok_or(TpmError::Bank)
    }
}
