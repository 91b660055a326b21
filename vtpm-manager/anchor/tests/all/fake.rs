//! Test double: a hardware root that answers as it is told.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use cert_chain::template::{EccTemplate, Purpose, RESIDENT};
use cert_chain::{
    AttestationKey, CredentialBlob, Digest32, EndorsementKey, HashAlgorithm, PcrSelection,
    PcrValues, PublicArea, TpmName,
};
use rcgen::PublicKeyData;
use tpm_wire::{Operation, ResponseCode};
use zeroize::Zeroizing;

use trust_anchor::HardwareError;
use trust_anchor::hardware::{
    Authorization, CertifiedEk, HardwareRoot, SealedBlob, SignedQuote, SrkStatement,
};

/// What the fake does, shared with the test.
#[derive(Clone)]
pub(crate) struct Fake(Arc<Mutex<Script>>);

pub(crate) struct Script {
    /// Errors that the next authorized commands answer with, one each.
    pub(crate) codes: VecDeque<u32>,
    /// The PCRs.
    pub(crate) pcrs: PcrValues,
    /// What the PCRs become during the next authorized command.
    pub(crate) pcrs_then: Option<PcrValues>,
    /// What was done, by name.
    pub(crate) done: Vec<&'static str>,
    /// Connections made.
    pub(crate) connections: u32,
    /// The storage root key's name.
    pub(crate) srk: TpmName,
    /// The host IK.
    pub(crate) ik: rcgen::KeyPair,
    /// The next authorized command panics.
    pub(crate) panics: bool,
    /// Each authorized command says that it has begun, and waits for a word.
    pub(crate) gate: Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>,
}

impl Fake {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self(Arc::new(Mutex::new(Script {
            codes: VecDeque::new(),
            pcrs: pcr_values(HashAlgorithm::Sha256, 0..8)?,
            pcrs_then: None,
            done: Vec::new(),
            connections: 0,
            srk: format!("000b{}", "5".repeat(64)).parse()?,
            ik: rcgen::KeyPair::generate()?,
            panics: false,
            gate: None,
        }))))
    }

    pub(crate) fn script(&self) -> MutexGuard<'_, Script> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many hold it.
    pub(crate) fn holders(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// An authorized command: waits at the gate, then answers as scripted.
    fn act(&self, name: &'static str) -> Result<(), HardwareError> {
        let gate = self.script().gate.take();
        if let Some((begun, go_on)) = gate {
            let _ = begun.send(());
            let _ = go_on.recv();
        }
        let mut script = self.script();
        assert!(!script.panics, "a panic that the test asked for");
        script.done.push(name);
        if let Some(pcrs) = script.pcrs_then.take() {
            script.pcrs = pcrs;
        }
        match script.codes.pop_front() {
            None => Ok(()),
            Some(code) => Err(HardwareError::Tpm {
                operation: Operation(name),
                code: ResponseCode::new(code),
            }),
        }
    }
}

impl HardwareRoot for Fake {
    fn active_banks(&mut self) -> Result<Vec<HashAlgorithm>, HardwareError> {
        Ok(vec![self.script().pcrs.bank()])
    }

    fn pcr_values(
        &mut self,
        _: HashAlgorithm,
        _: PcrSelection,
    ) -> Result<PcrValues, HardwareError> {
        Ok(self.script().pcrs.clone())
    }

    fn audited_pcr_values(
        &mut self,
        bank: HashAlgorithm,
        pcrs: PcrSelection,
    ) -> Result<PcrValues, HardwareError> {
        self.pcr_values(bank, pcrs)
    }

    /// A fake's keys sign nothing.
    fn certify_storage_root_key(
        &mut self,
        nonce: &Digest32,
        _: &Authorization<'_>,
    ) -> Result<SrkStatement, HardwareError> {
        self.act("certify")?;
        Ok(SrkStatement {
            attest: nonce.as_bytes().to_vec(),
            signature: Vec::new(),
        })
    }

