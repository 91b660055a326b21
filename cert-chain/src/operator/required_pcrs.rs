//! Which PCRs an approval must cover to be one of a boot.
//!
//! The TPM accepts any policy that the operator's key signed (TPM 2.0 Part 3 §23.16), also one over
//! a PCR that whoever rules the host sets as they like. So the key's owner says what must be
//! covered, and nothing else is signed: the host's own file has no say in it.

use std::str::FromStr;

use crate::pcr::{PcrSelectionError, is_unextended};
use crate::{HashAlgorithm, PcrSelection, PcrValues};

/// The PCRs that an operator requires to be covered. Each of them measures a boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequiredPcrs(PcrSelection);

/// Why values do not say what a host booted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InsufficientPcrs {
    /// A list that is no list of PCRs.
    #[error("`{given}` is no list of PCRs: write their numbers as in `0,2,4,7` or `0-7`")]
    List {
        /// What was given.
        given: String,
    },
    /// PCRs that are required are not among the values.
    #[error(
        "PCRs {missing} are not covered: an approval covers PCRs {required} at least, so that it \
         fits one boot only. Have the host's `policy_pcrs` name them, or require others with \
         --require-pcrs"
    )]
    Missing {
        /// What is not covered.
        missing: PcrSelection,
        /// What is required.
        required: PcrSelection,
    },
    /// No PCR of the boot at all.
    #[error("PCRs {found} say nothing of what was booted: name at least one of PCRs 0 to 15")]
    NoBoot {
        /// What was given instead.
        found: PcrSelection,
    },
    /// A PCR that anybody can set.
    #[error("PCR {pcr} measures no boot: any program on the host can reset it")]
    Resettable {
        /// Its number.
        pcr: u8,
    },
    /// No such PCR.
    #[error(transparent)]
    Selection(#[from] PcrSelectionError),
    /// PCRs that the firmware did not extend.
    #[error(
        "PCRs {unextended} ({bank}) have the value that they have before anything is measured, so the \
         approval would fit any boot. If the platform measures nothing, as a software TPM without \
         firmware does, --accept-unextended signs it all the same"
    )]
    Unextended {
        /// Which.
        unextended: PcrSelection,
        /// The bank.
        bank: HashAlgorithm,
    },
}

/// Debug and application support: the PC Client TPM Profile lets every locality reset them.
const RESETTABLE: [u8; 2] = [16, 23];
/// PCRs that only a reset of the platform resets (static root of trust for measurement).
const STATIC: std::ops::RangeInclusive<u8> = 0..=15;

impl RequiredPcrs {
    /// Requires these PCRs.
    pub fn new(pcrs: impl IntoIterator<Item = u8>) -> Result<Self, InsufficientPcrs> {
        let selection = PcrSelection::new(pcrs)?;
        if let Some(pcr) = RESETTABLE.into_iter().find(|&pcr| selection.contains(pcr)) {
            return Err(InsufficientPcrs::Resettable { pcr });
        }
        measures_a_boot(selection)?;
        Ok(Self(selection))
    }

    /// Whether all of them are among the values.
    pub fn check(&self, values: &PcrValues) -> Result<(), InsufficientPcrs> {
        let missing = self.0.filter(|pcr| values.get(pcr).is_none());
        if missing.is_empty() {
            Ok(())
        } else {
            Err(InsufficientPcrs::Missing {
                missing,
                required: self.0,
            })
        }
    }

    /// Which of them were not extended since the platform was reset.
    pub fn unextended(&self, values: &PcrValues) -> Option<InsufficientPcrs> {
        let unextended = self
            .0
            .filter(|pcr| values.get(pcr).is_some_and(is_unextended));
        (!unextended.is_empty()).then_some(InsufficientPcrs::Unextended {
            unextended,
            bank: values.bank(),
        })
    }
}

impl Default for RequiredPcrs {
    /// Firmware, its configuration, boot loader and Secure Boot state.
    fn default() -> Self {
        Self(PcrSelection::of_firmware())
    }
}

impl FromStr for RequiredPcrs {
    type Err = InsufficientPcrs;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || InsufficientPcrs::List {
            given: text.to_owned(),
        };
        let number = |text: &str| text.trim().parse::<u8>().map_err(|_| refused());
        let mut pcrs = Vec::new();
        for part in text.split(',') {
            match part.split_once('-') {
                Some((first, last)) => {
                    let range = number(first)?..=number(last)?;
                    if range.is_empty() {
                        return Err(refused());
                    }
                    pcrs.extend(range);
                }
                None => pcrs.push(number(part)?),
            }
        }
        Self::new(pcrs)
    }
}

/// Refuses a selection that no boot changes.
pub fn measures_a_boot(selection: PcrSelection) -> Result<(), InsufficientPcrs> {
    if selection.iter().any(|pcr| STATIC.contains(&pcr)) {
        Ok(())
    } else {
        Err(InsufficientPcrs::NoBoot { found: selection })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values_in(
        bank: HashAlgorithm,
        pcrs: impl IntoIterator<Item = u8>,
    ) -> anyhow::Result<PcrValues> {
        let mut values = PcrValues::new(bank);
        for pcr in pcrs {
            values.insert(pcr, bank.hash(&[&[pcr]]))?;
        }
        Ok(values)
    }

    fn values(pcrs: impl IntoIterator<Item = u8>) -> anyhow::Result<PcrValues> {
        values_in(HashAlgorithm::Sha256, pcrs)
    }

    #[test]
    fn an_approval_covers_all_boot_pcrs_unless_the_operator_requires_others() -> anyhow::Result<()>
    {
        let all = RequiredPcrs::default();
        all.check(&values(0..8)?)?;
        all.check(&values(0..16)?)?;
        for fewer in [vec![16], vec![16, 23], vec![0], vec![0, 1, 2, 3, 4, 5, 6]] {
            assert!(
                matches!(
                    all.check(&values(fewer.clone())?),
                    Err(InsufficientPcrs::Missing { .. })
                ),
                "{fewer:?}"
            );
        }
        let own: RequiredPcrs = "0,2,4-7".parse()?;
        own.check(&values([0, 2, 4, 5, 6, 7])?)?;
        assert!(own.check(&values([0, 2, 4])?).is_err());
        Ok(())
    }

    #[test]
    fn pcrs_that_anybody_can_set_are_not_what_is_required() {
        for text in ["16", "0-16", "7,23", "", "7,", "24", "7-0", "17", "a"] {
            assert!(text.parse::<RequiredPcrs>().is_err(), "{text}");
        }
    }

    #[test]
    fn values_from_before_the_first_measurement_are_found() -> anyhow::Result<()> {
        let required: RequiredPcrs = "0,7".parse()?;
        for bank in [HashAlgorithm::Sha256, HashAlgorithm::Sha384] {
            let mut measured = values_in(bank, [0, 7, 9])?;
            measured.insert(9, bank.filled(0))?;
            assert_eq!(
                required.unextended(&measured),
                None,
                "PCR 9 is not required"
            );
            let locality = bank.filled(0).with_last_byte(3);
            for initial in [bank.filled(0), bank.filled(0xff), locality] {
                measured.insert(0, initial)?;
                let found = required.unextended(&measured);
                let text = found.map(|found| found.to_string()).unwrap_or_default();
                assert!(text.starts_with(&format!("PCRs 0 ({bank})")), "{text}");
            }
        }
        Ok(())
    }
}
