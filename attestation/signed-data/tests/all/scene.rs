//! A VM whose keys are in software, and what it signs.

use attestation::fixture::{Host, NOW, TLS, Vm, certification, sign, signing_area_with};
use attestation::{Binding, DataKeyStatement, data_key_qualifying_data};
use cert_chain::template::DATA_KEY_POLICY;
use cert_chain::{Digest32, PublicArea, TrustAnchors};
use rcgen::{KeyPair, SigningKey};
use signed_data::{
    Content, Credentials, EvidenceReference, Label, SignedData, ToBeSigned, evidence_nonce,
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
            vm: self.vm.vm,
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
        let attest = certification(&area, data_key_qualifying_data().as_bytes());
        let certificates = [&self.vm.certificate, &self.host.certificate];
        Credentials {
            chain: certificates.map(|der| der.to_vec().into()).to_vec(),
            vik_public: self.vm.public.clone().into(),
            statement: DataKeyStatement {
                public: area.into(),
                signature: sign(&self.vm.key, &attest),
                attest: attest.into(),
            },
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
        let unsigned = ToBeSigned::new(label, content).unwrap();
        let signature = fixed(&self.key, &unsigned_message(&unsigned));
        unsigned.signed(signature, credentials)
    }

    pub(crate) fn attached(&self) -> SignedData {
        self.signed(self.label(7), Content::Attached(DATA.to_vec()))
    }

    /// With evidence that answers the challenge of these data, taken so many seconds before.
    pub(crate) fn with_evidence(&self, age: u64) -> SignedData {
        let mut label = self.label(7);
        let nonce = evidence_nonce(&label.key, label.sequence, &Digest32::of(DATA)).unwrap();
        let evidence = self
            .host
            .evidence(&self.vm, &nonce, Binding::None)
            .to_cbor();
        label.evidence = Some(EvidenceReference {
            digest: Digest32::of(&evidence),
            taken: NOW - age,
        });
        let credentials = Credentials {
            evidence: Some(evidence.into()),
            ..self.credentials()
        };
        self.signed_with(label, Content::Attached(DATA.to_vec()), credentials)
    }
}

/// The Sig_structure, of which the digest is what a TPM signs.
fn unsigned_message(unsigned: &ToBeSigned) -> Vec<u8> {
    let message = unsigned.message();
    assert_eq!(Digest32::of(&message), unsigned.digest());
    message
}

/// Two scalars, of a signature in DER.
pub(crate) fn fixed(key: &KeyPair, message: &[u8]) -> [u8; 64] {
    let der = key.sign(message).unwrap();
    let mut fixed = [0; 64];
    let mut at = 2;
    for scalar in 0..2 {
        let length = usize::from(der[at + 1]);
        let bytes = &der[at + 2..at + 2 + length];
        let bytes = &bytes[length.saturating_sub(32)..];
        let end = 32 * (scalar + 1);
        fixed[end - bytes.len()..end].copy_from_slice(bytes);
        at += 2 + length;
    }
    fixed
}
