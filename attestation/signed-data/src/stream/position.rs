//! How far a stream was verified.

use cert_chain::TpmName;
use minicbor::encode::Write;
use minicbor::{Decoder, Encoder, decode, encode};

use crate::cose::{FormatError, encoded, within};
use crate::credentials::{Credentials, MAX_CREDENTIALS};
use crate::label::digest;
use crate::stream::statement::Link;
use crate::text::LabelText;

/// The end of the last batch that was verified, from which a verifier goes on at another time. Whoever can
/// write it can have a verifier accept what it has seen already, and skip what it has not: keep it as the
/// policy is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Where the next batch goes on.
    pub link: Link,
    /// The last batch's number among all that its source signed.
    pub sequence: u64,
    /// Name of the key that signs the stream.
    pub key: TpmName,
    /// The stream.
    pub stream: LabelText,
    /// Those of the last batch, without evidence.
    pub credentials: Credentials,
}

/// The most that a position has.
pub const MAX_POSITION: usize = MAX_CREDENTIALS + 1024;

const DOMAIN: &str = "vrot stream position v1";

impl Position {
    /// As it is kept.
    pub fn to_cbor(&self) -> Vec<u8> {
        encoded(|e| self.write(e))
    }

    fn write<W: Write>(&self, e: &mut Encoder<W>) -> Result<(), encode::Error<W::Error>> {
        e.array(7)?.str(DOMAIN)?;
        e.bytes(self.link.digest.as_bytes())?.u64(self.link.next)?;
        e.u64(self.sequence)?.bytes(self.key.as_bytes())?;
        e.str(self.stream.as_str())?;
        self.credentials.write(e)
    }

    /// Reads one that was kept.
    pub fn from_cbor(bytes: &[u8]) -> Result<Self, FormatError> {
        within(bytes.len(), MAX_POSITION)?;
        let mut d = Decoder::new(bytes);
        if d.array()? != Some(7) || d.str()? != DOMAIN {
            return Err(decode::Error::message("it is no position in a stream").into());
        }
        let position = Self {
            link: Link {
                digest: digest(d.bytes()?)?,
                next: d.u64()?,
            },
            sequence: d.u64()?,
            key: TpmName::from_bytes(d.bytes()?).map_err(decode::Error::custom)?,
            stream: d.str()?.parse().map_err(decode::Error::custom)?,
            credentials: Credentials::read(&mut d)?,
        };
        match position.to_cbor() == bytes {
            true => Ok(position),
            false => Err(FormatError::NotDeterministic),
        }
    }
}
