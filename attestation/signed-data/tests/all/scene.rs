//! A VM and a device, and what they sign.

use attestation::device::fixture::FixtureDevice;
use attestation::fixture::{
    Host, NOW, TLS, Vm, certification, sign, sign_fixed, signing_area_with,
};
use attestation::{Binding, KeyStatement, Nonce, data_key_qualifying_data};
use cert_chain::template::DATA_KEY_POLICY;
use cert_chain::{Digest32, Issuer, PublicArea, TrustAnchors};
use rcgen::KeyPair;
use signed_data::{
    Certificates, Content, Credentials, EvidenceReference, Label, SignedData, Source, ToBeSigned,
    evidence_nonce,
};

pub(crate) const DATA: &[u8] = b"{\"celsius\":21.5}";

/// A VM or a device whose keys are in software.
pub(crate) trait Signer {
    /// Of what the signer tells.
    const STREAM: &'static str;

    fn anchors(&self) -> TrustAnchors;
    fn source(&self) -> Source;
    fn certificates(&self) -> Certificates;
    /// The identity key, and its public area.
    fn identity(&self) -> (&KeyPair, Vec<u8>);
    /// What it answers to a challenge for signed data.
    fn evidence(&self, nonce: &Nonce) -> Vec<u8>;
    /// The key that signs data.
    fn key(&self) -> &KeyPair;

    fn area(&self) -> Vec<u8> {
        signing_area_with(self.key(), TLS, &DATA_KEY_POLICY)
    }

    fn label(&self, sequence: u64) -> Label {
        Label {
            key: PublicArea::parse(&self.area()).unwrap().name(),
            source: self.source(),
            stream: Self::STREAM.parse().unwrap(),
            sequence,
            time: NOW,
            content_type: "application/json".parse().unwrap(),
            evidence: None,
        }
    }

    fn credentials(&self) -> Credentials {
        self.credentials_of(self.area())
    }

    /// With a key that has this public area, which the identity key certified for data.
    fn credentials_of(&self, area: Vec<u8>) -> Credentials {
        let (identity_key, public) = self.identity();
        Credentials {
            certificates: self.certificates(),
            identity_key: public.into(),
            statement: statement(identity_key, area),
            evidence: None,
        }
    }

    fn signed(&self, label: Label, content: Content) -> SignedData {
        self.signed_with(label, content, self.credentials())
    }

    fn signed_with(&self, label: Label, content: Content, credentials: Credentials) -> SignedData {
        signed_by(self.key(), label, content, credentials)
    }

    fn attached(&self) -> SignedData {
        self.signed(self.label(7), in_full())
    }

    /// With evidence that answers the challenge of these data, taken so many seconds before.
    fn with_evidence(&self, age: u64) -> SignedData {
        self.with_evidence_of(self, in_full(), age)
    }

    /// The same with the data in another form, or with what another one answers.
    fn with_evidence_of(&self, other: &Self, content: Content, age: u64) -> SignedData {
        let mut label = self.label(7);
        let evidence = other.evidence(&nonce_of(&label));
        let credentials = refer_to(&mut label, evidence, age, self.credentials());
        self.signed_with(label, content, credentials)
    }
}

pub(crate) struct Scene {
    pub(crate) host: Host,
    pub(crate) vm: Vm,
    pub(crate) key: KeyPair,
}

pub(crate) struct DeviceScene {
    pub(crate) device: FixtureDevice,
    pub(crate) key: KeyPair,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let host = Host::new("host-1");
        let vm = host.vm();
        let key = KeyPair::generate().unwrap();
        Self { host, vm, key }
    }
}

impl DeviceScene {
    pub(crate) fn under(issuer: Issuer, path: &str) -> Self {
        Self {
            device: FixtureDevice::under(issuer, path),
            key: KeyPair::generate().unwrap(),
        }
    }
}

impl Signer for Scene {
    const STREAM: &'static str = "room-1/temperature";

    fn anchors(&self) -> TrustAnchors {
        self.host.policy(&self.vm).anchors().clone()
    }

    fn source(&self) -> Source {
        Source::Vm(self.vm.vm)
    }

    fn certificates(&self) -> Certificates {
        let chain = [&self.vm.certificate, &self.host.certificate];
        Certificates::Vm(chain.map(|der| der.to_vec().into()))
    }

    fn identity(&self) -> (&KeyPair, Vec<u8>) {
        (&self.vm.key, self.vm.public.clone())
    }

    fn evidence(&self, nonce: &Nonce) -> Vec<u8> {
        self.host
            .evidence(&self.vm, nonce, Binding::SignedData)
            .to_cbor()
    }

    fn key(&self) -> &KeyPair {
        &self.key
    }
}

impl Signer for DeviceScene {
    const STREAM: &'static str = "meter-12/energy";

    fn anchors(&self) -> TrustAnchors {
        self.device.policy().anchors().unwrap().clone()
    }

    fn source(&self) -> Source {
        Source::Device(self.device.name.clone())
    }

    fn certificates(&self) -> Certificates {
        Certificates::Device(self.device.certificate.to_vec().into())
    }

    fn identity(&self) -> (&KeyPair, Vec<u8>) {
        let public = self.device.public.public_area().as_bytes();
        (&self.device.key, public.to_vec())
    }

    fn evidence(&self, nonce: &Nonce) -> Vec<u8> {
        self.device.evidence(nonce, Binding::SignedData).to_cbor()
    }

    fn key(&self) -> &KeyPair {
        &self.key
    }
}

/// [`DATA`] beside the signature, and not by a hash value alone.
pub(crate) fn in_full() -> Content {
    Content::Attached(DATA.to_vec())
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
pub(crate) fn statement(identity_key: &KeyPair, area: Vec<u8>) -> KeyStatement {
    let attest = certification(&area, data_key_qualifying_data().as_bytes());
    KeyStatement {
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
