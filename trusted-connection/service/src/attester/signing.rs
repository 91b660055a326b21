//! Signatures and certifications by keys in the VM's TPM.

use attestation::quote::{canonical_signature, fixed_signature};
use cert_chain::Digest32;
use p256::ecdsa::Signature as EcdsaSignature;
use tss_context::{retrying, unhashed};
use tss_esapi::Context;
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{Data, Digest, Signature, SignatureScheme};
use tss_esapi::traits::Marshall;

use super::AttesterError;
use super::tss::refused;

/// Has a key that is not restricted sign a SHA-256 value, which the TPM did not make itself.
pub(crate) fn sign(
    context: &mut Context,
    key: KeyHandle,
    hash: &Digest32,
) -> Result<EcdsaSignature, AttesterError> {
    const OPERATION: &str = "TPM2_Sign";
    let hash = Digest::try_from(hash.as_bytes().to_vec()).map_err(refused(OPERATION))?;
    let signature = retrying(|| {
        let unhashed = unhashed()?;
        context.execute_with_session(Some(AuthSession::Password), |context| {
            context.sign(key, hash.clone(), SignatureScheme::Null, unhashed)
        })
    })
    .map_err(refused(OPERATION))?;
    ecdsa(&signature)
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
fn ecdsa(signature: &Signature) -> Result<EcdsaSignature, AttesterError> {
    let signature = signature.marshall().map_err(refused("TPM2_Sign"))?;
    let scalars = canonical_signature(&signature)
        .and_then(|signature| fixed_signature(&signature))
        .map_err(AttesterError::Signature)?;
    EcdsaSignature::from_slice(&scalars).map_err(|_| AttesterError::NotEcdsa)
}

#[cfg(test)]
mod tests {
    use tss_esapi::interface_types::algorithm::HashingAlgorithm;
    use tss_esapi::structures::{EccParameter, EccSignature};

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
            let found = ecdsa(&Signature::EcDsa(signature))?.to_der();
            assert_eq!(hex::encode(found.as_bytes()), expected);
        }
        let zero = EccSignature::create(
            HashingAlgorithm::Sha256,
            EccParameter::try_from(vec![0; 32])?,
            EccParameter::try_from(vec![5])?,
        )?;
        assert!(ecdsa(&Signature::EcDsa(zero)).is_err());
        Ok(())
    }
}
