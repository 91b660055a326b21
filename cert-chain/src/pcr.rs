//! Platform configuration registers: which, and their values in one bank.

use std::collections::BTreeMap;
use std::fmt;

use sha2::{Digest, Sha256};

use crate::digest::Digest32;
use crate::hash::{HashAlgorithm, HashValue};
use crate::hash_text::{HashTextError, NamedHash, from_hex};

/// A set of PCRs. The bank is named where the set is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PcrSelection(u32);

/// A PCR number that no PC-client TPM has.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("there is no PCR {pcr}: PCRs are numbered 0 to 23")]
pub struct PcrSelectionError {
    /// The number given.
    pub pcr: u8,
}

/// Values of PCRs, by number. All are of one bank: what a TPM quotes, and what an operator
/// approves, is never put together from several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PcrValues {
    bank: HashAlgorithm,
    values: BTreeMap<u8, HashValue>,
}

/// Why values do not belong together.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PcrValuesError {
    /// A PCR that does not exist.
    #[error(transparent)]
    Selection(#[from] PcrSelectionError),
    /// A value of another bank.
    #[error("PCR {pcr} has a value of the {found} bank among values of the {bank} bank")]
    OtherBank {
        /// The PCR.
        pcr: u8,
        /// The bank of its value.
        found: HashAlgorithm,
        /// The bank of the others.
        bank: HashAlgorithm,
    },
    /// No value.
    #[error("PCR {pcr}")]
    Value {
        /// The PCR.
        pcr: u8,
        /// What is wrong with its value.
        #[source]
        source: HashTextError,
    },
}

/// The banks that quotes, approvals and references may use, in the order in which they are taken
/// where a TPM has several: SHA-256 first, since every other party knows it. SHA-1 is read and
/// shown, and nothing is decided by it.
pub const BANKS: [HashAlgorithm; 3] = [
    HashAlgorithm::Sha256,
    HashAlgorithm::Sha384,
    HashAlgorithm::Sha512,
];
/// PCRs of a PC-client TPM (TCG PC Client Platform TPM Profile §4.6).
pub const PCR_COUNT: u8 = 24;
/// The PCRs into which every firmware measures at least a separator (TCG PC Client Platform
/// Firmware Profile §3.3.4 and §10.4.1): as long as none of them changed, nothing measures into
/// the bank.
const FIRMWARE_PCRS: std::ops::RangeInclusive<u8> = 0..=7;
/// PCR 0 starts with the locality of `TPM2_Startup` in its last byte, or with 4 after an H-CRTM
/// sequence (TPM 2.0 Part 1 §34.3).
const LARGEST_LOCALITY: u8 = 4;

impl PcrSelection {
    /// Selects these PCRs.
    pub fn new(pcrs: impl IntoIterator<Item = u8>) -> Result<Self, PcrSelectionError> {
        let mut bits = 0;
        for pcr in pcrs {
            if pcr >= PCR_COUNT {
                return Err(PcrSelectionError { pcr });
            }
            bits |= 1 << pcr;
        }
        Ok(Self(bits))
    }

    /// The PCRs that show whether anything measures into a bank.
    pub fn of_firmware() -> Self {
        Self(FIRMWARE_PCRS.fold(0, |bits, pcr| bits | 1 << pcr))
    }

    /// The selected PCRs in rising order.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..PCR_COUNT).filter(move |pcr| self.0 & (1 << pcr) != 0)
    }

    /// Whether no PCR is selected.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those for which this holds.
    #[must_use]
    pub fn filter(self, holds: impl Fn(u8) -> bool) -> Self {
        let pcrs = self.iter().filter(|pcr| holds(*pcr));
        Self(pcrs.fold(0, |bits, pcr| bits | 1 << pcr))
    }

    /// Whether the PCR is selected.
    pub fn contains(self, pcr: u8) -> bool {
        pcr < PCR_COUNT && self.0 & (1 << pcr) != 0
    }

    /// As `TPML_PCR_SELECTION` with one bank and three octets of bits, the form in which TPMs
    /// and their tools write it.
    pub fn to_bytes(self, bank: HashAlgorithm) -> Vec<u8> {
        let [low, middle, high, _] = self.0.to_le_bytes();
        let mut bytes = 1u32.to_be_bytes().to_vec();
        bytes.extend_from_slice(&bank.identifier().to_be_bytes());
        bytes.extend_from_slice(&[3, low, middle, high]);
        bytes
    }
}

