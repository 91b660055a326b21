//! What is said on the socket: one line of JSON each way.

use attestation::Nonce;
use attestation::nonce::NonceError;
use confirmation::{ConfirmableText, ServiceName, ServiceRefused, TextRefused};
use serde::{Deserialize, Serialize};

/// A request that can be shown.
#[derive(Clone, Debug)]
pub struct Request {
    pub(crate) text: ConfirmableText,
    pub(crate) service: ServiceName,
    pub(crate) nonce: Nonce,
}

/// A request as it comes.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RequestJson {
    pub(crate) text: String,
    pub(crate) service: String,
    /// In hexadecimal.
    pub(crate) nonce: String,
}

/// The answer.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
pub(crate) enum Answer {
    /// The person confirmed: CBOR, in hexadecimal.
    Confirmed { confirmation: String },
    /// The person declined. Nothing signs that.
    Declined,
    /// Another request is being shown.
    Busy,
    /// It was not shown, or could not be led to an end.
    Refused { reason: String },
}

/// Why a request is not shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestRefused {
    /// It is no request.
    #[error("the request is not the JSON that is needed: {0}")]
    Json(#[from] serde_json::Error),
    /// The text cannot be shown.
    #[error("the text is not shown: {0}")]
    Text(#[from] TextRefused),
    /// The service's name cannot be shown.
    #[error(transparent)]
    Service(#[from] ServiceRefused),
    /// The nonce is none.
    #[error(transparent)]
    Nonce(#[from] NonceError),
}

/// A text of four bytes for each character, each written as `\u00ff`.
pub(crate) const MAX_REQUEST: u64 = 64 * 1024;
/// A confirmation in hexadecimal.
pub(crate) const MAX_ANSWER: u64 = 256 * 1024;

impl Request {
    /// Reads one line of JSON.
    pub fn parse(line: &[u8]) -> Result<Self, RequestRefused> {
        let read: RequestJson = serde_json::from_slice(line)?;
        Ok(Self {
            text: ConfirmableText::new(&read.text)?,
            service: read.service.parse()?,
            nonce: read.nonce.parse()?,
        })
    }

    /// The text.
    pub fn text(&self) -> &ConfirmableText {
        &self.text
    }
}
