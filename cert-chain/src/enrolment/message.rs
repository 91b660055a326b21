//! The four messages and their JSON form.

use std::fmt;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::credential::CredentialBlob;
use crate::hexadecimal;
use crate::identifiers::{HostName, string_serde};
use crate::json_texts::{read_strictly, unprintable_field};

/// Host to issuer: "certify this key, which lives beside that endorsement key".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema), schema(as = HostEnrolmentRequest))]
pub struct Request {
    /// The label the host asks for; the issuer adds its domain.
    pub host: String,
    /// The endorsement key's certificate in DER, as read from NV memory.
    #[serde(with = "hexadecimal")]
    #[cfg_attr(feature = "schema", schema(value_type = String, pattern = "^([0-9a-f]{2})*$"))]
    pub ek_certificate: Vec<u8>,
    /// Certificates above it that the TPM has in NV memory, one after the other in DER: what leads
    /// to the maker's, where the makers publish no more than that. Usually none.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "hexadecimal")]
    #[cfg_attr(feature = "schema", schema(value_type = String, pattern = "^([0-9a-f]{2})*$"))]
    pub ek_chain: Vec<u8>,
    /// The endorsement key, a `TPMT_PUBLIC`.
    #[serde(with = "hexadecimal")]
    #[cfg_attr(feature = "schema", schema(value_type = String, pattern = "^([0-9a-f]{2})*$"))]
    pub ek: Vec<u8>,
    /// The identity key to be certified, a `TPMT_PUBLIC`.
    #[serde(with = "hexadecimal")]
    #[cfg_attr(feature = "schema", schema(value_type = String, pattern = "^([0-9a-f]{2})*$"))]
    pub ik: Vec<u8>,
    /// The operator key whose approvals the IK's `PolicyAuthorize` accepts, a `TPMT_PUBLIC`.
    #[serde(with = "hexadecimal")]
    #[cfg_attr(feature = "schema", schema(value_type = String, pattern = "^([0-9a-f]{2})*$"))]
    pub policy_key: Vec<u8>,
    /// The policy reference of that `PolicyAuthorize`.
    #[serde(with = "hexadecimal")]
    #[cfg_attr(feature = "schema", schema(value_type = String, pattern = "^([0-9a-f]{2})*$"))]
    pub policy_ref: Vec<u8>,
}

/// Issuer to host: "show that your TPM holds both keys".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema), schema(as = HostEnrolmentChallenge))]
pub struct Challenge {
    /// Which enrolment this is.
    pub enrolment: EnrolmentId,
    /// The name the host would get.
    pub host: HostName,
    /// For `TPM2_ActivateCredential`.
    pub credential: CredentialBlob,
}

/// Host to issuer: the secret out of the credential. It is worthless once answered.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema), schema(as = HostEnrolmentAnswer))]
pub struct Answer {
    /// Which enrolment this is.
    pub enrolment: EnrolmentId,
    /// The secret.
    #[serde(with = "hexadecimal")]
    #[cfg_attr(feature = "schema", schema(value_type = String, pattern = "^([0-9a-f]{2})*$"))]
    pub secret: Vec<u8>,
}

/// Issuer to host: the host IK's certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema), schema(as = HostEnrolmentCertificate))]
pub struct Certificate {
    /// The name the host got.
    pub host: HostName,
    /// The host IK's certificate in DER.
    #[serde(with = "hexadecimal")]
    #[cfg_attr(feature = "schema", schema(value_type = String, pattern = "^([0-9a-f]{2})*$"))]
    pub certificate: Vec<u8>,
    /// The issuer's root in DER. For convenience: nobody should trust a root for having come
    /// along with what it certifies.
    #[serde(with = "hexadecimal")]
    #[cfg_attr(feature = "schema", schema(value_type = String, pattern = "^([0-9a-f]{2})*$"))]
    pub root: Vec<u8>,
}

/// Ties the messages of one enrolment together; random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EnrolmentId([u8; 16]);

/// A message that travels as JSON.
pub trait Message: Serialize + DeserializeOwned {
    /// The value of the `type` field.
    const TYPE: &'static str;

    /// The message as a JSON text with a line feed at the end.
    fn to_json(&self) -> String {
        let envelope = Envelope {
            kind: Self::TYPE.to_owned(),
            version: VERSION,
            message: self,
        };
        match serde_json::to_string_pretty(&envelope) {
            Ok(json) => json + "\n",
            // The messages consist of strings and maps with string keys.
            Err(error) => unreachable!("JSON: {error}"),
        }
    }

    /// Reads a message; anything unknown in it is refused.
    fn from_json(json: &[u8]) -> Result<Self, MessageError> {
        if json.len() > MAX_MESSAGE {
            return Err(MessageError::TooLong { length: json.len() });
        }
        let json = read_strictly(json).map_err(MessageError::Json)?;
        if let Some(field) = unprintable_field(&json) {
            return Err(MessageError::Unprintable { field });
        }
        let mut object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_value(json).map_err(MessageError::Json)?;
        let kind = object.remove("type");
        let kind = kind.as_ref().and_then(serde_json::Value::as_str);
        if kind != Some(Self::TYPE) {
            return Err(MessageError::Type {
                found: kind.unwrap_or("no type").to_owned(),
                expected: Self::TYPE,
            });
        }
        let version = object.remove("version");
        if version.as_ref().and_then(serde_json::Value::as_u64) != Some(VERSION) {
            return Err(MessageError::Version {
                found: version.unwrap_or_default().to_string(),
            });
        }
        serde_json::from_value(object.into()).map_err(MessageError::Json)
    }
}

impl Message for Request {
    const TYPE: &'static str = "host-enrolment-request";
}

impl Message for Challenge {
    const TYPE: &'static str = "host-enrolment-challenge";
}

impl Message for Answer {
    const TYPE: &'static str = "host-enrolment-answer";
}

impl Message for Certificate {
    const TYPE: &'static str = "host-enrolment-certificate";
}

/// Why a message could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// Not JSON, or not with these fields.
    #[error("the message is malformed")]
    Json(#[source] serde_json::Error),
    /// More bytes than any message has.
    #[error("a message of {length} bytes is too long (at most {MAX_MESSAGE})")]
    TooLong {
        /// Number of bytes.
        length: usize,
    },
    /// Another message than the one needed now.
    #[error("this is `{found}`, but `{expected}` is needed here")]
    Type {
        /// The type found.
        found: String,
        /// The type needed.
        expected: &'static str,
    },
    /// A text that does not show what it is.
    #[error(
        "{field} of the message has characters that cannot be seen or that terminals obey: no \
         genuine message has them"
    )]
    Unprintable {
        /// Where.
        field: String,
    },
    /// A version this program does not speak.
    #[error(
        "the message has version {found}, this program speaks version {VERSION}: update the older of the two"
    )]
    Version {
        /// The version found.
        found: String,
    },
}

/// More than the longest message needs: an EK certificate of 8 KiB and a chain of 12 KiB, both in
/// hexadecimal, and four public areas.
pub const MAX_MESSAGE: usize = 64 * 1024;

const VERSION: u64 = 1;

#[derive(Serialize)]
struct Envelope<'a, M> {
    #[serde(rename = "type")]
    kind: String,
    version: u64,
    #[serde(flatten)]
    message: &'a M,
}

impl EnrolmentId {
    pub(super) const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub(super) const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for EnrolmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for EnrolmentId {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

string_serde!(EnrolmentId);

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("enrolment", &self.enrolment)
            .finish_non_exhaustive()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl ZeroizeOnDrop for Answer {}
