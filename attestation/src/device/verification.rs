//! From a device's evidence to a verified device: signatures first, then what they cover.

use cert_chain::{Digest32, TrustAnchors, VerifiedDeviceCertificate};
use rustls_pki_types::UnixTime;

use super::evidence::DeviceEvidence;
use crate::binding::Binding;
use crate::nonce::Nonce;
use crate::qualifying::device_qualifying_data;
use crate::refusal::{Device, Refusal};
use crate::verification::{
    TpmReport, VerifiedLayer, account_for, check_log_digest, check_qualifying_data, read_key,
    verify_quote,
};

/// Evidence of a device of which every byte was verified. It establishes which device made it, for which
/// challenge and connection, and what its TPM measured; whether that is acceptable,
/// [`appraise_device`](super::appraise_device) says.
///
/// A result keeps it with what the TPM [reported](TpmReport) alone.
#[derive(Clone, Debug)]
pub struct VerifiedDevice<L = VerifiedLayer> {
    nonce: Nonce,
    anchors: Digest32,
    verified_at: UnixTime,
    certificate: VerifiedDeviceCertificate,
    layer: L,
}

impl DeviceEvidence {
    /// Verifies that the issuer certified the device's key as of `at`, that the quote answers `nonce`
    /// for `binding` and is that key's, and that the event log accounts for the quoted PCRs.
    pub fn verify(
        &self,
        nonce: &Nonce,
        binding: &Binding,
        anchors: &TrustAnchors,
        at: UnixTime,
    ) -> Result<VerifiedDevice, Refusal<Device>> {
        let quoted = &self.quote;
        if quoted.nonce != *nonce {
            return Err(Refusal::Nonce);
        }
        if quoted.binding != *binding {
            return Err(Refusal::Binding {
                found: Box::new(quoted.binding.clone()),
                expected: Box::new(binding.clone()),
            });
        }
        let certificate = VerifiedDeviceCertificate::verify(&quoted.certificate, anchors, at)
            .map_err(Refusal::Chain)?;
        let ik = read_key(Device, &quoted.ik_public)?;
        if ik.name() != certificate.claims().ik
            || ik.subject_public_key_info() != certificate.subject_public_key_info()
        {
            return Err(Refusal::KeyMismatch(Device));
        }
        let quote = verify_quote(Device, &quoted.attest, &quoted.signature, &ik)?;
        check_log_digest(Device, &quoted.event_log, &quoted.event_log_digest)?;
        let expected = device_qualifying_data(nonce, binding, &ik.name(), &quoted.event_log_digest);
        check_qualifying_data(Device, &quote, &expected)?;
        Ok(VerifiedDevice {
            nonce: nonce.clone(),
            anchors: *anchors.digest(),
            verified_at: at,
            layer: account_for(Device, &quote, Some(&quoted.event_log), &quoted.pcr_values)?,
            certificate,
        })
    }
}

impl VerifiedDevice {
    pub(super) fn without_log(self) -> VerifiedDevice<TpmReport> {
        VerifiedDevice {
            nonce: self.nonce,
            anchors: self.anchors,
            verified_at: self.verified_at,
            certificate: self.certificate,
            layer: self.layer.into_report(),
        }
    }
}

impl<L> VerifiedDevice<L> {
    /// The challenge that it answers.
    pub fn nonce(&self) -> &Nonce {
        &self.nonce
    }

    /// [Digest](TrustAnchors::digest) of the anchors that the certificate leads to.
    pub fn anchors(&self) -> &Digest32 {
        &self.anchors
    }

    /// The time as of which everything was verified.
    pub fn verified_at(&self) -> UnixTime {
        self.verified_at
    }

    /// The certificate, and what it says.
    pub fn certificate(&self) -> &VerifiedDeviceCertificate {
        &self.certificate
    }

    /// What the device's TPM reported.
    pub fn layer(&self) -> &L {
        &self.layer
    }
}
