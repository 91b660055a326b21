//! A device whose keys are in software, and what it signs.

use attestation::device::fixture::FixtureDevice;
use attestation::fixture::{Host, NOW, TLS, certification, sign, signing_area_with};
use attestation::{KeyStatement, Nonce, confirmation_key_qualifying_data};
use cert_chain::{ConfirmationKey, PublicArea};
use confirmation::{
    ConfirmableText, Confirmation, ConfirmationPolicy, Expected, PolicyError, Rendering,
    ServiceName, Shown, TerminalSize,
};
use coset::{CoseSign1, CoseSign1Builder, TaggedCborSerializable};
use p256::ecdsa::Signature;
use rcgen::{KeyPair, SigningKey};

pub(crate) const TEXT: &str = "Pay 100 € to ACME GmbH";

pub(crate) struct Scene {
    pub(crate) device: FixtureDevice,
    /// Of the same issuer.
    pub(crate) host: Host,
    pub(crate) key: KeyPair,
    pub(crate) service: ServiceName,
    pub(crate) nonce: Nonce,
    pub(crate) text: ConfirmableText,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let host = Host::new("host-1");
        Self {
            device: FixtureDevice::under(host.issuer_again(), "desk-1"),
            host,
            key: KeyPair::generate().unwrap(),
            service: "shop.example".parse().unwrap(),
            nonce: Nonce::new([7; 32]).unwrap(),
            text: ConfirmableText::new(TEXT).unwrap(),
        }
    }

    pub(crate) fn policy(&self) -> ConfirmationPolicy {
        self.policy_with("").unwrap()
    }

    /// The policy with more behind it.
    pub(crate) fn policy_with(&self, more: &str) -> Result<ConfirmationPolicy, PolicyError> {
        let key = PublicArea::parse(&self.area()).unwrap().name();
        let text = format!(
            "demand = \"required\"\nroots = \"roots.pem\"\ndevices = [\"{}\"]\nkeys = [\"{key}\"]\n\
             max_age_s = 300\n{more}",
            self.device.name
        );
        let roots = self.device.issuer.certificate_pem();
        ConfirmationPolicy::parse(&text, |_| Ok(roots))
    }

    pub(crate) fn expected(&self) -> Expected<'_> {
        Expected {
            service: &self.service,
            nonce: &self.nonce,
            text: &self.text,
        }
    }

    pub(crate) fn shown(&self) -> Shown {
        let size = TerminalSize::new(80, 24).unwrap();
        let rendering = Rendering::of(&self.text, size);
        Shown::new(&self.service, &self.nonce, &rendering, NOW)
    }

    /// A confirmation with this COSE_Sign1.
    pub(crate) fn confirmation(&self, signed: Vec<u8>) -> Vec<u8> {
        let area = self.area();
        let said = confirmation_key_qualifying_data();
        let attest = certification(&area, said.as_bytes());
        let confirmation = Confirmation {
            signed: signed.into(),
            key: KeyStatement {
                public: area.into(),
                signature: sign(&self.device.key, &attest),
                attest: attest.into(),
            },
            identity_key: self.device.public.public_area().as_bytes().to_vec().into(),
            certificate: self.device.certificate.to_vec().into(),
        };
        confirmation.to_cbor()
    }

    pub(crate) fn signed(&self) -> Vec<u8> {
        let shown = self.shown();
        // What a TPM signs is the digest of this.
        let read = CoseSign1::from_tagged_slice(&shown.signed(&[0; 64])).unwrap();
        let signature = self.sign(&read.tbs_data(&[]));
        shown.signed(&signature)
    }

    /// This payload under the headers of a confirmation, signed by the right key with another implementation.
    pub(crate) fn signed_payload(&self, payload: Vec<u8>) -> Vec<u8> {
        let template = CoseSign1::from_tagged_slice(&self.signed()).unwrap();
        CoseSign1Builder::new()
            .protected(template.protected.header)
            .payload(payload)
            .create_signature(&[], |message| self.sign(message).to_vec())
            .build()
            .to_tagged_vec()
            .unwrap()
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        let der = self.key.sign(message).unwrap();
        Signature::from_der(&der).unwrap().to_bytes().into()
    }

    fn area(&self) -> Vec<u8> {
        signing_area_with(&self.key, TLS, ConfirmationKey::policy().as_bytes())
    }
}
