//! `TPMT_PUBLIC` (TPM 2.0 Part 2 §12.2.4) of asymmetric keys, read without a TPM.

use std::fmt;

use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, PublicKeyData, SignatureAlgorithm};
use rsa::pkcs1::EncodeRsaPublicKey;
use tpm2_protocol::data::{
    TpmAlgId, TpmEccCurve, TpmtPublic, TpmtSymDefObject, TpmuAsymScheme, TpmuPublicId,
    TpmuPublicParms, TpmuSymKeyBits, TpmuSymMode,
};
use tpm2_protocol::{TpmError, TpmMarshal, TpmUnmarshal, TpmWriter};

use crate::name::{NameAlgorithm, TpmName};

/// A public area, parsed exactly: no byte is left over and none is normalised away.
///
/// It says what a key *claims* to be. That the key lives in a TPM is shown by a certificate
/// over its name, or by credential activation, never by this structure alone.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicArea {
    bytes: Vec<u8>,
    name_algorithm: NameAlgorithm,
    attributes: ObjectAttributes,
    auth_policy: Vec<u8>,
    parameters: KeyParameters,
    /// What stands in the BIT STRING of a SubjectPublicKeyInfo.
    public_key: Vec<u8>,
}

/// `TPMA_OBJECT` (TPM 2.0 Part 2 §8.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ObjectAttributes(u32);

/// What kind of key it is, with the parameters that matter to its use.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyParameters {
    /// RSA with a modulus of 2048, 3072 or 4096 bits.
    Rsa {
        /// Length of the modulus in bits.
        bits: u16,
        /// The scheme the key is limited to.
        scheme: KeyScheme,
        /// The cipher that protects a storage key's children.
        protection: ChildProtection,
    },
    /// An elliptic-curve key on NIST P-256.
    P256 {
        /// The scheme the key is limited to.
        scheme: KeyScheme,
        /// The cipher that protects a storage key's children.
        protection: ChildProtection,
    },
}

/// The signing or encryption scheme of a key, as `TPM_ALG_ID` numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyScheme {
    /// `TPM_ALG_NULL`: the scheme is chosen with each use.
    Any,
    /// One scheme, with its hash algorithm where the scheme has one.
    Fixed {
        /// E.g. `0x0018` for ECDSA.
        scheme: u16,
        /// E.g. `0x000b` for SHA-256.
        hash: Option<u16>,
    },
}

/// `TPMT_SYM_DEF_OBJECT` of a storage key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildProtection {
    /// `TPM_ALG_NULL`: not a storage key.
    None,
    /// AES in CFB mode with this many key bits.
    AesCfb {
        /// Key length in bits.
        bits: u16,
    },
    /// Any other cipher.
    Other,
}

/// Why bytes are not a public area that can be used here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublicAreaError {
    /// The curve is not P-256.
    #[error("the key is on curve 0x{curve:04x}: only NIST P-256 (0x0003) is supported")]
    Curve {
        /// `TPM_ECC_CURVE`.
        curve: u16,
    },
    /// The object is not an asymmetric key.
    #[error("the object has type 0x{found:04x}: an RSA or ECC key is needed")]
    KeyType {
        /// `TPM_ALG_ID` of the object type.
        found: u16,
    },
    /// The structure does not follow TPM 2.0 Part 2.
    #[error("malformed TPMT_PUBLIC")]
    Malformed(#[source] TpmError),
    /// The object's name would use an unsupported hash algorithm.
    #[error("the name algorithm is 0x{found:04x}: SHA-256, SHA-384 or SHA-512 is needed")]
    NameAlgorithm {
        /// `TPM_ALG_ID`.
        found: u16,
    },
    /// The bytes parse, but would be written differently.
    #[error("the TPMT_PUBLIC is not in canonical form")]
    NotCanonical,
    /// The unique field is not a point on P-256.
    #[error("the public point is not on NIST P-256")]
    Point,
    /// The unique field is not a modulus of the stated size, or the exponent is unusable.
    #[error(
        "the RSA key is unusable: {bits} bits stated, modulus of {length} bytes, exponent {exponent}"
    )]
    RsaKey {
        /// Stated length in bits.
        bits: u16,
        /// Length of the modulus found, in bytes.
        length: usize,
        /// The public exponent.
        exponent: u32,
    },
    /// More bytes than any public area has.
    #[error("{length} bytes are more than a TPMT_PUBLIC can have ({MAX_PUBLIC_AREA})")]
    TooLong {
        /// Number of bytes given.
        length: usize,
    },
    /// Bytes follow the structure.
    #[error("{extra} bytes follow the TPMT_PUBLIC")]
    TrailingBytes {
        /// How many.
        extra: usize,
    },
}

