//! The names that appear in certificates, evidence and records: validated once, at the border.
//!
//! Every limit here has the same reason: the TBSCertificate of a vIK must fit into what one
//! `TPM2_Hash` accepts (see [`crate::profile::MAX_TBS`]), with every name at its longest.

use std::fmt;
use std::str::FromStr;

use minicbor::decode::Error as DecodeError;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decode, Decoder, Encode, Encoder};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// Identifies one virtual machine; it outlives every vRoT the machine is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VmId(Uuid);

/// Identifies one virtualized root of trust.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VrotId(Uuid);

/// Whose VM it is: 1 to 64 characters out of letters, digits, `.`, `_` and `-`, the first of which
/// is a letter or digit (`.` and `..` would be folders, `-x` an option).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant(String);

/// Counts the identities a vRoT lineage has had: a clone or a reset gets the next one.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    Encode,
    Decode,
)]
#[serde(transparent)]
#[cbor(transparent)]
pub struct Generation(#[n(0)] u64);

/// The DNS domain an identity issuer hands out host names in, e.g. `demo.example`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(String);

/// The full name of a host: one label in its issuer's domain, e.g. `host-1.demo.example`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName {
    label: String,
    domain: Domain,
}

/// Why a name was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdentifierError {
    /// A device's name of wrong length or alphabet.
    #[error(
        "`{value}` is no device's name: use 1 to {MAX_DEVICE_PATH} letters, digits, `.`, `_` and `-`, \
         in parts that begin with a letter or digit, with `/` between them; in full \
         spiffe://<domain>/<name>"
    )]
    Device {
        /// What was given.
        value: String,
    },
    /// A digest that is not 64 hexadecimal digits.
    #[error("`{value}` is no SHA-256 value: write 64 hexadecimal digits")]
    Digest {
        /// What was given.
        value: String,
    },
    /// A DNS label with a character outside lower-case letters, digits and inner hyphens.
    #[error(
        "`{label}` is no DNS label: use 1 to 63 lower-case letters, digits and hyphens, \
         with no hyphen at either end"
    )]
    Label {
        /// The offending label.
        label: String,
    },
    /// A host name without a domain part.
    #[error("`{value}` has no domain: write <label>.<domain>, e.g. host-1.demo.example")]
    NoDomain {
        /// What was given.
        value: String,
    },
    /// A tenant name of wrong length or alphabet.
    #[error(
        "`{value}` is no tenant name: use 1 to {MAX_TENANT} letters, digits, `.`, `_` and `-`, \
         beginning with a letter or digit"
    )]
    Tenant {
        /// What was given.
        value: String,
    },
    /// A DNS name longer than an X.509 common name may be.
    #[error("`{value}` has {length} characters, at most {limit} are possible: shorten it")]
    TooLong {
        /// What was given.
        value: String,
        /// Its length.
        length: usize,
        /// The limit that applies to it.
        limit: usize,
    },
    /// The nil or the max UUID, which stand for "none" (RFC 9562 §5.9 and §5.10).
    #[error("`{value}` identifies nothing: use a UUID of the VM's own")]
    NoUuid {
        /// What was given.
        value: String,
    },
    /// Something that is not a hyphenated UUID.
    #[error("`{value}` is no UUID: write it as xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx")]
    Uuid {
        /// What was given.
        value: String,
    },
}

/// `ub-common-name` of X.520 (RFC 5280 appendix A.1): a host's name is its certificate's
/// common name.
pub const MAX_HOST_NAME: usize = 64;

/// A label of at least one character and a dot must fit before it.
pub const MAX_DOMAIN: usize = MAX_HOST_NAME - 2;

/// Keeps the vIK certificate within one `TPM2_Hash`.
pub const MAX_TENANT: usize = 64;

/// `ub-common-name` (RFC 5280 appendix A.1): a device's path is its certificate's common name.
pub const MAX_DEVICE_PATH: usize = 64;

/// RFC 1035 §2.3.4.
const MAX_LABEL: usize = 63;

