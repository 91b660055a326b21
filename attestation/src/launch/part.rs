//! One part of a launch: what it is called, and what was measured.

use std::fmt;
use std::str::FromStr;

use cert_chain::Digest32;
use minicbor::data::Type;
use minicbor::decode::Error as DecodeError;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decode, Decoder, Encode, Encoder};
use serde::{Deserialize, Deserializer};

/// A part with its value.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LaunchPart {
    /// What it is.
    #[n(0)]
    pub id: PartId,
    /// What was measured.
    #[n(1)]
    pub value: PartValue,
}

/// What a part is called: a kind (`kernel`, `machine`), or a kind of which a VM can have several
/// with a name of its own (`disk:root`).
///
/// A kind has lower-case letters, digits and hyphens; a name letters, digits, `.`, `_` and `-`. At
/// most 48 characters in all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartId(String);

/// What was measured.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PartValue {
    /// The SHA-256 value of a file's contents, or of a text that is not told.
    Digest(Digest32),
    /// A setting, as it is.
    Text(PartText),
}

/// A setting: 1 to 64 printable ASCII characters that do not begin with `sha256:`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartText(String);

/// A text that is no part of a launch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PartError {
    /// No name of a part.
    #[error(
        "`{found}` names no part of a launch: names are like `kernel` or `disk:root`, of at most \
         {MAX_ID} letters, digits, hyphens, and after the colon also dots and underscores"
    )]
    Id {
        /// What was given.
        found: String,
    },
    /// No digest, after it was said that one follows.
    #[error("`{found}` is no SHA-256 value: `sha256:` is followed by 64 hexadecimal digits")]
    Digest {
        /// What was given.
        found: String,
    },
    /// No setting.
    #[error(
        "`{found}` is no value of a part of a launch: a value has 1 to {MAX_TEXT} printable ASCII \
         characters and does not begin with `sha256:`; have a longer one measured as a file"
    )]
    Text {
        /// What was given.
        found: String,
    },
}

/// Characters of a part's name.
const MAX_ID: usize = 48;
/// Characters of a setting.
const MAX_TEXT: usize = 64;
/// Before a digest in texts.
const DIGEST: &str = "sha256:";
/// What is shown of a text that is refused.
const SHOWN: usize = 80;

impl PartId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PartId {
    type Err = PartError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, name) = match text.split_once(':') {
            Some((kind, name)) => (kind, Some(name)),
            None => (text, None),
        };
        let of_kind = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let of_name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let is_name = |name: &str| !name.is_empty() && name.chars().all(of_name);
        let is_id = text.len() <= MAX_ID
            && !kind.is_empty()
            && kind.chars().all(of_kind)
            && name.is_none_or(is_name);
        match is_id {
            true => Ok(Self(text.to_owned())),
            false => Err(PartError::Id { found: shown(text) }),
        }
    }
}

impl FromStr for PartText {
    type Err = PartError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let of_text = |c: char| c == ' ' || c.is_ascii_graphic();
        let is_text = (1..=MAX_TEXT).contains(&text.len())
            && text.chars().all(of_text)
            && !text.starts_with(DIGEST);
        match is_text {
            true => Ok(Self(text.to_owned())),
            false => Err(PartError::Text { found: shown(text) }),
        }
    }
}

impl FromStr for PartValue {
    type Err = PartError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some(digits) = text.strip_prefix(DIGEST) else {
            return text.parse().map(Self::Text);
        };
        let digest = digits
            .parse()
            .map_err(|_| PartError::Digest { found: shown(text) })?;
        Ok(Self::Digest(digest))
    }
}

/// The beginning of a text of any length.
fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

impl fmt::Display for PartId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for PartValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Digest(digest) => write!(f, "{DIGEST}{digest}"),
            Self::Text(PartText(text)) => f.write_str(text),
        }
    }
}

impl fmt::Display for LaunchPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.id, self.value)
    }
}

impl<'de> Deserialize<'de> for PartId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for PartValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl<C> Encode<C> for PartId {
    fn encode<W: Write>(
        &self,
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        encoder.str(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for PartId {
    fn decode(decoder: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
        parsed(decoder)
    }
}

impl<C> Encode<C> for PartValue {
    fn encode<W: Write>(
        &self,
        encoder: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        match self {
            Self::Digest(digest) => digest.encode(encoder, context),
            Self::Text(PartText(text)) => encoder.str(text)?.ok(),
        }
    }
}

impl<'b, C> Decode<'b, C> for PartValue {
    fn decode(decoder: &mut Decoder<'b>, context: &mut C) -> Result<Self, DecodeError> {
        match decoder.datatype()? {
            Type::Bytes => Digest32::decode(decoder, context).map(Self::Digest),
            _ => parsed(decoder).map(Self::Text),
        }
    }
}

fn parsed<T: FromStr<Err = PartError>>(decoder: &mut Decoder<'_>) -> Result<T, DecodeError> {
    let position = decoder.position();
    let text = decoder.str()?;
    text.parse()
        .map_err(|error: PartError| DecodeError::message(error.to_string()).at(position))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn parts_have_names_that_anybody_can_type() {
        for good in ["kernel", "cpu-model", "disk:root.img", "value:A_1"] {
            assert_eq!(good.parse::<PartId>().unwrap().to_string(), good);
        }
        let long = "k".repeat(MAX_ID + 1);
        for bad in [
            "",
            ":",
            "disk:",
            ":root",
            "Kernel",
            "ker nel",
            "disk:a:b",
            "disk:a/b",
            "kern\u{e9}l",
            &long,
        ] {
            assert!(bad.parse::<PartId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_value_is_a_digest_where_it_says_so_and_else_a_short_text() {
        let digest = Digest32::of(b"kernel");
        let text = format!("sha256:{digest}");
        assert_eq!(text.parse(), Ok(PartValue::Digest(digest)));
        assert_eq!(PartValue::Digest(digest).to_string(), text);
        assert!(matches!("pc-q35-7.2".parse(), Ok(PartValue::Text(_))));
        let long = "x".repeat(MAX_TEXT + 1);
        for bad in [
            "",
            "sha256:",
            "sha256:00",
            "a\nb",
            "\u{1b}[2J",
            "büro",
            &long,
        ] {
            assert!(bad.parse::<PartValue>().is_err(), "{bad}");
        }
    }
}
