//! Whether a person confirmed what a service asked.

use attestation::Nonce;
use attestation::certification::CertificationError;
use cert_chain::attestation_key::AttestationKeyError;
use cert_chain::public_area::PublicAreaError;
use cert_chain::{
    AttestationKey, ChainError, ConfirmationKey, DeviceName, PublicArea, TpmName,
    VerifiedDeviceCertificate,
};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use rustls_pki_types::UnixTime;

use crate::policy::{ConfirmationPolicy, Demand};
use crate::rendering::{Rendering, SizeRefused, TerminalSize};
use crate::statement::{Confirmation, Envelope, ServiceName, Shown};
use crate::text::ConfirmableText;

/// What the service asked.
#[derive(Clone, Debug)]
pub struct Expected<'a> {
    /// The service itself.
    pub service: &'a ServiceName,
    /// The nonce that it drew for this request. It must accept each once.
    pub nonce: &'a Nonce,
    /// The text.
    pub text: &'a ConfirmableText,
}

/// A person with the PIN of a registered key had exactly the expected text shown, and confirmed it.
#[derive(Clone, Debug)]
pub struct VerifiedConfirmation {
    device: DeviceName,
    key: TpmName,
    shown: Shown,
}

/// Why a confirmation is worth nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfirmationRefused {
    /// There is none, and one is demanded.
    #[error("there is no confirmation, and the policy demands one")]
    Missing,
    /// Something else.
    #[error("this is no confirmation, or not in the one form that it has")]
    Malformed,
    /// The device's certificate.
    #[error("the device's certificate is not accepted")]
    Certificate(#[source] ChainError),
    /// Another device.
    #[error("{0} is not among the policy's devices")]
    Device(Box<DeviceName>),
    /// The identity key cannot be read.
    #[error("the device's identity key cannot be read")]
    IdentityKey(#[source] PublicAreaError),
    /// The identity key is none.
    #[error("the device's identity key is none")]
    NoIdentityKey(#[source] AttestationKeyError),
    /// The identity key is not the certified one.
    #[error("the identity key is not the one that the device's certificate names")]
    OtherIdentityKey,
    /// The confirmation key.
    #[error("the key is none that a PIN alone opens, in the device's TPM")]
    Key(#[source] CertificationError),
    /// A key that nobody registered.
    #[error("the key {0} is not among the policy's: nobody registered it")]
    UnknownKey(TpmName),
    /// The signature.
    #[error("the signature is not that of the confirmation key over this statement")]
    Signature,
    /// Another challenge.
    #[error("it answers another nonce")]
    Nonce,
    /// For somebody else.
    #[error("it was shown as a request of `{found}`, not of `{expected}`")]
    Service {
        /// Who was shown, escaped.
        found: String,
        /// Who asks.
        expected: String,
    },
    /// No terminal that a text is shown on.
    #[error("no text is shown on such a terminal")]
    Size(#[source] SizeRefused),
    /// Another text.
    #[error(
        "what was shown on {columns} columns and {rows} rows is not what this text looks like there"
    )]
    Text {
        /// Columns of the terminal.
        columns: u16,
        /// Rows of the terminal.
        rows: u16,
    },
    /// Out of time.
    #[error(
        "by its device's clock it was confirmed at {at} (seconds since 1970): too old, or in the future"
    )]
    Time {
        /// When.
        at: u64,
    },
}

/// How far a device's clock may be ahead, in seconds.
const AHEAD: u64 = 60;

/// Judges what came with an order: a confirmation, or none. `Ok(None)` says that the policy does without and
/// there was none.
pub fn judge(
    confirmation: Option<&[u8]>,
    expected: &Expected<'_>,
    policy: &ConfirmationPolicy,
    at: UnixTime,
) -> Result<Option<VerifiedConfirmation>, ConfirmationRefused> {
    match (confirmation, policy.demand) {
        (Some(bytes), _) => Confirmation::from_cbor(bytes)
            .ok_or(ConfirmationRefused::Malformed)?
            .verify(expected, policy, at)
            .map(Some),
        (None, Demand::Optional) => Ok(None),
        (None, Demand::Required) => Err(ConfirmationRefused::Missing),
    }
}

impl Confirmation {
    /// Verifies it as of `at`: device, key, signature, and that it is what was asked.
    pub fn verify(
        &self,
        expected: &Expected<'_>,
        policy: &ConfirmationPolicy,
        at: UnixTime,
    ) -> Result<VerifiedConfirmation, ConfirmationRefused> {
        use ConfirmationRefused as Refused;
        let certificate = VerifiedDeviceCertificate::verify(&self.certificate, &policy.anchors, at)
            .map_err(Refused::Certificate)?;
        let device = certificate.device().clone();
        if !policy.devices.contains(&device.to_string()) {
            return Err(Refused::Device(Box::new(device)));
        }
        let identity = PublicArea::parse(&self.identity_key).map_err(Refused::IdentityKey)?;
        let identity = AttestationKey::try_from(identity).map_err(Refused::NoIdentityKey)?;
        if identity.name() != certificate.claims().ik
            || identity.subject_public_key_info() != certificate.subject_public_key_info()
        {
            return Err(Refused::OtherIdentityKey);
        }
        let key: ConfirmationKey = self.key.verify(&identity).map_err(Refused::Key)?;
        if !policy.keys.contains(&key.name().to_string()) {
            return Err(Refused::UnknownKey(key.name()));
        }
        let envelope = Envelope::read(&self.signed).ok_or(Refused::Malformed)?;
        UnparsedPublicKey::new(
            &ECDSA_P256_SHA256_FIXED,
            key.public_area().public_key_bytes(),
        )
        .verify(&envelope.sig_structure(), &envelope.signature)
        .map_err(|_| Refused::Signature)?;
        // Read only now that it is known who wrote it.
        let shown = Shown::read(&envelope.payload).ok_or(Refused::Malformed)?;
        shown.check(expected)?;
        let oldest = at.as_secs().saturating_sub(policy.max_age.as_secs());
        if !(oldest..=at.as_secs().saturating_add(AHEAD)).contains(&shown.time) {
            return Err(Refused::Time { at: shown.time });
        }
        Ok(VerifiedConfirmation {
            device,
            key: key.name(),
            shown,
        })
    }
}

impl Shown {
    fn check(&self, expected: &Expected<'_>) -> Result<(), ConfirmationRefused> {
        use ConfirmationRefused as Refused;
        if self.service != expected.service.as_str() {
            return Err(Refused::Service {
                found: printable::Printable(&self.service).to_string(),
                expected: expected.service.to_string(),
            });
        }
        if self.nonce != *expected.nonce {
            return Err(Refused::Nonce);
        }
        let size = TerminalSize::new(self.columns, self.rows).map_err(Refused::Size)?;
        if Rendering::of(expected.text, size).lines() != self.lines {
            return Err(Refused::Text {
                columns: self.columns,
                rows: self.rows,
            });
        }
        Ok(())
    }
}

impl VerifiedConfirmation {
    /// The device.
    pub fn device(&self) -> &DeviceName {
        &self.device
    }

    /// The key, which stands for the person who set its PIN.
    pub fn key(&self) -> &TpmName {
        &self.key
    }

    /// The lines that were shown.
    pub fn lines(&self) -> &[String] {
        &self.shown.lines
    }

    /// When, in seconds since 1970 by the device's clock.
    pub fn time(&self) -> u64 {
        self.shown.time
    }
}
