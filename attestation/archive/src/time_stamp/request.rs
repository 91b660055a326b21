//! Asking an authority, and its answer (RFC 3161 §2.4, §3.4: over HTTP, or as files).

use der::asn1::{Int, OctetString};
use der::{Decode, Encode};

use super::asn1::{MessageImprint, TimeStampReq, TimeStampResp};
use super::error::TimeStampError;
use super::token::{MAX_TOKEN, Token};
use crate::hashing::{ArchiveHash, Imprint};

/// Random bytes by which an answer is told from an older one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonce([u8; 8]);

/// A request for a time stamp over a hash value.
#[derive(Clone, Debug)]
pub struct TimeStampRequest {
    imprint: Imprint,
    nonce: Nonce,
}

/// The most that an answer has.
pub const MAX_RESPONSE: usize = MAX_TOKEN + 4096;
/// `granted` and `grantedWithMods`: what was changed is seen in the token.
const GRANTED: [u8; 2] = [0, 1];
/// What an authority says is shown up to here.
const MAX_SHOWN: usize = 300;

impl Nonce {
    /// Takes random bytes. As an INTEGER it is positive, as some authorities demand.
    pub fn new(mut random: [u8; 8]) -> Self {
        let [first, ..] = &mut random;
        *first = (*first & 0x7f) | 0x40;
        Self(random)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TimeStampRequest {
    /// A request for a time stamp over `imprint`, with the authority's certificates.
    pub fn new(imprint: Imprint, nonce: Nonce) -> Self {
        Self { imprint, nonce }
    }

    /// Reads a request that was made here, for an authority that is asked by files.
    pub fn from_der(der: &[u8]) -> Result<Self, TimeStampError> {
        let request = TimeStampReq::from_der(der)?;
        let MessageImprint {
            hash_algorithm,
            hashed_message,
        } = &request.message_imprint;
        let algorithm = ArchiveHash::from_oid(hash_algorithm.oid)?;
        let imprint = Imprint::new(algorithm, hashed_message.as_bytes());
        let nonce =
            (request.nonce.as_ref()).and_then(|nonce| <[u8; 8]>::try_from(nonce.as_bytes()).ok());
        match (imprint, nonce) {
            (Some(imprint), Some(nonce)) => Ok(Self::new(imprint, Nonce::new(nonce))),
            _ => Err(TimeStampError::Malformed(
                "the request has no nonce of 8 bytes, or a hash value of another length",
            )),
        }
    }

    /// What is to be stamped.
    pub fn imprint(&self) -> &Imprint {
        &self.imprint
    }

    /// `TimeStampReq` in DER: of the media type `application/timestamp-query`.
    pub fn to_der(&self) -> Result<Vec<u8>, TimeStampError> {
        let request = TimeStampReq {
            version: 1,
            message_imprint: MessageImprint {
                hash_algorithm: self.imprint.algorithm().identifier(),
                hashed_message: OctetString::new(self.imprint.value())?,
            },
            req_policy: None,
            nonce: Some(Int::new(self.nonce.as_bytes())?),
            cert_req: true,
        };
        Ok(request.to_der()?)
    }

    /// The token of an answer in DER (`application/timestamp-reply`). It answers this request; who signed it is
    /// not verified.
    pub fn token(&self, response: &[u8]) -> Result<Token, TimeStampError> {
        let token = token_from_response(response)?;
        if *token.imprint() != self.imprint {
            return Err(TimeStampError::Imprint);
        }
        match token.nonce() == Some(self.nonce.as_bytes()) {
            true => Ok(token),
            false => Err(TimeStampError::Nonce),
        }
    }
}

/// The token of an answer to a request that is not at hand.
pub fn token_from_response(response: &[u8]) -> Result<Token, TimeStampError> {
    if response.len() > MAX_RESPONSE {
        return Err(TimeStampError::TooLong {
            length: response.len(),
            limit: MAX_RESPONSE,
        });
    }
    let response = TimeStampResp::from_der(response)?;
    let status = response.status.status;
    let token = match response.time_stamp_token {
        Some(token) if GRANTED.contains(&status) => token,
        _ => {
            let said = response.status.status_string.unwrap_or_default().join("; ");
            let text = said.chars().take(MAX_SHOWN).collect();
            return Err(TimeStampError::Refused { status, text });
        }
    };
    Token::from_der(&token.to_der()?)
}
