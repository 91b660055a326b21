//! The beginning of a file with sealed data: what it is sealed to, and the TPM's object with its key.
//!
//! `service/sealed-data.cddl` describes it. It is no secret, and the data are bound to every byte of it.

use std::io::{self, Read};

use cert_chain::operator::PolicyKeyPublic;
use cert_chain::{Digest32, HashAlgorithm, PcrSelection, PcrValues, TpmName};
use minicbor::bytes::ByteVec;
use minicbor::decode::Error as DecodeError;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decode, Decoder, Encode, Encoder};

/// The beginning of a file with sealed data.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Header {
    /// Version of the format.
    #[n(0)]
    version: u8,
    /// What the data are sealed to, beside the vRoT.
    #[n(1)]
    pub sealed_to: SealedTo,
    /// Name of the storage key above the object.
    #[n(2)]
    pub parent: TpmName,
    /// The object's `TPMT_PUBLIC`.
    #[n(3)]
    pub public: ByteVec,
    /// The object's encrypted part: what a `TPM2B_PRIVATE` contains.
    #[n(4)]
    pub private: ByteVec,
}

/// What opens sealed data, beside the vRoT that sealed them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SealedTo {
    /// Nothing more.
    Vrot,
    /// A boot: PCRs have these values.
    Boot(PcrValues),
    /// A boot that this key approves, now or later.
    Approved(PolicyKeyPublic),
}

/// Why a file's beginning is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// Some other file.
    #[error("the file holds no sealed data: `vrot-service seal` makes it")]
    Magic,
    /// Longer than any.
    #[error("the file's beginning has {length} bytes: at most {MAX_HEADER} are accepted")]
    TooLong {
        /// How many it announces.
        length: usize,
    },
    /// It ends too soon.
    #[error("the file ends within its beginning")]
    Truncated,
    /// It cannot be read.
    #[error("the file cannot be read")]
    Read(#[source] io::Error),
    /// Another version.
    #[error("the file has version {found} of the format, and this program knows version {VERSION}")]
    Version {
        /// Which.
        found: u8,
    },
    /// Not as described.
    #[error("the file's beginning is malformed")]
    Malformed(#[source] DecodeError),
    /// Not the one form.
    #[error("the file's beginning is not in deterministic CBOR")]
    Form,
}

/// The first bytes of every such file.
pub const MAGIC: [u8; 8] = *b"vRoTseal";
/// Two parts of a TPM object, PCR values, and their frame.
pub const MAX_HEADER: usize = 4096;
const VERSION: u8 = 1;
/// More than objects of this kind have.
const MAX_PART: usize = 1024;
/// Selections are bits, of 24 PCRs.
const PCR_BITS: u32 = 1 << cert_chain::pcr::PCR_COUNT;

impl Header {
    /// The beginning of a new file.
    pub fn new(sealed_to: SealedTo, parent: TpmName, public: Vec<u8>, private: Vec<u8>) -> Self {
        Self {
            version: VERSION,
            sealed_to,
            parent,
            public: public.into(),
            private: private.into(),
        }
    }

    /// As it stands in the file, with the bytes before it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let body = match minicbor::to_vec(self) {
            Ok(body) => body,
            Err(error) => unreachable!("a Vec takes every byte: {error}"),
        };
        let length = u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes();
        [MAGIC.as_slice(), &length, &body].concat()
    }

    /// Reads it from the beginning of a file, which is then read up to the data.
    pub fn read(file: &mut impl Read) -> Result<Self, HeaderError> {
        let mut magic = [0; MAGIC.len()];
        match file.read_exact(&mut magic) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(HeaderError::Magic);
            }
            read => read.map_err(HeaderError::Read)?,
        }
        if magic != MAGIC {
            return Err(HeaderError::Magic);
        }
        let mut length = [0; 2];
        file.read_exact(&mut length).map_err(cut)?;
        let length = usize::from(u16::from_be_bytes(length));
        if length > MAX_HEADER {
            return Err(HeaderError::TooLong { length });
        }
        let mut body = vec![0; length];
        file.read_exact(&mut body).map_err(cut)?;
        Self::parse(&body)
    }

    fn parse(body: &[u8]) -> Result<Self, HeaderError> {
        let header: Self = minicbor::decode(body).map_err(HeaderError::Malformed)?;
        if header.version != VERSION {
            return Err(HeaderError::Version {
                found: header.version,
            });
        }
        for part in [&header.public, &header.private] {
            if part.len() > MAX_PART {
                return Err(HeaderError::TooLong { length: part.len() });
            }
        }
        match header.to_bytes().get(MAGIC.len() + 2..) == Some(body) {
            true => Ok(header),
            false => Err(HeaderError::Form),
        }
    }

    /// What the data are bound to: all of this.
    pub fn digest(&self) -> Digest32 {
        Digest32::of(&self.to_bytes())
    }
}

fn cut(error: io::Error) -> HeaderError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => HeaderError::Truncated,
        _ => HeaderError::Read(error),
    }
}

impl<C> Encode<C> for SealedTo {
    fn encode<W: Write>(
        &self,
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        encoder.array(2)?;
        match self {
            Self::Vrot => encoder.u8(0)?.array(0)?.ok(),
            Self::Boot(values) => {
                let bits = values.pcrs().fold(0u32, |bits, pcr| bits | 1 << pcr);
                encoder
                    .u8(1)?
                    .array(3)?
                    .u16(values.bank().identifier())?
                    .u32(bits)?
                    .bytes(&values.to_bytes())?
                    .ok()
            }
            Self::Approved(key) => encoder.u8(2)?.array(1)?.bytes(key.as_bytes())?.ok(),
        }
    }
}

impl<'b, C> Decode<'b, C> for SealedTo {
    fn decode(decoder: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
        let position = decoder.position();
        let refused = |what: &'static str| DecodeError::message(what).at(position);
        if decoder.array()? != Some(2) {
            return Err(refused("what the data are sealed to is an array of two"));
        }
        match (decoder.u8()?, decoder.array()?) {
            (0, Some(0)) => Ok(Self::Vrot),
            (1, Some(3)) => {
                let bank = HashAlgorithm::from_identifier(decoder.u16()?)
                    .filter(|bank| cert_chain::pcr::BANKS.contains(bank))
                    .ok_or_else(|| refused("a PCR bank of SHA-256, SHA-384 or SHA-512"))?;
                let bits = decoder.u32()?;
                if bits == 0 || bits >= PCR_BITS {
                    return Err(refused("a selection of PCRs"));
                }
                let pcrs = (0..cert_chain::pcr::PCR_COUNT).filter(|pcr| bits & (1 << pcr) != 0);
                let pcrs = PcrSelection::new(pcrs).map_err(|_| refused("a selection of PCRs"))?;
                PcrValues::from_bytes(bank, pcrs, decoder.bytes()?)
                    .map(Self::Boot)
                    .ok_or_else(|| refused("a value for each PCR"))
            }
            (2, Some(1)) => PolicyKeyPublic::from_bytes(decoder.bytes()?)
                .map(Self::Approved)
                .map_err(|error| DecodeError::custom(error).at(position)),
            _ => Err(refused("nothing that data can be sealed to")),
        }
    }
}
