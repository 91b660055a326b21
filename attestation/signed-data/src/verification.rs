//! From signed data to verified data.

use attestation::{Evidence, Purpose, VerifiedEvidence};
use cert_chain::{
    AttestationKey, DataKey, Digest32, PublicArea, TrustAnchors, VerifiedVikChain, VikChain,
};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use rustls_pki_types::UnixTime;

use crate::cose::{Content, SignedData};
use crate::credentials::Credentials;
use crate::label::{EvidenceReference, Label, evidence_nonce};
use crate::refusal::DataRefusal;

/// Data that the TPM of the VM in the label signed, with a key for data.
///
/// That the label's number, time and stream are right is the word of whoever rules that VM: the evidence
/// says what that is.
#[derive(Clone, Debug)]
pub struct VerifiedData {
    pub(crate) label: Label,
    pub(crate) content: Content,
    pub(crate) chain: VerifiedVikChain,
    pub(crate) evidence: Option<VerifiedEvidence>,
    pub(crate) anchors: Digest32,
    pub(crate) verified_at: UnixTime,
}

/// Clocks differ by so many seconds at most.
pub const CLOCK_SKEW: u64 = 300;

impl SignedData {
    /// Verifies that the certificates lead to `anchors` as of `at`, that the vIK certified the key for data,
    /// and that the key signed this label and these data; and the evidence as an answer to the challenge that
    /// belongs to them. `data` is the SHA-256 value of the data, which has to be given unless they travel
    /// with the signature.
    pub fn verify(
        self,
        data: Option<&Digest32>,
        anchors: &TrustAnchors,
        at: UnixTime,
    ) -> Result<VerifiedData, DataRefusal> {
        self.check_data(data)?;
        let late = self.label.time.saturating_sub(at.as_secs());
        if late > CLOCK_SKEW {
            return Err(DataRefusal::Future(late));
        }
        let evidence = self.read_evidence()?;
        // Revocation lists that the evidence carries count wherever they come from.
        let anchors = match &evidence {
            Some(evidence) => anchors.with_carried(evidence.crls.iter()),
            None => anchors.clone(),
        };
        let (chain, key) = verify_key(&self.credentials, &anchors, at)?;
        if key.name() != self.label.key {
            return Err(DataRefusal::KeyMismatch);
        }
        let point = key.public_area().public_key_bytes();
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
            .verify(&self.sig_structure(), &self.signature)
            .map_err(|_| DataRefusal::Signature)?;
        if self.label.vm != chain.claims().vm {
            return Err(DataRefusal::Source {
                said: self.label.vm,
                certified: chain.claims().vm,
            });
        }
        let evidence = evidence
            .map(|evidence| self.verify_evidence(&evidence, &chain, &anchors, at))
            .transpose()?;
        Ok(VerifiedData {
            label: self.label,
            content: self.content,
            chain,
            evidence,
            anchors: *anchors.digest(),
            verified_at: at,
        })
    }

    fn check_data(&self, data: Option<&Digest32>) -> Result<(), DataRefusal> {
        match (data, &self.content) {
            (None, Content::Attached(_)) => Ok(()),
            (None, Content::Hash(_)) => Err(DataRefusal::DataMissing),
            (Some(data), content) if *data == content.digest() => Ok(()),
            (Some(_), _) => Err(DataRefusal::DataMismatch),
        }
    }

    fn read_evidence(&self) -> Result<Option<Evidence>, DataRefusal> {
        let (said, bytes) = match (&self.label.evidence, &self.credentials.evidence) {
            (None, None) => return Ok(None),
            (Some(said), Some(bytes)) => (said, bytes),
            _ => return Err(DataRefusal::EvidenceAbsent),
        };
        if Digest32::of(bytes) != said.digest {
            return Err(DataRefusal::EvidenceMismatch);
        }
        if said.taken > self.label.time {
            return Err(DataRefusal::EvidenceLater);
        }
        let evidence = Evidence::from_cbor(bytes).map_err(DataRefusal::EvidenceMalformed)?;
        Ok(Some(evidence))
    }

    fn verify_evidence(
        &self,
        evidence: &Evidence,
        chain: &VerifiedVikChain,
        anchors: &TrustAnchors,
        at: UnixTime,
    ) -> Result<VerifiedEvidence, DataRefusal> {
        let data = self.content.digest();
        let nonce = evidence_nonce(&self.label.key, self.label.sequence, &data)
            .map_err(|_| DataRefusal::EvidenceMismatch)?;
        let verified = evidence
            .verify(&nonce, &Purpose::Challenge, anchors, at)
            .map_err(|refusal| DataRefusal::Evidence(Box::new(refusal)))?;
        match verified.chain().claims().vik == chain.claims().vik {
            true => Ok(verified),
            false => Err(DataRefusal::EvidenceOfAnother),
        }
    }
}

impl VerifiedData {
    /// The label.
    pub fn label(&self) -> &Label {
        &self.label
    }

    /// The data, or their SHA-256 value.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// The certificates, and what they say.
    pub fn chain(&self) -> &VerifiedVikChain {
        &self.chain
    }

    /// What the VM and its host were when the data were signed.
    pub fn evidence(&self) -> Option<&VerifiedEvidence> {
        self.evidence.as_ref()
    }

    /// How many seconds before the data were signed the evidence was asked for, by the VM's clock.
    pub fn evidence_age(&self) -> Option<u64> {
        let taken = |evidence: EvidenceReference| self.label.time.saturating_sub(evidence.taken);
        self.label.evidence.map(taken)
    }

    /// The time as of which everything was verified.
    pub fn verified_at(&self) -> UnixTime {
        self.verified_at
    }
}

/// The key for data, which the vIK below the certificates certified.
fn verify_key(
    credentials: &Credentials,
    anchors: &TrustAnchors,
    at: UnixTime,
) -> Result<(VerifiedVikChain, DataKey), DataRefusal> {
    let certificates: Vec<&[u8]> = (credentials.chain.iter())
        .map(|der| der.as_slice())
        .collect();
    let chain = VikChain::from_der_list(&certificates)
        .and_then(|chain| chain.verify(anchors, at))
        .map_err(DataRefusal::Chain)?;
    let vik = PublicArea::parse(&credentials.vik_public).map_err(DataRefusal::VikMalformed)?;
    let vik = AttestationKey::try_from(vik).map_err(DataRefusal::Vik)?;
    if vik.name() != chain.claims().vik || vik.subject_public_key_info() != chain.vik_spki() {
        return Err(DataRefusal::VikMismatch);
    }
    let key = credentials
        .statement
        .verify(&vik)
        .map_err(DataRefusal::Key)?;
    Ok((chain, key))
}
