//! A device whose TPM is a key in software, beside [`crate::fixture`].

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::Duration;

use cert_chain::profile::DeviceSpec;
use cert_chain::{
    AttestationKey, DeviceName, Digest32, HashAlgorithm, Issuer, PublicArea, Validity,
};
use rcgen::KeyPair;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::{DeviceEvidence, DevicePolicy, DeviceQuote};
use crate::binding::Binding;
use crate::event_log::EventLog;
use crate::fixture::{ATTESTATION, event_log, now, pcrs_of, quote, sign, signing_area};
use crate::nonce::Nonce;
use crate::policy::PolicyError;
use crate::qualifying::device_qualifying_data;
use crate::reference::{BOOT_PCRS, reference_values};

/// A device and its issuer.
pub struct FixtureDevice {
    /// The device's name.
    pub name: DeviceName,
    /// The identity issuer.
    pub issuer: Issuer,
    /// The private part of its identity key.
    pub key: KeyPair,
    /// The identity key as its TPM marshals it.
    pub public: AttestationKey,
    /// The identity key's certificate.
    pub certificate: CertificateDer<'static>,
    /// The device's event log.
    pub log: Vec<u8>,
    /// The PCRs that the device quotes.
    pub quoted: Vec<u8>,
}

impl FixtureDevice {
    /// The device `path` in the domain of an issuer.
    pub fn under(issuer: Issuer, path: &str) -> Self {
        Self::under_at(now(), issuer, path)
    }

    /// The same at another time: for what is judged by a clock.
    pub fn under_at(at: UnixTime, issuer: Issuer, path: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let area = PublicArea::parse(&signing_area(&key, ATTESTATION)).unwrap();
        let public = AttestationKey::try_from(area).unwrap();
        let name = DeviceName::new(path, issuer.domain()).unwrap();
        let certificate = issuer
            .certify_device(&DeviceSpec {
                device: name.clone(),
                ik: public.clone(),
                ek: public.name(),
                validity: Validity::starting(at, Duration::from_secs(366 * 86400)).unwrap(),
            })
            .unwrap();
        Self {
            name,
            issuer,
            key,
            public,
            certificate,
            log: event_log(&[
                (0, 0x8000_0008, b"device firmware"),
                (4, 0x8000_0003, b"device boot loader"),
            ]),
            quoted: BOOT_PCRS.into(),
        }
    }

    /// The device's evidence for a challenge.
    pub fn evidence(&self, nonce: &Nonce, binding: Binding) -> DeviceEvidence {
        let event_log_digest = Digest32::of(&self.log);
        let name = self.public.name();
        let qualifying = device_qualifying_data(nonce, &binding, &name, &event_log_digest);
        self.evidence_over(nonce, binding, &qualifying)
    }

    /// The same with a quote over other qualifying data.
    pub fn evidence_over(
        &self,
        nonce: &Nonce,
        binding: Binding,
        qualifying: &Digest32,
    ) -> DeviceEvidence {
        let pcrs = pcrs_of(HashAlgorithm::Sha256, &self.log, &self.quoted);
        let attest = quote(&pcrs, qualifying);
        DeviceEvidence::new(DeviceQuote {
            nonce: nonce.clone(),
            binding,
            signature: sign(&self.key, &attest),
            attest: attest.into(),
            ik_public: self.public.public_area().as_bytes().to_vec().into(),
            event_log_digest: Digest32::of(&self.log),
            event_log: self.log.clone().into(),
            certificate: self.certificate.to_vec().into(),
            pcr_values: pcrs.to_bytes().into(),
        })
    }

    /// A policy that accepts exactly this device as it booted.
    pub fn policy(&self) -> DevicePolicy {
        self.read_policy(&self.policy_text()).unwrap()
    }

    /// Reads a policy whose roots are this device's issuer.
    pub fn read_policy(&self, text: &str) -> Result<DevicePolicy, PolicyError> {
        DevicePolicy::parse(text, |_| Ok(self.issuer.certificate_pem()))
    }

    /// The text of [`FixtureDevice::policy`].
    pub fn policy_text(&self) -> String {
        let log = EventLog::parse(&self.log).unwrap();
        let reference = reference_values(&log, HashAlgorithm::Sha256, BOOT_PCRS).unwrap();
        format!(
            "[trust]\nroots = \"roots.pem\"\n\n[expect]\ndevices = [\"{}\"]\n\n{}",
            self.name,
            reference.to_toml("device")
        )
    }
}
