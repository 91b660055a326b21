//! Which PCR bank approvals and quotes of this host are of.
//!
//! A bank into which nothing measures a boot says nothing about the boot: any program that may use
//! the TPM can extend it to any value. Firmware leaves a bank in that state where the TPM has more banks
//! active than the firmware knows.

use cert_chain::HashAlgorithm;
use cert_chain::pcr::BANKS;

use super::error::{AnchorError, BankList};

/// The configured bank, or else the first of [`BANKS`] that is active and has a boot measured into
/// it. Where no bank has, there was no measured boot at all, as with a software TPM on trial: then
/// it is the first that is active.
pub(super) fn choose(
    configured: Option<HashAlgorithm>,
    active: &[HashAlgorithm],
    mut is_extended: impl FnMut(HashAlgorithm) -> Result<bool, AnchorError>,
) -> Result<HashAlgorithm, AnchorError> {
    let wanted = configured.map_or(BANKS.to_vec(), |bank| vec![bank]);
    let is_active = |bank: &HashAlgorithm| active.contains(bank);
    let candidates: Vec<HashAlgorithm> = wanted.iter().copied().filter(is_active).collect();
    let Some(first) = candidates.first().copied() else {
        return Err(AnchorError::NoBank {
            wanted: BankList(wanted),
            active: BankList(active.to_vec()),
        });
    };
    for bank in candidates {
        if is_extended(bank)? {
            return Ok(bank);
        }
    }
    let others = active.iter().filter(|bank| !wanted.contains(bank));
    for extended in others.copied() {
        if is_extended(extended)? {
            return Err(AnchorError::BankUnextended {
                bank: first,
                extended,
            });
        }
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::HashAlgorithm::{Sha1, Sha256, Sha384, Sha512};
    use super::*;

    fn chosen(
        configured: Option<HashAlgorithm>,
        active: &[HashAlgorithm],
        extended: &[HashAlgorithm],
    ) -> Result<HashAlgorithm, String> {
        choose(configured, active, |bank| Ok(extended.contains(&bank)))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_first_bank_that_a_boot_was_measured_into_is_taken() {
        for (active, extended, bank) in [
            (&[Sha256][..], &[Sha256][..], Sha256),
            (&[Sha384], &[Sha384], Sha384),
            (&[Sha512], &[Sha512], Sha512),
            (&[Sha384, Sha256], &[Sha384, Sha256], Sha256),
            (&[Sha1, Sha256, Sha384], &[Sha1, Sha384], Sha384),
            (&[Sha256, Sha384, Sha512], &[Sha512], Sha512),
            // No boot was measured at all.
            (&[Sha1, Sha384, Sha256], &[], Sha256),
        ] {
            assert_eq!(chosen(None, active, extended), Ok(bank), "{active:?}");
        }
        assert_eq!(
            chosen(Some(Sha384), &[Sha256, Sha384], &[Sha256, Sha384]),
            Ok(Sha384)
        );
    }

    #[test]
    fn a_bank_that_nothing_measures_into_is_refused_where_another_is_extended() {
        for (configured, active, extended, parts) in [
            (None, &[Sha1, Sha256][..], Sha1, ["sha256", "sha1"]),
            (
                Some(Sha256),
                &[Sha256, Sha384],
                Sha384,
                ["sha256", "sha384"],
            ),
        ] {
            let error = chosen(configured, active, &[extended])
                .err()
                .unwrap_or_default();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }

    #[test]
    fn a_tpm_without_a_usable_bank_is_refused_with_what_it_has() {
        for (configured, active, part) in [
            (None, &[Sha1][..], "active are sha1"),
            (None, &[], "active are none"),
            (Some(Sha384), &[Sha256], "no active sha384"),
        ] {
            let error = chosen(configured, active, active).err().unwrap_or_default();
            assert!(error.contains(part), "{error}");
        }
    }
}
