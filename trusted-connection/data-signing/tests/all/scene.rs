//! A source whose key is in software, which signs as slowly as a test wants.

use std::collections::VecDeque;

use attestation::fixture::{Host, NOW, TLS, Vm, certification, now, sign, signing_area_with};
use attestation::{Binding, KeyStatement, Nonce, data_key_qualifying_data};
use cert_chain::template::DATA_KEY_POLICY;
use cert_chain::{Digest32, PublicArea, TpmName, TrustAnchors};
use data_signing::stream::collector::Collector;
use data_signing::stream::output::OutputError;
use data_signing::stream::signing::sign_collected;
use data_signing::stream::{Framing, Job, StreamOptions, Summary};
use data_signing::{BoxedError, DataSigner};
use p256::ecdsa::signature::hazmat::PrehashSigner;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::DecodePrivateKey;
use rcgen::KeyPair;
use signed_data::stream::{Batch, BatchInput, StreamVerifier};
use signed_data::{Certificates, Credentials, LabelText, Source};

/// What happens while something is signed.
pub(crate) type Meanwhile<'a> = Box<dyn FnMut() + 'a>;

pub(crate) struct SoftwareSigner<'a> {
    pub(crate) host: Host,
    pub(crate) vm: Vm,
    key: KeyPair,
    sequence: u64,
    time: u64,
    /// Evidence that can be had: each entry is asked for once.
    pub(crate) evidence: VecDeque<bool>,
    pub(crate) meanwhile: Meanwhile<'a>,
}

impl SoftwareSigner<'_> {
    pub(crate) fn new() -> Self {
        let host = Host::new("host-1");
        let vm = host.vm();
        Self {
            host,
            vm,
            key: KeyPair::generate().unwrap(),
            sequence: 6,
            time: NOW,
            evidence: VecDeque::new(),
            meanwhile: Box::new(|| {}),
        }
    }

    pub(crate) fn anchors(&self) -> TrustAnchors {
        self.host.policy(&self.vm).anchors().clone()
    }

    pub(crate) fn area(&self) -> Vec<u8> {
        signing_area_with(&self.key, TLS, &DATA_KEY_POLICY)
    }

    /// The readings of a stream that verifies from its beginning, batch by batch.
    pub(crate) fn verified(&self, bytes: &[u8]) -> Vec<Vec<Vec<u8>>> {
        let anchors = self.anchors();
        let mut verifier = StreamVerifier::new();
        let batches = BatchInput::new(bytes).map(|batch| {
            let verified = verifier.verify(batch.unwrap(), &anchors, now());
            let verified = verified.unwrap();
            verified.readings().iter().map(<[u8]>::to_vec).collect()
        });
        batches.collect()
    }

    /// Signs what is collected.
    pub(crate) fn sign(
        &mut self,
        options: &StreamOptions,
        collector: &Collector,
    ) -> (Summary, Vec<u8>) {
        let mut written = Vec::new();
        let write = |batch: &[u8]| {
            written.extend_from_slice(batch);
            Ok::<_, OutputError>(())
        };
        let (stream, content_type) = (stream_name(), "application/json".parse().unwrap());
        let job = Job {
            options,
            from: None,
            to: None,
            stream: &stream,
            content_type: &content_type,
            evidence: !self.evidence.is_empty(),
        };
        let summary = sign_collected(&job, collector, None, self, write).unwrap();
        (summary, written)
    }
}

pub(crate) fn stream_name() -> LabelText {
    "room-1/temperature".parse().unwrap()
}

pub(crate) fn options(batch_readings: u64) -> StreamOptions {
    StreamOptions {
        stream: true,
        framing: Framing::JsonLines,
        // No batch of these tests waits for its end.
        batch_ms: 3_600_000,
        batch_readings,
        append: false,
        evidence_seconds: 0,
    }
}

/// The batches of a stream.
pub(crate) fn batches(bytes: &[u8]) -> Vec<Batch> {
    BatchInput::new(bytes).map(Result::unwrap).collect()
}

impl DataSigner for SoftwareSigner<'_> {
    fn key(&self) -> TpmName {
        PublicArea::parse(&self.area()).unwrap().name()
    }

    fn source(&self) -> Source {
        Source::Vm(self.vm.vm)
    }

    fn number(&mut self) -> Result<u64, BoxedError> {
        self.sequence += 1;
        Ok(self.sequence)
    }

    fn credentials(&mut self) -> Result<Credentials, BoxedError> {
        let area = self.area();
        let attest = certification(&area, data_key_qualifying_data().as_bytes());
        let chain = [&self.vm.certificate, &self.host.certificate];
        Ok(Credentials {
            certificates: Certificates::Vm(chain.map(|der| der.to_vec().into())),
            identity_key: self.vm.public.clone().into(),
            statement: KeyStatement {
                public: area.into(),
                signature: sign(&self.vm.key, &attest),
                attest: attest.into(),
            },
            evidence: None,
        })
    }

    fn sign(&mut self, digest: &Digest32) -> Result<[u8; 64], BoxedError> {
        (self.meanwhile)();
        let key = SigningKey::from_pkcs8_der(&self.key.serialize_der()).unwrap();
        let signature: Signature = key.sign_prehash(digest.as_bytes()).unwrap();
        Ok(signature.to_bytes().into())
    }

    fn evidence(&mut self, nonce: Nonce) -> Result<Vec<u8>, BoxedError> {
        match self.evidence.pop_front() {
            Some(true) => {
                let evidence = self.host.evidence(&self.vm, &nonce, Binding::SignedData);
                Ok(evidence.to_cbor())
            }
            _ => Err("the host does not answer".into()),
        }
    }

    fn now(&self) -> Result<u64, BoxedError> {
        Ok(self.time)
    }
}