    fn storage_root_key(&mut self, _: Option<&TpmName>) -> Result<TpmName, HardwareError> {
        Ok(self.script().srk.clone())
    }

    fn endorsement_key(&mut self) -> Result<CertifiedEk, HardwareError> {
        let area = public_area(
            RESIDENT
                .with(cert_chain::ObjectAttributes::RESTRICTED)
                .with(cert_chain::ObjectAttributes::DECRYPT),
            &[7; 32],
            Purpose::Storage,
            &rcgen::KeyPair::generate().map_err(|_| BROKEN)?,
        )?;
        Ok(CertifiedEk {
            key: EndorsementKey::try_from(area).map_err(|_| BROKEN)?,
            certificate: b"certificate".to_vec(),
            chain: Vec::new(),
        })
    }

    fn identity_key(&mut self, policy: &Digest32) -> Result<AttestationKey, HardwareError> {
        let attributes = RESIDENT
            .with(cert_chain::ObjectAttributes::RESTRICTED)
            .with(cert_chain::ObjectAttributes::SIGN);
        let area = public_area(
            attributes,
            policy.as_bytes(),
            Purpose::Signing,
            &self.script().ik,
        )?;
        AttestationKey::try_from(area).map_err(|_| BROKEN)
    }

    fn seal(&mut self, secret: &[u8], _: &Digest32) -> Result<SealedBlob, HardwareError> {
        self.act("seal")?;
        Ok(SealedBlob {
            public: Vec::new(),
            private: secret.iter().map(|byte| !byte).collect(),
        })
    }

    fn unseal(
        &mut self,
        blob: &SealedBlob,
        _: &Authorization<'_>,
    ) -> Result<Zeroizing<Vec<u8>>, HardwareError> {
        self.act("unseal")?;
        Ok(Zeroizing::new(
            blob.private.iter().map(|byte| !byte).collect(),
        ))
    }

    fn activate_credential(
        &mut self,
        credential: &CredentialBlob,
    ) -> Result<Zeroizing<Vec<u8>>, HardwareError> {
        self.act("activate")?;
        Ok(Zeroizing::new(credential.id_object.clone()))
    }

    fn quote(
        &mut self,
        qualifying_data: &Digest32,
        _: HashAlgorithm,
        _: PcrSelection,
        _: &Authorization<'_>,
    ) -> Result<SignedQuote, HardwareError> {
        self.act("quote")?;
        Ok(SignedQuote {
            attest: qualifying_data.as_bytes().to_vec(),
            signature: Vec::new(),
            pcrs: self.script().pcrs.clone(),
        })
    }

    fn sign(&mut self, message: &[u8], _: &Authorization<'_>) -> Result<Vec<u8>, HardwareError> {
        self.act("sign")?;
        rcgen::SigningKey::sign(&self.script().ik, message).map_err(|_| BROKEN)
    }
}

const BROKEN: HardwareError = HardwareError::Response {
    operation: Operation("fake"),
    what: "a broken fake",
};

/// Values of these PCRs after some boot.
pub(crate) fn pcr_values(
    bank: HashAlgorithm,
    pcrs: impl IntoIterator<Item = u8>,
) -> anyhow::Result<PcrValues> {
    let mut values = PcrValues::new(bank);
    for pcr in pcrs {
        values.insert(pcr, bank.hash(&[&[pcr]]))?;
    }
    Ok(values)
}

fn public_area(
    attributes: cert_chain::ObjectAttributes,
    auth_policy: &[u8],
    purpose: Purpose,
    key: &rcgen::KeyPair,
) -> Result<PublicArea, HardwareError> {
    let point = key.der_bytes().get(1..).unwrap_or_default();
    let (x, y) = point.split_at_checked(32).ok_or(BROKEN)?;
    let bytes = EccTemplate {
        attributes,
        auth_policy,
        purpose,
        unique: [x, y],
    }
    .to_bytes();
    PublicArea::parse(&bytes).map_err(|_| BROKEN)
}
