//! Between our types and those of the software stack.

use cert_chain::Digest32;
use cert_chain::policy::PcrValues;
use sha2::{Digest as _, Sha256};
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::constants::response_code::Tss2ResponseCode;
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::structures::{
    Digest, DigestList, KeyedHashScheme, PcrSelectionList, PcrSelectionListBuilder, PcrSlot,
    Public, PublicBuilder, PublicKeyedHashParameters, Signature,
};

use crate::anchor::error::{HardwareError, Operation};
use crate::anchor::response_code::ResponseCode;

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

/// A selection in the SHA-256 bank.
pub(super) fn pcr_list(
    operation: Operation,
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
            .with_selection(HashingAlgorithm::Sha256, &slots)
            .build(),
    )
}

/// The answer to `TPM2_PCR_Read`: digests in the order of the selection that came with them.
pub(super) fn read_values(
    selected: &PcrSelectionList,
    digests: &DigestList,
) -> Result<PcrValues, HardwareError> {
    let mut values = PcrValues::new();
    let slots = selected
        .get_selections()
        .iter()
        .flat_map(tss_esapi::structures::PcrSelection::selected);
    for (slot, digest) in slots.zip(digests.value()) {
        let number = u32::from(slot).trailing_zeros();
        let value: Option<[u8; 32]> = digest.value().try_into().ok();
        match (u8::try_from(number), value) {
            (Ok(number), Some(value)) => values.insert(number, Digest32::new(value)),
            _ => {
                return Err(HardwareError::Response {
                    operation: Operation("TPM2_PCR_Read"),
                    what: "values of another hash algorithm",
                });
            }
        };
    }
    Ok(values)
}

/// The `pcrDigest` of `TPM2_PolicyPCR` (TPM 2.0 Part 3 §23.7): over the values in rising order.
pub(super) fn pcr_digest(values: &PcrValues) -> Digest32 {
    let mut hash = Sha256::new();
    for value in values.values() {
        hash.update(value.as_bytes());
    }
    Digest32::new(hash.finalize().into())
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
        let list = pcr_list(Operation("test"), [0, 9, 23].into_iter())?;
        let numbers: Vec<u32> = list
            .get_selections()
            .iter()
            .flat_map(|selection| selection.selected())
            .map(|slot| u32::from(slot).trailing_zeros())
            .collect();
        assert_eq!(numbers, [0, 9, 23]);
        assert!(pcr_list(Operation("test"), std::iter::once(32)).is_err());
        Ok(())
    }
}
