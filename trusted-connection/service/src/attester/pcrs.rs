//! The PCRs of the VM's TPM: which banks it has, and what they hold.

use cert_chain::pcr::BANKS;
use cert_chain::{HashAlgorithm, HashValue, PcrSelection, PcrValues};
use tss_context::retrying;
use tss_esapi::Context;
use tss_esapi::constants::CapabilityType;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::structures::{CapabilityData, PcrSelectionList, PcrSlot};

use super::AttesterError;
use super::tss::refused;

/// More than any TPM has.
const MAX_BANKS: u32 = 16;

/// The banks that have these PCRs, the preferred one first.
pub(crate) fn banks(
    context: &mut Context,
    pcrs: PcrSelection,
) -> Result<Vec<HashAlgorithm>, AttesterError> {
    const OPERATION: &str = "TPM2_GetCapability";
    let (found, _) = context
        .execute_without_session(|context| {
            context.get_capability(CapabilityType::AssignedPcr, 0, MAX_BANKS)
        })
        .map_err(refused(OPERATION))?;
    let CapabilityData::AssignedPcr(allocated) = found else {
        return Ok(Vec::new());
    };
    let has = |bank: &HashAlgorithm| {
        allocated.get_selections().iter().any(|selection| {
            let slots = selection.selected();
            let found = slots.iter().map(|slot| u32::from(*slot).trailing_zeros());
            let found: Vec<u32> = found.collect();
            selection.hashing_algorithm() == stacks(*bank)
                && pcrs.iter().all(|pcr| found.contains(&u32::from(pcr)))
        })
    };
    Ok(BANKS.into_iter().filter(has).collect())
}

/// What these PCRs of a bank hold now.
pub(crate) fn read(
    context: &mut Context,
    bank: HashAlgorithm,
    pcrs: PcrSelection,
) -> Result<PcrValues, AttesterError> {
    const OPERATION: &str = "TPM2_PCR_Read";
    let mut values = PcrValues::new(bank);
    let mut wanted: Vec<u8> = pcrs.iter().collect();
    // A TPM returns as many at a time as it likes, at most eight (TPM 2.0 Part 3 §22.4).
    while !wanted.is_empty() {
        let list = selected(OPERATION, bank, wanted.iter().copied())?;
        let (_, found, digests) =
            retrying(|| context.execute_without_session(|context| context.pcr_read(list.clone())))
                .map_err(refused(OPERATION))?;
        let found = found.get_selections().iter();
        let slots: Vec<u8> = found
            .filter(|selection| selection.hashing_algorithm() == stacks(bank))
            .flat_map(|selection| selection.selected())
            .filter_map(|slot| u8::try_from(u32::from(slot).trailing_zeros()).ok())
            .collect();
        let before = wanted.len();
        for (pcr, digest) in slots.iter().zip(digests.value()) {
            let value = HashValue::new(bank, digest.value()).ok_or(AttesterError::Bank)?;
            values
                .insert(*pcr, value)
                .map_err(|_| AttesterError::Bank)?;
            wanted.retain(|wanted| wanted != pcr);
        }
        if wanted.len() == before {
            return Err(AttesterError::Bank);
        }
    }
    Ok(values)
}

/// A selection in one bank, for a command.
pub(crate) fn selected(
    operation: &'static str,
    bank: HashAlgorithm,
    pcrs: impl Iterator<Item = u8>,
) -> Result<PcrSelectionList, AttesterError> {
    selection(bank, pcrs).map_err(refused(operation))
}

/// The same, for several commands.
pub(crate) fn selection(
    bank: HashAlgorithm,
    pcrs: impl Iterator<Item = u8>,
) -> Result<PcrSelectionList, tss_esapi::Error> {
    let slots = pcrs
        .map(|pcr| PcrSlot::try_from(1u32 << pcr))
        .collect::<Result<Vec<_>, _>>()?;
    PcrSelectionList::builder()
        .with_selection(stacks(bank), &slots)
        .build()
}

/// The software stack's own name of an algorithm.
fn stacks(algorithm: HashAlgorithm) -> HashingAlgorithm {
    match algorithm {
        HashAlgorithm::Sha1 => HashingAlgorithm::Sha1,
        HashAlgorithm::Sha256 => HashingAlgorithm::Sha256,
        HashAlgorithm::Sha384 => HashingAlgorithm::Sha384,
        HashAlgorithm::Sha512 => HashingAlgorithm::Sha512,
    }
}