/// Gives the two UUID newtypes the same behaviour.
macro_rules! uuid_identifier {
    ($name:ident) => {
        impl $name {
            /// Wraps an existing UUID.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// A fresh random identifier (UUID version 4).
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }

            /// The identifier as a UUID.
            pub const fn as_uuid(&self) -> &Uuid {
                &self.0
            }

            /// The 16 bytes of the UUID.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = IdentifierError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let refused = || IdentifierError::Uuid {
                    value: text.to_owned(),
                };
                // `Uuid` also reads braces, URNs and bare digits; one spelling is enough.
                if text.len() != uuid::fmt::Hyphenated::LENGTH {
                    return Err(refused());
                }
                let uuid = Uuid::try_parse(text).map_err(|_| refused())?;
                if uuid.is_nil() || uuid.is_max() {
                    return Err(IdentifierError::NoUuid {
                        value: text.to_owned(),
                    });
                }
                Ok(Self(uuid))
            }
        }

        impl<C> Encode<C> for $name {
            fn encode<W: Write>(
                &self,
                encoder: &mut Encoder<W>,
                _: &mut C,
            ) -> Result<(), EncodeError<W::Error>> {
                encoder.bytes(self.0.as_bytes())?.ok()
            }
        }

        impl<'b, C> Decode<'b, C> for $name {
            fn decode(decoder: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
                let position = decoder.position();
                let bytes = decoder.bytes()?;
                match Uuid::from_slice(bytes) {
                    Ok(uuid) if uuid.is_nil() || uuid.is_max() => {
                        Err(DecodeError::message("this UUID identifies nothing").at(position))
                    }
                    Ok(uuid) => Ok(Self(uuid)),
                    Err(_) => Err(DecodeError::message("a UUID has 16 bytes").at(position)),
                }
            }
        }

        string_serde!($name);
    };
}

/// Text in, text out: serde through `Display` and `FromStr`.
macro_rules! string_serde {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use string_serde;

/// CBOR text through `Display` and `FromStr`.
macro_rules! string_cbor {
    ($name:ident) => {
        impl<C> Encode<C> for $name {
            fn encode<W: Write>(
                &self,
                encoder: &mut Encoder<W>,
                _: &mut C,
            ) -> Result<(), EncodeError<W::Error>> {
                encoder.str(&self.to_string())?.ok()
            }
        }

        impl<'b, C> Decode<'b, C> for $name {
            fn decode(decoder: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
                let position = decoder.position();
                decoder
                    .str()?
                    .parse()
                    .map_err(|error| DecodeError::custom(error).at(position))
            }
        }
    };
}

uuid_identifier!(VmId);
uuid_identifier!(VrotId);

impl Tenant {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Tenant {
    type Err = IdentifierError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let begins_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !begins_well || text.len() > MAX_TENANT || !text.bytes().all(allowed) {
            return Err(IdentifierError::Tenant {
                value: text.to_owned(),
            });
        }
        Ok(Self(text.to_owned()))
    }
}

string_serde!(Tenant);
string_cbor!(Tenant);

impl Generation {
    /// Wraps a number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The generation after this one; `None` once 64 bits are used up.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Domain {
    /// The domain as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Domain {
    type Err = IdentifierError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        within(text, MAX_DOMAIN)?;
        for label in text.split('.') {
            check_label(label)?;
        }
        Ok(Self(text.to_owned()))
    }
}

string_serde!(Domain);
string_cbor!(Domain);

impl HostName {
    /// Names the host `label` in `domain`.
    pub fn new(label: &str, domain: &Domain) -> Result<Self, IdentifierError> {
        check_label(label)?;
        let name = Self {
            label: label.to_owned(),
            domain: domain.clone(),
        };
        within(&name.to_string(), MAX_HOST_NAME)?;
        Ok(name)
    }

    /// The host's own label.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The issuer's domain.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// The DNS name of a vRoT on this host: `<vrot>.<host>.<domain>`.
    pub fn vrot_name(&self, vrot: &VrotId) -> String {
        format!("{vrot}.{self}")
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.label, self.domain)
    }
}

impl FromStr for HostName {
    type Err = IdentifierError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (label, domain) = text
            .split_once('.')
            .ok_or_else(|| IdentifierError::NoDomain {
                value: text.to_owned(),
            })?;
        Self::new(label, &domain.parse()?)
    }
}

