//! Signatures and certifications by keys in the VM's TPM.

use attestation::quote::canonical_signature;
use cert_chain::Digest32;
use p256::ecdsa::Signature as EcdsaSignature;
use tss_esapi::Context;
use tss_esapi::constants::tss::{TPM2_RH_NULL, TPM2_ST_HASHCHECK};
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Data, Digest, EccSignature, HashcheckTicket, Signature, SignatureScheme,
};
use tss_esapi::traits::Marshall;
use tss_esapi::tss2_esys::TPMT_TK_HASHCHECK;

use super::AttesterError;
use super::tss::{refused, retrying};

/// Has a key that is not restricted sign a SHA-256 value, which the TPM did not make itself.
pub(crate) fn sign(
    context: &mut Context,
    key: KeyHandle,
    hash: &Digest32,
) -> Result<EcdsaSignature, AttesterError> {
    const OPERATION: &str = "TPM2_Sign";
    let hash = Digest::try_from(hash.as_bytes().to_vec()).map_err(refused(OPERATION))?;
    let signature = retrying(|| {
        let unhashed = HashcheckTicket::try_from(TPMT_TK_HASHCHECK {
            tag: TPM2_ST_HASHCHECK,
            hierarchy: TPM2_RH_NULL,
            digest: Default::default(),
        })?;
        context.execute_with_session(Some(AuthSession::Password), |context| {
            context.sign(key, hash.clone(), SignatureScheme::Null, unhashed)
        })
    })
    .map_err(refused(OPERATION))?;
    match signature {
        Signature::EcDsa(signature) => scalars(&signature).ok_or(AttesterError::NotEcdsa),
        _ => Err(AttesterError::NotEcdsa),
    }
}

/// Has the vIK certify a key of the same TPM, whose authorization value is empty: `TPMS_ATTEST` and
/// `TPMT_SIGNATURE`.
pub(crate) fn certify(
    context: &mut Context,
    key: KeyHandle,
    vik: KeyHandle,
    qualifying_data: &[u8],
) -> Result<(Vec<u8>, Vec<u8>), AttesterError> {
    const OPERATION: &str = "TPM2_Certify";
    let data = Data::try_from(qualifying_data.to_vec()).map_err(refused(OPERATION))?;
    let sessions = (
        Some(AuthSession::Password),
        Some(AuthSession::Password),
        None,
    );
    let (attest, signature) = retrying(|| {
        context.execute_with_sessions(sessions, |context| {
            context.certify(key.into(), vik, data.clone(), SignatureScheme::Null)
        })
    })
    .map_err(refused(OPERATION))?;
    let signature = signature.marshall().map_err(refused(OPERATION))?;
    Ok((
        attest.marshall().map_err(refused(OPERATION))?,
        canonical_signature(&signature).map_err(AttesterError::Signature)?,
    ))
}

/// The signature, whatever zeros the TPM leaves out.
fn scalars(signature: &EccSignature) -> Option<EcdsaSignature> {
    let scalar = |bytes: &[u8]| {
        let mut scalar = [0; 32];
        let zeros = scalar.len().checked_sub(bytes.len())?;
        scalar.get_mut(zeros..)?.copy_from_slice(bytes);
        Some(scalar)
    };
    let r = scalar(signature.signature_r().value())?;
    let s = scalar(signature.signature_s().value())?;
    EcdsaSignature::from_scalars(r, s).ok()
}

#[cfg(test)]
mod tests {
    use tss_esapi::interface_types::algorithm::HashingAlgorithm;
    use tss_esapi::structures::EccParameter;

    use super::*;

    #[test]
    fn signatures_are_in_der_whatever_zeros_the_tpm_leaves_out() -> anyhow::Result<()> {
        for (r, expected) in [
            (vec![0x81], "3007020200810201 05".replace(' ', "")),
            (
                [vec![0; 31], vec![1]].concat(),
                "3006020101020105".to_owned(),
            ),
        ] {
            let signature = EccSignature::create(
                HashingAlgorithm::Sha256,
                EccParameter::try_from(r)?,
                EccParameter::try_from(vec![5])?,
            )?;
            let found = scalars(&signature).map(|found| hex::encode(found.to_der().as_bytes()));
            assert_eq!(found, Some(expected));
        }
        let zero = EccSignature::create(
            HashingAlgorithm::Sha256,
            EccParameter::try_from(vec![0; 32])?,
            EccParameter::try_from(vec![5])?,
        )?;
        assert!(scalars(&zero).is_none());
        Ok(())
    }
}