/// The PCRs' numbers, with commas between them.
impl fmt::Display for PcrSelection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.iter().map(|pcr| pcr.to_string()).collect();
        f.write_str(&numbers.join(","))
    }
}

impl PcrValues {
    /// No values yet.
    pub fn new(bank: HashAlgorithm) -> Self {
        Self {
            bank,
            values: BTreeMap::new(),
        }
    }

    /// Values as they stand in a file: hexadecimal digits, the bank named beside them, and perhaps before
    /// each value as well, as policies have it.
    pub fn from_hex<'a>(
        bank: HashAlgorithm,
        values: impl IntoIterator<Item = (u8, &'a str)>,
    ) -> Result<Self, PcrValuesError> {
        let mut all = Self::new(bank);
        for (pcr, digits) in values {
            let value = match digits.contains(':') {
                true => digits.parse().map(|NamedHash(value)| value),
                false => from_hex(bank, digits),
            };
            let value = value.map_err(|source| PcrValuesError::Value { pcr, source })?;
            all.insert(pcr, value)?;
        }
        Ok(all)
    }

    /// The same in the other direction.
    pub fn to_hex(&self) -> BTreeMap<u8, String> {
        self.iter()
            .map(|(pcr, value)| (pcr, value.to_string()))
            .collect()
    }

    /// Sets a PCR's value.
    pub fn insert(&mut self, pcr: u8, value: HashValue) -> Result<(), PcrValuesError> {
        if pcr >= PCR_COUNT {
            return Err(PcrSelectionError { pcr }.into());
        }
        if value.algorithm() != self.bank {
            return Err(PcrValuesError::OtherBank {
                pcr,
                found: value.algorithm(),
                bank: self.bank,
            });
        }
        self.values.insert(pcr, value);
        Ok(())
    }

    /// The bank.
    pub fn bank(&self) -> HashAlgorithm {
        self.bank
    }

    /// The value of a PCR, if it is among these.
    pub fn get(&self, pcr: u8) -> Option<HashValue> {
        self.values.get(&pcr).copied()
    }

    /// PCRs and values in rising order.
    pub fn iter(&self) -> impl Iterator<Item = (u8, HashValue)> {
        self.values.iter().map(|(pcr, value)| (*pcr, *value))
    }

    /// The PCRs in rising order.
    pub fn pcrs(&self) -> impl Iterator<Item = u8> {
        self.values.keys().copied()
    }