/// The largest public area accepted: RSA-4096 with a SHA-512 policy needs about 600 bytes.
pub const MAX_PUBLIC_AREA: usize = 1024;

/// Exponent zero stands for this one (TPM 2.0 Part 2 §12.2.3.5).
const DEFAULT_EXPONENT: u32 = 65_537;

const P256_COORDINATE: usize = 32;

impl PublicArea {
    /// Reads a `TPMT_PUBLIC` (not a `TPM2B_PUBLIC`: no length in front).
    pub fn parse(tpmt_public: &[u8]) -> Result<Self, PublicAreaError> {
        if tpmt_public.len() > MAX_PUBLIC_AREA {
            return Err(PublicAreaError::TooLong {
                length: tpmt_public.len(),
            });
        }
        let (public, rest) =
            TpmtPublic::unmarshal(tpmt_public).map_err(PublicAreaError::Malformed)?;
        if !rest.is_empty() {
            return Err(PublicAreaError::TrailingBytes { extra: rest.len() });
        }
        check_canonical(&public, tpmt_public)?;

        let name_algorithm = NameAlgorithm::from_identifier(public.name_alg.value()).ok_or(
            PublicAreaError::NameAlgorithm {
                found: public.name_alg.value(),
            },
        )?;
        let (parameters, public_key) = read_key(&public)?;
        Ok(Self {
            bytes: tpmt_public.to_vec(),
            name_algorithm,
            attributes: ObjectAttributes(public.object_attributes.bits()),
            auth_policy: public.auth_policy.to_vec(),
            parameters,
            public_key,
        })
    }

    /// The marshalled structure, exactly as it was parsed.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The object's name: what a TPM calls it in quotes and credentials.
    pub fn name(&self) -> TpmName {
        TpmName::of(self.name_algorithm, &self.bytes)
    }

    /// The hash algorithm of the name.
    pub fn name_algorithm(&self) -> NameAlgorithm {
        self.name_algorithm
    }

    /// The object's attributes.
    pub fn attributes(&self) -> ObjectAttributes {
        self.attributes
    }

    /// The authorization policy digest; empty when there is none.
    pub fn auth_policy(&self) -> &[u8] {
        &self.auth_policy
    }

    /// Kind and parameters of the key.
    pub fn parameters(&self) -> &KeyParameters {
        &self.parameters
    }

    /// The bare public key: an uncompressed SEC 1 point, or an `RSAPublicKey` (RFC 8017 A.1.1)
    /// in DER. Signature libraries take this form.
    pub fn public_key_bytes(&self) -> &[u8] {
        &self.public_key
    }

    /// The key as an X.509 SubjectPublicKeyInfo in DER.
    pub fn subject_public_key_info(&self) -> Vec<u8> {
        PublicKeyData::subject_public_key_info(self)
    }
}

impl PublicKeyData for PublicArea {
    fn der_bytes(&self) -> &[u8] {
        &self.public_key
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        match self.parameters {
            KeyParameters::Rsa { .. } => &PKCS_RSA_SHA256,
            KeyParameters::P256 { .. } => &PKCS_ECDSA_P256_SHA256,
        }
    }
}

