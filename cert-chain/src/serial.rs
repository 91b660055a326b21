//! Serial numbers, by which an issuer tells its certificates apart and revokes them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::identifiers::string_serde;

/// A certificate's serial number: the octets of the INTEGER in DER, shown in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CertificateSerial(Vec<u8>);

/// A text that is no serial number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{value}` is no serial number: write at most {MAX_OCTETS} octets in hexadecimal, as `openssl \
     x509 -serial` does"
)]
pub struct SerialError {
    /// What was given.
    value: String,
}

/// RFC 5280 §4.1.2.2, and one for the sign.
const MAX_OCTETS: usize = 21;

impl CertificateSerial {
    /// Takes the octets of the INTEGER.
    pub(crate) fn new(octets: &[u8]) -> Self {
        Self(octets.to_vec())
    }

    /// The octets of the INTEGER.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for CertificateSerial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl FromStr for CertificateSerial {
    type Err = SerialError;

    /// Reads hexadecimal, with or without colons between the octets. A positive number is meant, so
    /// the octet that keeps the sign may be left out.
    fn from_str(text: &str) -> Result<Self, SerialError> {
        let error = || SerialError {
            value: text.chars().take(3 * MAX_OCTETS).collect(),
        };
        let mut octets = hex::decode(text.replace(':', "")).map_err(|_| error())?;
        while let [0, 0..=0x7f, ..] = *octets {
            octets.remove(0);
        }
        if octets.first().is_some_and(|first| first & 0x80 != 0) {
            octets.insert(0, 0);
        }
        if octets.is_empty() || octets.len() > MAX_OCTETS {
            return Err(error());
        }
        Ok(Self(octets))
    }
}

string_serde!(CertificateSerial);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_number_is_read_however_tools_write_it() {
        let octets = |text: &str| text.parse().map(|CertificateSerial(octets)| octets);
        assert_eq!(octets("41C2"), Ok(vec![0x41, 0xc2]));
        assert_eq!(octets("41:c2"), Ok(vec![0x41, 0xc2]));
        // OpenSSL leaves out the octet of the sign, and DER has it.
        assert_eq!(octets("C2"), Ok(vec![0, 0xc2]));
        assert_eq!(octets("00c2"), Ok(vec![0, 0xc2]));
        assert_eq!(octets("0041"), Ok(vec![0x41]));
        assert_eq!(octets("00"), Ok(vec![0]));
        for wrong in ["", "4", "serial", &"41".repeat(22)] {
            assert!(octets(wrong).is_err(), "{wrong}");
        }
    }
}
