//! Hash values in files: `sha384:` and hexadecimal digits.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::hash::{HashAlgorithm, HashValue};
use crate::identifiers::string_serde;

/// A hash value with its algorithm's name in front, as files have it. Read without a name it is a
/// SHA-256 value, as policies were written before other banks were supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedHash(pub HashValue);

/// What is no hash value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashTextError {
    /// The name in front is none that is known.
    #[error("{given:?} is no hash algorithm: write sha256, sha384 or sha512")]
    Algorithm {
        /// The beginning of what was given.
        given: String,
    },
    /// Not hexadecimal, or as long as another algorithm's values.
    #[error(
        "{given:?} is no {algorithm} value: write `{algorithm}:` and {} hexadecimal digits",
        2 * algorithm.digest_length()
    )]
    Value {
        /// The algorithm that was named, or SHA-256.
        algorithm: HashAlgorithm,
        /// The beginning of what was given.
        given: String,
    },
}

/// So much of a wrong text is repeated in an error: a SHA-512 value and a little.
const SHOWN: usize = 140;

/// Reads hexadecimal digits, for where the algorithm is named beside them.
pub fn from_hex(algorithm: HashAlgorithm, digits: &str) -> Result<HashValue, HashTextError> {
    hex::decode(digits)
        .ok()
        .and_then(|bytes| HashValue::new(algorithm, &bytes))
        .ok_or_else(|| HashTextError::Value {
            algorithm,
            given: digits.chars().take(SHOWN).collect(),
        })
}

impl From<HashValue> for NamedHash {
    fn from(value: HashValue) -> Self {
        Self(value)
    }
}

impl fmt::Display for NamedHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0.algorithm(), self.0)
    }
}

impl FromStr for NamedHash {
    type Err = HashTextError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (algorithm, digits) = match text.split_once(':') {
            None => (HashAlgorithm::Sha256, text),
            Some((name, digits)) => {
                let algorithm = name.parse().map_err(|_| HashTextError::Algorithm {
                    given: name.chars().take(SHOWN).collect(),
                })?;
                (algorithm, digits)
            }
        };
        from_hex(algorithm, digits).map(Self)
    }
}

string_serde!(NamedHash);

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn a_value_is_written_with_its_algorithm_and_read_as_sha256_without_one() {
        let text = format!("sha384:{}", "7a".repeat(48));
        let NamedHash(value) = text.parse().unwrap();
        assert_eq!(value, HashAlgorithm::Sha384.filled(0x7a));
        assert_eq!(NamedHash(value).to_string(), text);

        let bare = "7a".repeat(32);
        let NamedHash(value) = bare.parse().unwrap();
        assert_eq!(value, HashAlgorithm::Sha256.filled(0x7a));
        assert_eq!(NamedHash(value).to_string(), format!("sha256:{bare}"));
    }

    #[test]
    fn what_is_no_value_is_refused_with_what_to_write() {
        for (text, part) in [
            ("7a".repeat(48), "`sha256:` and 64"),
            (format!("sha384:{}", "7a".repeat(32)), "`sha384:` and 96"),
            ("sha3:7a".to_owned(), "write sha256, sha384 or sha512"),
            ("sha512:\u{1b}[2J".to_owned(), "`sha512:` and 128"),
            ("\u{1b}[2J:00".to_owned(), "write sha256"),
            (String::new(), "sha256"),
        ] {
            let error = text.parse::<NamedHash>().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
            assert!(!error.contains('\u{1b}'), "{error:?}");
        }
    }
}
