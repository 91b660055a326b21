//! Names of devices.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::identifiers::{Domain, IdentifierError, MAX_DEVICE_PATH, string_serde};

/// The full name of a device: a path in its issuer's domain, e.g.
/// `spiffe://demo.example/plant-7/meter-12`. The parts of the path before the last are groups, which a
/// policy can name as a whole.
///
/// It is a SPIFFE ID and no DNS name: what names a device never names a host, nor a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceName {
    path: String,
    domain: Domain,
}

/// The scheme of devices' names (SPIFFE ID §2).
pub const SCHEME: &str = "spiffe://";

impl DeviceName {
    /// Names the device `path` in `domain`.
    pub fn new(path: &str, domain: &Domain) -> Result<Self, IdentifierError> {
        Self::check_path(path)?;
        Ok(Self {
            path: path.to_owned(),
            domain: domain.clone(),
        })
    }

    /// Whether a device can have this path, in whatever domain.
    pub fn check_path(path: &str) -> Result<(), IdentifierError> {
        if path.len() <= MAX_DEVICE_PATH && path.split('/').all(is_part) {
            return Ok(());
        }
        Err(IdentifierError::Device {
            value: path.to_owned(),
        })
    }

    /// The device's own path.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The issuer's domain.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }
}

fn is_part(part: &str) -> bool {
    part.starts_with(|c: char| c.is_ascii_alphanumeric())
        && part
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.domain, self.path)
    }
}

impl FromStr for DeviceName {
    type Err = IdentifierError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (domain, path) = text
            .strip_prefix(SCHEME)
            .and_then(|rest| rest.split_once('/'))
            .ok_or_else(|| IdentifierError::Device {
                value: text.to_owned(),
            })?;
        Self::new(path, &domain.parse()?)
    }
}

string_serde!(DeviceName);

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn a_device_s_name_has_one_spelling() {
        let name: DeviceName = "spiffe://demo.example/plant-7/meter-12".parse().unwrap();
        assert_eq!(name.path(), "plant-7/meter-12");
        assert_eq!(name.domain().as_str(), "demo.example");
        assert_eq!(DeviceName::new(name.path(), name.domain()).unwrap(), name);
        assert_eq!(name.to_string().parse(), Ok(name));
    }

    #[test]
    fn paths_that_leave_their_place_or_mislead_are_refused() {
        let domain: Domain = "demo.example".parse().unwrap();
        for path in [
            "", "/", "/a", "a/", "a//b", "..", "a/../b", ".", "-a", "a b", "a?b", "a#b", "a%2fb",
            "a*", "ä", "a\n",
        ] {
            assert!(DeviceName::new(path, &domain).is_err(), "{path:?}");
        }
        assert!(DeviceName::new(&"d".repeat(64), &domain).is_ok());
        assert!(DeviceName::new(&"d".repeat(65), &domain).is_err());
        for text in [
            "demo.example/a",
            "https://demo.example/a",
            "spiffe://demo.example",
            "spiffe:///a",
            "spiffe://Demo.example/a",
            "SPIFFE://demo.example/a",
        ] {
            assert!(text.parse::<DeviceName>().is_err(), "{text}");
        }
    }
}