string_serde!(HostName);
string_cbor!(HostName);

fn within(text: &str, limit: usize) -> Result<(), IdentifierError> {
    if text.len() > limit {
        return Err(IdentifierError::TooLong {
            value: text.to_owned(),
            length: text.len(),
            limit,
        });
    }
    Ok(())
}

/// RFC 1123 §2.1, lower case only: two spellings of one name would be two identities.
fn check_label(label: &str) -> Result<(), IdentifierError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if label.is_empty()
        || label.len() > MAX_LABEL
        || label.starts_with('-')
        || label.ends_with('-')
        || !label.bytes().all(allowed)
    {
        return Err(IdentifierError::Label {
            label: label.to_owned(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn a_host_name_is_one_label_in_its_domain() {
        let host: HostName = "host-1.demo.example".parse().unwrap();
        assert_eq!(host.label(), "host-1");
        assert_eq!(host.domain().as_str(), "demo.example");
        assert_eq!(host.to_string(), "host-1.demo.example");
        assert_eq!(HostName::new("host-1", host.domain()).unwrap(), host);
    }

    #[test]
    fn names_that_dns_or_a_certificate_cannot_carry_are_refused() {
        for text in ["", "-a", "a-", "A", "a b", "a..b", ".a", "a.", "a_b", "ä"] {
            assert!(text.parse::<Domain>().is_err(), "{text}");
        }
        assert_eq!(
            "host".parse::<HostName>(),
            Err(IdentifierError::NoDomain {
                value: "host".into()
            })
        );
        let domain: Domain = format!("{}.{}", "d".repeat(30), "e".repeat(31))
            .parse()
            .unwrap();
        assert!(HostName::new("h", &domain).is_ok());
        assert!(matches!(
            HostName::new("hh", &domain),
            Err(IdentifierError::TooLong { length: 65, .. })
        ));
    }

    #[test]
    fn a_tenant_has_a_bounded_plain_name() {
        assert!("Acme_Corp.eu-1".parse::<Tenant>().is_ok());
        assert!("t".repeat(64).parse::<Tenant>().is_ok());
        assert!("t".repeat(65).parse::<Tenant>().is_err());
        assert!("".parse::<Tenant>().is_err());
        for bad in ["a/b", ".", "..", "-x", "_x", "a\u{202e}b"] {
            assert!(bad.parse::<Tenant>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_identifier_has_one_spelling_out_and_hyphens_in() {
        let id: VmId = "6F1C2B3A-0000-4000-8000-00000000000a".parse().unwrap();
        assert_eq!(id.to_string(), "6f1c2b3a-0000-4000-8000-00000000000a");
        assert!("6f1c2b3a00004000800000000000000a".parse::<VmId>().is_err());
        assert!(
            "{6f1c2b3a-0000-4000-8000-00000000000a}"
                .parse::<VmId>()
                .is_err()
        );
    }

    #[test]
    fn a_uuid_that_stands_for_none_identifies_nothing() {
        for none in [uuid::Uuid::nil(), uuid::Uuid::max()] {
            let refused = none.to_string().parse::<VmId>();
            assert!(matches!(refused, Err(IdentifierError::NoUuid { .. })));
            let cbor = minicbor::to_vec(VmId::from_uuid(none)).unwrap();
            assert!(minicbor::decode::<VmId>(&cbor).is_err());
        }
    }

    #[test]
    fn identifiers_survive_json_and_cbor() {
        let host: HostName = "host-1.demo.example".parse().unwrap();
        let json = serde_json::to_string(&(VrotId::random(), &host, Generation::new(7))).unwrap();
        let back: (VrotId, HostName, Generation) = serde_json::from_str(&json).unwrap();
        assert_eq!((back.1, back.2), (host.clone(), Generation::new(7)));
        assert!(serde_json::from_str::<HostName>("\"Host.demo\"").is_err());

        let bytes = minicbor::to_vec(&host).unwrap();
        assert_eq!(minicbor::decode::<HostName>(&bytes).unwrap(), host);
    }
}
