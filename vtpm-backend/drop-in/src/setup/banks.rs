//! PCR banks by name.

use anyhow::{Result, ensure};

/// A bank: its hash algorithm (`TPM_ALG_ID`, TPM 2.0 Part 2 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bank(pub(super) u16);

const NAMES: [(u16, &str); 8] = [
    (0x0004, "sha1"),
    (0x000b, "sha256"),
    (0x000c, "sha384"),
    (0x000d, "sha512"),
    (0x0012, "sm3-256"),
    (0x0027, "sha3-256"),
    (0x0028, "sha3-384"),
    (0x0029, "sha3-512"),
];

/// The banks that are wanted, a list with commas between, as far as the TPM has them.
pub(super) fn choose(wanted: &str, all: &[Bank]) -> Result<Vec<Bank>> {
    let mut chosen = Vec::new();
    for name in wanted.split(',').map(str::trim) {
        let bank = NAMES.iter().find(|(_, known)| *known == name);
        let bank = bank.map(|(algorithm, _)| Bank(*algorithm));
        if let Some(bank) = bank.filter(|bank| all.contains(bank) && !chosen.contains(bank)) {
            chosen.push(bank);
        }
    }
    ensure!(
        !chosen.is_empty(),
        "the TPM has none of the PCR banks {wanted:?}; it has {}",
        names(all)
    );
    Ok(chosen)
}

/// Their names, with commas between.
pub(super) fn names(banks: &[Bank]) -> String {
    let names = banks.iter().map(|bank| {
        let known = NAMES.iter().find(|(algorithm, _)| *algorithm == bank.0);
        known.map_or_else(|| format!("{:02x}", bank.0), |(_, name)| (*name).to_owned())
    });
    names.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn banks_that_a_tpm_has_not_are_left_out_and_none_at_all_is_refused() {
        let all = [Bank(0x0004), Bank(0x000b)];
        let chosen = choose("sha256,sha3-256,nonsense,sha256", &all).ok();
        assert_eq!(chosen, Some(vec![Bank(0x000b)]));
        assert!(choose("sha512", &all).is_err());
        assert!(choose("", &all).is_err());
        assert_eq!(names(&all), "sha1,sha256");
    }
}
