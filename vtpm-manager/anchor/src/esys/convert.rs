//! Between our types and those of the software stack.

use cert_chain::{Digest32, HashAlgorithm, HashValue, PcrSelection, PcrValues};
use tpm_wire::{Operation, ResponseCode};
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::constants::response_code::Tss2ResponseCode;
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::structures::{
    Digest, DigestList, KeyedHashScheme, PcrSelectionList, PcrSelectionListBuilder, PcrSlot,
    Public, PublicBuilder, PublicKeyedHashParameters, Signature,
};

use crate::error::HardwareError;

/// Names the command that failed.
pub(super) fn checked<T>(
    operation: Operation,
    result: tss_esapi::Result<T>,
) -> Result<T, HardwareError> {
    result.map_err(|source| match response_code(&source) {
        Some(code) => HardwareError::Tpm { operation, code },
        None => HardwareError::Stack { operation, source },
    })
}

/// The raw code. The software stack gives it out as text only: "Response code value: 0x922".
fn response_code(error: &tss_esapi::Error) -> Option<ResponseCode> {
    let text = match error {
        tss_esapi::Error::Tss2Error(Tss2ResponseCode::FormatZero(code)) => code.to_string(),
        tss_esapi::Error::Tss2Error(Tss2ResponseCode::FormatOne(code)) => code.to_string(),
        _ => return None,
    };
    let (_, digits) = text.rsplit_once("0x")?;
    u32::from_str_radix(digits, 16).ok().map(ResponseCode::new)
}

/// A selection in one bank.
pub(super) fn pcr_list(
    operation: Operation,
    bank: HashAlgorithm,
    pcrs: impl Iterator<Item = u8>,
) -> Result<PcrSelectionList, HardwareError> {
    let mut slots = Vec::new();
    for pcr in pcrs {
        let bit = 1u32.checked_shl(pcr.into()).unwrap_or_default();
        slots.push(checked(operation, PcrSlot::try_from(bit))?);
    }
    checked(
        operation,
        PcrSelectionListBuilder::new()
            .with_selection(stacks(bank), &slots)
            .build(),
    )
}

/// The answer to `TPM2_PCR_Read`: digests in the order of the selection that came with them.
/// They are added to `values`.
pub(super) fn read_values(
    selected: &PcrSelectionList,
    digests: &DigestList,
    values: &mut PcrValues,
) -> Result<(), HardwareError> {
    let other = HardwareError::Response {
        operation: Operation("TPM2_PCR_Read"),
        what: "values of another hash algorithm",
    };
    let slots = selected.get_selections().iter().flat_map(numbers);
    for (pcr, digest) in slots.zip(digests.value()) {
        let value = HashValue::new(values.bank(), digest.value());
        if value.is_none_or(|value| values.insert(pcr, value).is_err()) {
            return Err(other);
        }
    }
    Ok(())
}

/// The banks in an answer to `TPM2_GetCapability` that have all of these PCRs.
pub(super) fn banks_with(allocated: &PcrSelectionList, pcrs: PcrSelection) -> Vec<HashAlgorithm> {
    HashAlgorithm::ALL
        .into_iter()
        .filter(|bank| {
            allocated.get_selections().iter().any(|selection| {
                let has: Vec<u8> = numbers(selection).collect();
                selection.hashing_algorithm() == stacks(*bank)
                    && pcrs.iter().all(|pcr| has.contains(&pcr))
            })
        })
        .collect()
}

fn numbers(selection: &tss_esapi::structures::PcrSelection) -> impl Iterator<Item = u8> {
    selection
        .selected()
        .into_iter()
        .filter_map(|slot| u8::try_from(u32::from(slot).trailing_zeros()).ok())
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

/// A digest for the software stack.
pub(super) fn digest(operation: Operation, value: &Digest32) -> Result<Digest, HardwareError> {
    checked(operation, Digest::try_from(value.as_bytes().to_vec()))
}

/// Public area of a sealed secret: usable under the policy alone.
pub(super) fn sealed_object(policy: &Digest32) -> Result<Public, HardwareError> {
    let operation = Operation("TPM2_Create");
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_admin_with_policy(true)
        .with_no_da(true)
        .build();
    let public = PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::KeyedHash)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(checked(operation, attributes)?)
        .with_auth_policy(digest(operation, policy)?)
        .with_keyed_hash_parameters(PublicKeyedHashParameters::new(KeyedHashScheme::Null))
        .with_keyed_hash_unique_identifier(Digest::default())
        .build();
    checked(operation, public)
}

/// `ECDSA-Sig-Value` (RFC 3279 §2.2.3).
pub(super) fn ecdsa_der(
    operation: Operation,
    signature: &Signature,
) -> Result<Vec<u8>, HardwareError> {
    let Signature::EcDsa(signature) = signature else {
        return Err(HardwareError::Response {
            operation,
            what: "a signature of another scheme",
        });
    };
    Ok(yasna::construct_der(|writer| {
        writer.write_sequence(|scalars| {
            for scalar in [signature.signature_r(), signature.signature_s()] {
                scalars.next().write_bigint_bytes(scalar.value(), true);
            }
        });
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tss_esapi::interface_types::algorithm::HashingAlgorithm::Sha256 as SHA256;
    use tss_esapi::structures::{EccParameter, EccSignature};

    #[test]
    fn signatures_are_written_in_the_shortest_form() -> anyhow::Result<()> {
        let scalar = |bytes: &[u8]| EccParameter::try_from(bytes.to_vec());
        let signature = Signature::EcDsa(EccSignature::create(
            SHA256,
            scalar(&[0x00, 0x00, 0x7f])?,
            scalar(&[0x80, 0x01])?,
        )?);
        // INTEGER 0x7f without leading zeros; INTEGER 0x8001 with one, for it is positive.
        assert_eq!(
            ecdsa_der(Operation("TPM2_Sign"), &signature)?,
            [0x30, 8, 0x02, 1, 0x7f, 0x02, 3, 0x00, 0x80, 0x01]
        );
        Ok(())
    }

    #[test]
    fn a_selection_names_the_pcrs_it_was_given() -> anyhow::Result<()> {
        let list = pcr_list(
            Operation("test"),
            HashAlgorithm::Sha384,
            [0, 9, 23].into_iter(),
        )?;
        let numbers: Vec<u32> = list
            .get_selections()
            .iter()
            .flat_map(|selection| selection.selected())
            .map(|slot| u32::from(slot).trailing_zeros())
            .collect();
        assert_eq!(numbers, [0, 9, 23]);
        assert_eq!(
            banks_with(&list, PcrSelection::new([9, 0])?),
            [HashAlgorithm::Sha384]
        );
        assert!(banks_with(&list, PcrSelection::new([0, 1])?).is_empty());
        assert!(
            pcr_list(
                Operation("test"),
                HashAlgorithm::Sha256,
                std::iter::once(32)
            )
            .is_err()
        );
        Ok(())
    }
}
