//! A VM and a device whose keys are in software, and what they sign.

use attestation::device::fixture::FixtureDevice;
use attestation::fixture::{
    Host, NOW, TLS, Vm, certification, sign, sign_fixed, signing_area_with,
};
use attestation::{Binding, DataKeyStatement, Nonce, data_key_qualifying_data};
use cert_chain::template::DATA_KEY_POLICY;
use cert_chain::{Digest32, Issuer, PublicArea, TrustAnchors};
use rcgen::KeyPair;
use signed_data::{
    Certificates, Content, Credentials, EvidenceReference, Label, SignedData, Source, ToBeSigned,
    evidence_nonce,
};

pub(crate) const DATA: &[u8] = b"{\"celsius\":21.5}";

pub(crate) struct Scene {
    pub(crate) host: Host,
    pub(crate) vm: Vm,
    pub(crate) key: KeyPair,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let host = Host::new("host-1");
        let vm = host.vm();
        let key = KeyPair::generate().unwrap();
        Self { host, vm, key }
    }

    pub(crate) fn anchors(&self) -> TrustAnchors {
        self.host.policy(&self.vm).anchors().clone()
    }

    pub(crate) fn area(&self) -> Vec<u8> {
        signing_area_with(&self.key, TLS, &DATA_KEY_POLICY)
    }

    pub(crate) fn label(&self, sequence: u64) -> Label {
        Label {
            key: PublicArea::parse(&self.area()).unwrap().name(),
            source: Source::Vm(self.vm.vm),
            stream: "room-1/temperature".parse().unwrap(),
            sequence,
            time: NOW,
            content_type: "application/json".parse().unwrap(),
            evidence: None,
        }
    }

    pub(crate) fn credentials(&self) -> Credentials {
        self.credentials_of(self.area())
    }

    /// With a key that has this public area, which the vIK certified for data.
    pub(crate) fn credentials_of(&self, area: Vec<u8>) -> Credentials {
        let chain = [&self.vm.certificate, &self.host.certificate];
        Credentials {
            certificates: Certificates::Vm(chain.map(|der| der.to_vec().into())),
            identity_key: self.vm.public.clone().into(),
            statement: statement(&self.vm.key, area),
            evidence: None,
        }
    }

    pub(crate) fn signed(&self, label: Label, content: Content) -> SignedData {
        self.signed_with(label, content, self.credentials())
    }

    pub(crate) fn signed_with(
        &self,
        label: Label,
        content: Content,
        credentials: Credentials,
    ) -> SignedData {
        signed_by(&self.key, label, content, credentials)
    }

    pub(crate) fn attached(&self) -> SignedData {
        self.signed(self.label(7), Content::Attached(DATA.to_vec()))
    }

    /// With evidence that answers the challenge of these data, taken so many seconds before.
    pub(crate) fn with_evidence(&self, age: u64) -> SignedData {
        self.content_with_evidence(Content::Attached(DATA.to_vec()), age)
    }

    /// The same with the data in another form.
    pub(crate) fn content_with_evidence(&self, content: Content, age: u64) -> SignedData {
        let mut label = self.label(7);
        let evidence = self
            .host
            .evidence(&self.vm, &nonce_of(&label), Binding::SignedData);
        let credentials = refer_to(&mut label, evidence.to_cbor(), age, self.credentials());
        self.signed_with(label, content, credentials)
    }
}

/// A device whose keys are in software, and what it signs.
pub(crate) struct DeviceScene {
    pub(crate) device: FixtureDevice,
    pub(crate) key: KeyPair,
}

impl DeviceScene {
    pub(crate) fn under(issuer: Issuer, path: &str) -> Self {
        Self {
            device: FixtureDevice::under(issuer, path),
            key: KeyPair::generate().unwrap(),
        }
    }

    pub(crate) fn anchors(&self) -> TrustAnchors {
        self.device.policy().anchors().unwrap().clone()
    }

    pub(crate) fn area(&self) -> Vec<u8> {
        signing_area_with(&self.key, TLS, &DATA_KEY_POLICY)
    }

    pub(crate) fn label(&self, sequence: u64) -> Label {
        Label {
            key: PublicArea::parse(&self.area()).unwrap().name(),
            source: Source::Device(self.device.name.clone()),
            stream: "meter-12/energy".parse().unwrap(),
            sequence,
            time: NOW,
            content_type: "application/json".parse().unwrap(),
            evidence: None,
        }
    }

    pub(crate) fn credentials(&self) -> Credentials {
        self.credentials_of(self.area())
    }

    /// With a key that has this public area, which the device's identity key certified for data.
    pub(crate) fn credentials_of(&self, area: Vec<u8>) -> Credentials {
        let identity_key = self.device.public.public_area().as_bytes();
        Credentials {
            certificates: Certificates::Device(self.device.certificate.to_vec().into()),
            identity_key: identity_key.to_vec().into(),
            statement: statement(&self.device.key, area),
            evidence: None,
        }
    }

    pub(crate) fn signed(&self, label: Label, credentials: Credentials) -> SignedData {
        signed_by(
            &self.key,
            label,
            Content::Attached(DATA.to_vec()),
            credentials,
        )
    }

    pub(crate) fn attached(&self) -> SignedData {
        self.signed(self.label(7), self.credentials())
    }

    /// With evidence that answers the challenge of these data, taken so many seconds before.
    pub(crate) fn with_evidence(&self, age: u64) -> SignedData {
        self.with_evidence_of(self, age)
    }

    /// The same with what another device answers.
    pub(crate) fn with_evidence_of(&self, other: &Self, age: u64) -> SignedData {
        let mut label = self.label(7);
        let evidence = (other.device).evidence(&nonce_of(&label), Binding::SignedData);
        let credentials = refer_to(&mut label, evidence.to_cbor(), age, self.credentials());
        self.signed(label, credentials)
    }
}

/// The challenge of [`DATA`] under this label.
pub(crate) fn nonce_of(label: &Label) -> Nonce {
    evidence_nonce(&label.key, label.sequence, &Digest32::of(DATA)).unwrap()
}

/// Label and credentials with this evidence, taken so many seconds before.
pub(crate) fn refer_to(
    label: &mut Label,
    evidence: Vec<u8>,
    age: u64,
    credentials: Credentials,
) -> Credentials {
    label.evidence = Some(EvidenceReference {
        digest: Digest32::of(&evidence),
        taken: NOW - age,
    });
    Credentials {
        evidence: Some(evidence.into()),
        ..credentials
    }
}

/// What an identity key says about a key for data.
pub(crate) fn statement(identity_key: &KeyPair, area: Vec<u8>) -> DataKeyStatement {
    let attest = certification(&area, data_key_qualifying_data().as_bytes());
    DataKeyStatement {
        public: area.into(),
        signature: sign(identity_key, &attest),
        attest: attest.into(),
    }
}

pub(crate) fn signed_by(
    key: &KeyPair,
    label: Label,
    content: Content,
    credentials: Credentials,
) -> SignedData {
    let unsigned = ToBeSigned::new(label, content).unwrap();
    let signature = sign_fixed(key, &unsigned_message(&unsigned));
    unsigned.signed(signature, credentials)
}

/// The Sig_structure, of which the digest is what a TPM signs.
fn unsigned_message(unsigned: &ToBeSigned) -> Vec<u8> {
    let message = unsigned.message();
    assert_eq!(Digest32::of(&message), unsigned.digest());
    message
}
