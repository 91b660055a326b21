//! The TPM of whoever enrols: what it shows of its keys, and the proof that it holds both.

use std::time::Duration;

use hmac::{Hmac, Mac};
use ring::rand::{SecureRandom, SystemRandom};
use rustls_pki_types::UnixTime;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::error::EnrolmentError;
use super::message::{Answer, EnrolmentId};
use crate::attestation_key::AttestationKey;
use crate::credential::{CredentialBlob, MAX_SECRET, make_credential};
use crate::digest::Digest32;
use crate::ek_certificate::{CertifiedEndorsementKey, TpmMakerRoots};
use crate::ek_chain::EkChain;
use crate::endorsement_key::EndorsementKey;
use crate::public_area::PublicArea;

/// How long an answer may take: long enough to carry files by hand.
pub const PENDING_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// What has become of an enrolment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EnrolmentState {
    /// Waits for the answer whose HMAC under the enrolment's number this is.
    Waiting(Digest32),
    /// An answer has come, right or wrong.
    Answered,
}

/// A TPM's keys as a request shows them.
pub(super) struct ShownTpm<'a> {
    pub(super) ek_certificate: &'a [u8],
    pub(super) ek_chain: &'a [u8],
    pub(super) ek: &'a [u8],
    pub(super) ik: &'a [u8],
}

/// A TPM of an accepted maker, and a key that is said to live in it.
pub(super) struct CertifiedTpm {
    pub(super) ek: EndorsementKey,
    pub(super) ik: AttestationKey,
    /// The issuer of the EK certificate, for people to read.
    pub(super) maker: String,
}

/// What a TPM is asked for.
pub(super) struct Asked {
    pub(super) enrolment: EnrolmentId,
    pub(super) credential: CredentialBlob,
    pub(super) state: EnrolmentState,
}

impl ShownTpm<'_> {
    /// Everything that can be known of a TPM without asking it.
    pub(super) fn examine(
        &self,
        roots: &TpmMakerRoots,
        at: UnixTime,
    ) -> Result<CertifiedTpm, EnrolmentError> {
        let ek: EndorsementKey = parse(self.ek, "endorsement key")?
            .try_into()
            .map_err(EnrolmentError::EndorsementKey)?;
        let chain = EkChain::read(self.ek_chain).map_err(EnrolmentError::EkChain)?;
        let certified =
            CertifiedEndorsementKey::verify(self.ek_certificate, &chain, &ek, roots, at)
                .map_err(EnrolmentError::EkCertificate)?;
        let ik = parse(self.ik, "identity key")?
            .try_into()
            .map_err(EnrolmentError::IdentityKey)?;
        Ok(CertifiedTpm {
            ek,
            ik,
            maker: certified.issuer().to_owned(),
        })
    }
}

impl CertifiedTpm {
    /// A secret that only the TPM with both keys can read. It is not kept: a digest of it is.
    pub(super) fn ask(&self) -> Result<Asked, EnrolmentError> {
        let mut id = [0; 16];
        let mut secret = Zeroizing::new([0; MAX_SECRET]);
        let random = SystemRandom::new();
        random
            .fill(&mut id)
            .and_then(|()| random.fill(secret.as_mut()))
            .map_err(|_| EnrolmentError::Random)?;
        let enrolment = EnrolmentId::new(id);
        let credential = make_credential(&self.ek, &self.ik.name(), secret.as_ref())
            .map_err(EnrolmentError::Credential)?;
        let tag: [u8; 32] = mac(&enrolment, secret.as_ref())
            .finalize()
            .into_bytes()
            .into();
        Ok(Asked {
            enrolment,
            credential,
            state: EnrolmentState::Waiting(Digest32::new(tag)),
        })
    }
}

impl EnrolmentState {
    /// Holds an answer against what was asked. It is spent by the first one, even a wrong one.
    pub(super) fn settle(
        &mut self,
        answer: &Answer,
        expires_at: u64,
        at: UnixTime,
    ) -> Result<(), EnrolmentError> {
        let Self::Waiting(tag) = std::mem::replace(self, Self::Answered) else {
            return Err(EnrolmentError::AlreadyAnswered);
        };
        if at.as_secs() > expires_at {
            return Err(EnrolmentError::Expired {
                expired_at: expires_at,
            });
        }
        // `verify_slice` compares in constant time.
        mac(&answer.enrolment, &answer.secret)
            .verify_slice(tag.as_bytes())
            .map_err(|_| EnrolmentError::WrongAnswer)
    }
}

pub(super) fn parse(tpmt_public: &[u8], which: &'static str) -> Result<PublicArea, EnrolmentError> {
    PublicArea::parse(tpmt_public).map_err(|source| EnrolmentError::PublicArea { which, source })
}

/// A digest of the secret, different for every enrolment.
fn mac(enrolment: &EnrolmentId, secret: &[u8]) -> Hmac<Sha256> {
    match <Hmac<Sha256> as Mac>::new_from_slice(enrolment.as_bytes()) {
        Ok(mac) => mac.chain_update(secret),
        // HMAC is defined for keys of every length (RFC 2104 §2).
        Err(error) => unreachable!("HMAC key: {error}"),
    }
}
