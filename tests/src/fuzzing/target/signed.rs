//! Data that a VM or a device signed.

use std::sync::LazyLock;

use anyhow::Context;
use attestation::device::fixture::FixtureDevice;
use attestation::fixture::{Host, NOW, TLS, certification, now, sign, signing_area_with};
use attestation::{KeyStatement, Policy, data_key_qualifying_data};
use cert_chain::PublicArea;
use cert_chain::template::DATA_KEY_POLICY;
use p256::ecdsa::Signature;
use rcgen::{KeyPair, SigningKey};
use signed_data::stream::{
    Batch, BatchInput, BatchStatement, Position, ProvenReading, Readings, Span, StreamVerifier,
    UnsignedBatch,
};
use signed_data::{Certificates, Content, Credentials, Label, SignedData, Source, ToBeSigned};

use super::Target;

/// Whole signed data: decoding and verification.
pub(super) const SIGNED_DATA: Target = Target {
    name: "signed-data",
    run: |input| {
        let Ok(data) = SignedData::from_cbor(input) else {
            return;
        };
        assert!(data.to_cbor() == input, "there is one encoding only");
        let Ok(scene) = &*SCENE else { return };
        if data.verify(None, scene.policy.anchors(), now()).is_ok() {
            assert!(
                scene.signed.iter().any(|signed| input == signed),
                "signed data with a changed byte were verified"
            );
        }
    },
    seeds: || match &*SCENE {
        Ok(scene) => Ok(scene.signed.to_vec()),
        Err(error) => anyhow::bail!("{error:#}"),
    },
};

/// A stream of batches, from its beginning: decoding and verification.
pub(super) const STREAM: Target = Target {
    name: "signed-stream",
    run: |input| {
        let Ok(scene) = &*SCENE else { return };
        let anchors = scene.policy.anchors();
        let mut verifier = StreamVerifier::new();
        let mut again = Vec::new();
        for batch in BatchInput::new(input).map_while(Result::ok) {
            again.extend(batch.to_stream());
            assert!(input.starts_with(&again), "there is one encoding only");
            if verifier.verify(batch, anchors, now()).is_err() {
                break;
            }
            assert!(
                scene.stream.starts_with(&again),
                "a batch with a changed byte was verified"
            );
        }
    },
    seeds: || match &*SCENE {
        Ok(scene) => Ok(vec![scene.stream.clone()]),
        Err(error) => anyhow::bail!("{error:#}"),
    },
};

/// A reading with its proof: decoding and verification.
pub(super) const READING: Target = Target {
    name: "proven-reading",
    run: |input| {
        let Ok(reading) = ProvenReading::from_cbor(input) else {
            return;
        };
        assert!(reading.to_cbor() == input, "there is one encoding only");
        let Ok(scene) = &*SCENE else { return };
        if reading.verify(scene.policy.anchors(), now()).is_ok() {
            assert!(input == scene.reading, "a changed reading was verified");
        }
    },
    seeds: || match &*SCENE {
        Ok(scene) => Ok(vec![scene.reading.clone()]),
        Err(error) => anyhow::bail!("{error:#}"),
    },
};

/// A position that a verifier of streams has kept.
pub(super) const POSITION: Target = Target {
    name: "stream-position",
    run: |input| {
        if let Ok(position) = Position::from_cbor(input) {
            assert!(position.to_cbor() == input, "there is one encoding only");
        }
    },
    seeds: || match &*SCENE {
        Ok(scene) => Ok(vec![scene.position.clone()]),
        Err(error) => anyhow::bail!("{error:#}"),
    },
};

struct Scene {
    policy: Policy,
    /// Of a VM, and of a device of the same issuer.
    signed: [Vec<u8>; 2],
    stream: Vec<u8>,
    reading: Vec<u8>,
    position: Vec<u8>,
}

static SCENE: LazyLock<anyhow::Result<Scene>> = LazyLock::new(|| {
    let host = Host::new("host-1");
    let vm = host.vm();
    let device = FixtureDevice::under(host.issuer_again(), "plant-7/meter-12");
    let device = Signer::certified(
        Source::Device(device.name.clone()),
        Certificates::Device(device.certificate.to_vec().into()),
        device.public.public_area().as_bytes(),
        &device.key,
    )?;
    let chain = [&vm.certificate, &host.certificate].map(|der| der.to_vec().into());
    let signer = Signer::certified(
        Source::Vm(vm.vm),
        Certificates::Vm(chain),
        &vm.public,
        &vm.key,
    )?;
    let signed = [signer.signed()?, device.signed()?];
    let (mut label, credentials) = (signer.label.clone(), signer.credentials.clone());
    let mut after = None;
    let mut batches = Vec::new();
    for texts in [["a", "bc"], ["", "d"]] {
        let readings = texts.map(|text| text.as_bytes().to_vec());
        let readings = Readings::new(readings.to_vec())?;
        let content_type = label.content_type.clone();
        let span = Span { from: 1, to: 2 };
        let statement = BatchStatement::over(&readings, &label, after, content_type, span);
        let unsigned = UnsignedBatch::new(label.clone(), statement, readings)?;
        after = Some(unsigned.link());
        let signature = signer.sign(&unsigned.message())?;
        let credentials = batches.is_empty().then(|| credentials.clone());
        batches.push(unsigned.signed(signature, credentials));
        label.sequence = label.sequence.saturating_add(1);
    }
    let position = Position {
        link: after.context("batches")?,
        sequence: label.sequence,
        key: label.key.clone(),
        stream: label.stream.clone(),
        credentials: credentials.clone(),
    };
    let first = batches.first().context("batches")?;
    let reading = first.take(1, credentials.clone()).context("a reading")?;
    let stream = batches.iter().flat_map(Batch::to_stream).collect();
    Ok(Scene {
        policy: host.policy(&vm),
        signed,
        stream,
        reading: reading.to_cbor(),
        position: position.to_cbor(),
    })
});

/// A key for data, and how it is known.
struct Signer {
    key: KeyPair,
    label: Label,
    credentials: Credentials,
}

impl Signer {
    /// A key that an identity key has certified.
    fn certified(
        source: Source,
        certificates: Certificates,
        identity_key: &[u8],
        identity: &KeyPair,
    ) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let area = signing_area_with(&key, TLS, &DATA_KEY_POLICY);
        let attest = certification(&area, data_key_qualifying_data().as_bytes());
        let label = Label {
            key: PublicArea::parse(&area)?.name(),
            source,
            stream: "room-1/temperature".parse()?,
            sequence: 7,
            time: NOW,
            content_type: "application/json".parse()?,
            evidence: None,
        };
        let credentials = Credentials {
            certificates,
            identity_key: identity_key.to_vec().into(),
            statement: KeyStatement {
                public: area.into(),
                signature: sign(identity, &attest),
                attest: attest.into(),
            },
            evidence: None,
        };
        Ok(Self {
            key,
            label,
            credentials,
        })
    }

    fn sign(&self, message: &[u8]) -> anyhow::Result<[u8; 64]> {
        let signature = Signature::from_der(&self.key.sign(message)?)?;
        Ok(signature.to_bytes().into())
    }

    fn signed(&self) -> anyhow::Result<Vec<u8>> {
        let unsigned = ToBeSigned::new(self.label.clone(), Content::Attached(b"21.5".to_vec()))?;
        let signature = self.sign(&unsigned.message())?;
        Ok(unsigned
            .signed(signature, self.credentials.clone())
            .to_cbor())
    }
}