/// What a key tells of the public area that it was made from, once that was found to be one of its kind.
macro_rules! public_area_of {
    ($key:ident) => {
        impl $key {
            /// The key's whole public area.
            pub fn public_area(&self) -> &PublicArea {
                &self.0
            }

            /// The key's name.
            pub fn name(&self) -> $crate::TpmName {
                self.0.name()
            }

            /// The key as an X.509 SubjectPublicKeyInfo in DER.
            pub fn subject_public_key_info(&self) -> Vec<u8> {
                self.0.subject_public_key_info()
            }
        }
    };
}
pub(crate) use public_area_of;

impl fmt::Debug for PublicArea {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublicArea")
            .field("name", &self.name())
            .field("attributes", &self.attributes)
            .field("parameters", &self.parameters)
            .finish_non_exhaustive()
    }
}

impl ObjectAttributes {
    /// The key never leaves this TPM.
    pub const FIXED_TPM: Self = Self(0x0000_0002);
    /// Contexts of the key do not survive `TPM2_Startup(CLEAR)`.
    pub const ST_CLEAR: Self = Self(0x0000_0004);
    /// The key never gets another parent.
    pub const FIXED_PARENT: Self = Self(0x0000_0010);
    /// The TPM made the private part itself.
    pub const SENSITIVE_DATA_ORIGIN: Self = Self(0x0000_0020);
    /// The authorization value is enough to use the key.
    pub const USER_WITH_AUTH: Self = Self(0x0000_0040);
    /// Administrative use needs the policy.
    pub const ADMIN_WITH_POLICY: Self = Self(0x0000_0080);
    /// Not protected against guessing of its authorization value.
    pub const NO_DA: Self = Self(0x0000_0400);
    /// Duplication needs an encrypted form.
    pub const ENCRYPTED_DUPLICATION: Self = Self(0x0000_0800);
    /// Signs and decrypts only what the TPM itself formed.
    pub const RESTRICTED: Self = Self(0x0001_0000);
    /// May decrypt.
    pub const DECRYPT: Self = Self(0x0002_0000);
    /// May sign (or, for symmetric keys, encrypt).
    pub const SIGN: Self = Self(0x0004_0000);
    /// Signs only through `TPM2_CertifyX509`.
    pub const X509_SIGN: Self = Self(0x0008_0000);

    /// Wraps the marshalled value.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The marshalled value.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether every attribute of `other` is set here.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These attributes and those of `other`.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for ObjectAttributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [(ObjectAttributes, &str); 12] = [
            (ObjectAttributes::FIXED_TPM, "fixedTPM"),
            (ObjectAttributes::ST_CLEAR, "stClear"),
            (ObjectAttributes::FIXED_PARENT, "fixedParent"),
            (
                ObjectAttributes::SENSITIVE_DATA_ORIGIN,
                "sensitiveDataOrigin",
            ),
            (ObjectAttributes::USER_WITH_AUTH, "userWithAuth"),
            (ObjectAttributes::ADMIN_WITH_POLICY, "adminWithPolicy"),
            (ObjectAttributes::NO_DA, "noDA"),
            (
                ObjectAttributes::ENCRYPTED_DUPLICATION,
                "encryptedDuplication",
            ),
            (ObjectAttributes::RESTRICTED, "restricted"),
            (ObjectAttributes::DECRYPT, "decrypt"),
            (ObjectAttributes::SIGN, "sign"),
            (ObjectAttributes::X509_SIGN, "x509sign"),
        ];
        let mut separator = "";
        for (attribute, name) in NAMES {
            if self.contains(attribute) {
                write!(f, "{separator}{name}")?;
                separator = "|";
            }
        }
        Ok(())
    }
}

impl fmt::Debug for ObjectAttributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectAttributes(0x{:08x} {self})", self.0)
    }
}

/// A structure that is written back differently could have two names for one key.
fn check_canonical(public: &TpmtPublic, given: &[u8]) -> Result<(), PublicAreaError> {
    let mut buffer = [0; MAX_PUBLIC_AREA];
    let mut writer = TpmWriter::new(&mut buffer);
    public
        .marshal(&mut writer)
        .map_err(PublicAreaError::Malformed)?;
    if writer.as_bytes() == given {
        Ok(())
    } else {
        Err(PublicAreaError::NotCanonical)
    }
}

