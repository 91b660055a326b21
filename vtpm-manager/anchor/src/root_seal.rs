//! The sealed root secret, and the proof that this host sealed it while it ran as approved.
//!
//! A sealed object does not show who sealed it: any program that may use the TPM, in any boot, can
//! seal a secret of its own under the same policy and put it in the place of ours. Every key of the
//! host would be derived from it from the next approved boot on. So the host IK, which only an
//! approved boot can use, signs the object that the manager made, and nothing is unsealed without
//! that signature.

use cert_chain::AttestationKey;
use cert_chain::hexadecimal;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use super::hardware::SealedBlob;

/// The root secret as the record keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RootSeal {
    sealed: SealedBlob,
    /// ECDSA signature of the host IK over [`statement`], in DER (RFC 3279 §2.2.3).
    #[serde(with = "hexadecimal")]
    signature: Vec<u8>,
}

/// Neither a certificate (which begins with 0x30) nor anything that a TPM forms itself
/// (`TPM_GENERATED_VALUE`), the only other things that the host IK signs.
const DOMAIN: &[u8] = b"vrot host root secret v1\0";

impl RootSeal {
    /// A secret that was just sealed, with the host IK's signature over its [`statement`].
    pub(super) fn new(sealed: SealedBlob, signature: Vec<u8>) -> Self {
        Self { sealed, signature }
    }

    /// The sealed object, if this host IK vouches for it.
    pub(super) fn verified(&self, ik: &AttestationKey) -> Option<&SealedBlob> {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, ik.public_area().public_key_bytes())
            .verify(&statement(&self.sealed), &self.signature)
            .is_ok()
            .then_some(&self.sealed)
    }
}

/// What the host IK signs: the object's public area. Its `unique` is a digest over the secret
/// (TPM 2.0 Part 1 §27.5.3.2), so no other secret has the same one.
pub(super) fn statement(sealed: &SealedBlob) -> Vec<u8> {
    [DOMAIN, sealed.public.as_slice()].concat()
}