    /// The PCRs.
    pub fn selection(&self) -> PcrSelection {
        PcrSelection(self.pcrs().fold(0, |bits, pcr| bits | 1 << pcr))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The values in rising order, one after the other: what [`PcrValues::digest`] is of.
    pub fn to_bytes(&self) -> Vec<u8> {
        let values = self.values.values();
        values.flat_map(|value| value.as_bytes().to_vec()).collect()
    }

    /// The same in the other direction; `None` if there are not exactly as many bytes.
    pub fn from_bytes(bank: HashAlgorithm, pcrs: PcrSelection, bytes: &[u8]) -> Option<Self> {
        let mut all = Self::new(bank);
        let mut values = bytes.chunks(bank.digest_length());
        for pcr in pcrs.iter() {
            let value = HashValue::new(bank, values.next()?)?;
            all.values.insert(pcr, value);
        }
        values.next().is_none().then_some(all)
    }

    /// SHA-256 value over the values in rising order: what `TPM2_PolicyPCR` compares in a session
    /// with SHA-256, and what a key that signs with SHA-256 quotes, whatever the bank (TPM 2.0
    /// Part 3 §18.4.1 and §23.7.1).
    pub fn digest(&self) -> Digest32 {
        let mut hash = Sha256::new();
        for value in self.values.values() {
            hash.update(value.as_bytes());
        }
        Digest32::new(hash.finalize().into())
    }

    /// Whether the firmware's PCRs (0 to 7) that are among these all have the value that they have
    /// after `TPM2_Startup`. Then no boot was measured into this bank, and whoever gets at the TPM
    /// can extend it to any value. `false` where none of them is among these.
    pub fn are_unextended(&self) -> bool {
        let mut firmware = FIRMWARE_PCRS.filter_map(|pcr| self.get(pcr)).peekable();
        firmware.peek().is_some() && firmware.all(is_unextended)
    }
}

/// Whether a PCR has a value from before the first measurement: zeros, perhaps with the locality at
/// which PCR 0 started, or all ones as those of a dynamic launch (TCG PC Client Platform TPM Profile
/// §4.6.2).
pub fn is_unextended(value: HashValue) -> bool {
    let last = value.as_bytes().last().copied().unwrap_or_default();
    (value.with_last_byte(0).is_zero() && last <= LARGEST_LOCALITY)
        || value == value.algorithm().filled(0xff)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn values(bank: HashAlgorithm, pcrs: &[(u8, u8)]) -> PcrValues {
        let mut values = PcrValues::new(bank);
        for (pcr, last) in pcrs {
            let value = bank.filled(0).with_last_byte(*last);
            values.insert(*pcr, value).unwrap();
        }
        values
    }

    #[test]
    fn a_bank_is_unextended_while_the_firmwares_pcrs_are_as_after_startup() {
        for bank in HashAlgorithm::ALL {
            for pcrs in [
                &[(0, 0), (7, 0)][..],
                &[(0, 3), (1, 0)],
                &[(0, 4)],
                // What software extends after the boot is no boot.
                &[(0, 0), (8, 9), (16, 1)],
            ] {
                assert!(values(bank, pcrs).are_unextended(), "{bank} {pcrs:?}");
            }
            for pcrs in [&[(0, 0), (7, 9)][..], &[(0, 5)], &[(8, 0)], &[]] {
                assert!(!values(bank, pcrs).are_unextended(), "{bank} {pcrs:?}");
            }
        }
    }

    #[test]
    fn values_of_two_banks_do_not_mix() {
        let mut values = values(HashAlgorithm::Sha384, &[(0, 7)]);
        let other = HashAlgorithm::Sha256.filled(0);
        let error = values.insert(1, other).unwrap_err().to_string();
        assert!(error.contains("sha256") && error.contains("sha384"));
        let zero = HashAlgorithm::Sha384.filled(0);
        assert!(values.insert(24, zero).is_err());
        assert_eq!(values.len(), 1);
    }

    #[test]
    fn values_are_read_as_they_are_written_and_no_byte_is_left_over() {
        let values = values(HashAlgorithm::Sha384, &[(0, 7), (14, 9)]);
        let (bank, pcrs, bytes) = (values.bank(), values.selection(), values.to_bytes());
        assert_eq!(
            PcrValues::from_bytes(bank, pcrs, &bytes),
            Some(values.clone())
        );
        assert_eq!(Digest32::of(&bytes), values.digest());
        let longer = [bytes.as_slice(), &[0]].concat();
        let first = |length| bytes.get(..length).unwrap();
        for wrong in [first(0), first(95), first(48), &longer] {
            assert_eq!(PcrValues::from_bytes(bank, pcrs, wrong), None);
        }
    }

    #[test]
    fn a_selection_names_its_bank() {
        let selection = PcrSelection::new([0, 9]).unwrap();
        assert_eq!(
            selection.to_bytes(HashAlgorithm::Sha384),
            [0, 0, 0, 1, 0, 0x0c, 3, 0x01, 0x02, 0x00]
        );
        assert!(PcrSelection::new([24]).is_err());
        assert_eq!(
            PcrSelection::of_firmware().iter().collect::<Vec<_>>(),
            [0, 1, 2, 3, 4, 5, 6, 7]
        );
    }
}