fn read_key(public: &TpmtPublic) -> Result<(KeyParameters, Vec<u8>), PublicAreaError> {
    match (&public.parameters, &public.unique) {
        (TpmuPublicParms::Rsa(rsa), TpmuPublicId::Rsa(modulus)) => {
            let bits = rsa.key_bits.value();
            let exponent = match rsa.exponent.value() {
                0 => DEFAULT_EXPONENT,
                exponent => exponent,
            };
            let public_key = rsa_public_key(bits, exponent, modulus)?;
            let parameters = KeyParameters::Rsa {
                bits,
                scheme: read_scheme(rsa.scheme.scheme, &rsa.scheme.details),
                protection: read_protection(&rsa.symmetric),
            };
            Ok((parameters, public_key))
        }
        (TpmuPublicParms::Ecc(ecc), TpmuPublicId::Ecc(point)) => {
            if ecc.curve_id != TpmEccCurve::NistP256 {
                return Err(PublicAreaError::Curve {
                    curve: ecc.curve_id.value(),
                });
            }
            let parameters = KeyParameters::P256 {
                scheme: read_scheme(ecc.scheme.scheme, &ecc.scheme.details),
                protection: read_protection(&ecc.symmetric),
            };
            Ok((parameters, p256_point(&point.x, &point.y)?))
        }
        _ => Err(PublicAreaError::KeyType {
            found: public.object_type.value(),
        }),
    }
}

fn rsa_public_key(bits: u16, exponent: u32, modulus: &[u8]) -> Result<Vec<u8>, PublicAreaError> {
    let refused = || PublicAreaError::RsaKey {
        bits,
        length: modulus.len(),
        exponent,
    };
    let full_length = modulus.first().is_some_and(|first| first & 0x80 != 0)
        && modulus.len() * 8 == usize::from(bits);
    if !matches!(bits, 2048 | 3072 | 4096) || !full_length {
        return Err(refused());
    }
    let modulus = rsa::BigUint::from_bytes_be(modulus);
    let key =
        rsa::RsaPublicKey::new(modulus, rsa::BigUint::from(exponent)).map_err(|_| refused())?;
    let der = key.to_pkcs1_der().map_err(|_| refused())?;
    Ok(der.into_vec())
}

/// Some TPMs strip leading zeros of a coordinate; the SEC 1 form has them.
fn p256_point(x: &[u8], y: &[u8]) -> Result<Vec<u8>, PublicAreaError> {
    let mut point = vec![0x04];
    for coordinate in [x, y] {
        let padding = P256_COORDINATE
            .checked_sub(coordinate.len())
            .ok_or(PublicAreaError::Point)?;
        point.resize(point.len() + padding, 0);
        point.extend_from_slice(coordinate);
    }
    p256::PublicKey::from_sec1_bytes(&point).map_err(|_| PublicAreaError::Point)?;
    Ok(point)
}

fn read_scheme(scheme: TpmAlgId, details: &TpmuAsymScheme) -> KeyScheme {
    match (scheme, details) {
        (TpmAlgId::Null, _) => KeyScheme::Any,
        (scheme, TpmuAsymScheme::Hash(details)) => KeyScheme::Fixed {
            scheme: scheme.value(),
            hash: Some(details.hash_alg.value()),
        },
        (scheme, TpmuAsymScheme::Null) => KeyScheme::Fixed {
            scheme: scheme.value(),
            hash: None,
        },
    }
}

fn read_protection(symmetric: &TpmtSymDefObject) -> ChildProtection {
    match (symmetric.algorithm, symmetric.key_bits, symmetric.mode) {
        (TpmAlgId::Null, ..) => ChildProtection::None,
        (TpmAlgId::Aes, TpmuSymKeyBits::Aes(bits), TpmuSymMode::Aes(TpmAlgId::Cfb)) => {
            ChildProtection::AesCfb { bits: bits.value() }
        }
        _ => ChildProtection::Other,
    }
}
