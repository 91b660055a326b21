//! The host IK's word that the storage root key is in its TPM (`TPM2_Certify`, TPM 2.0 Part 3
//! §18.2).
//!
//! Sessions are salted to the storage root key. When a host is made, its name is taken from what
//! comes over the bus: an interposer could supply a key of its own there, and read along. The host
//! IK is known better, since the issuer certified it only after the TPM with the maker's
//! certificate had shown that it holds it. So the host IK certifies the storage root key, and as
//! long as it does not, the host issues nothing: what an interposer then knows guards no vRoT.
//!
//! The name covers the attributes, and a TPM admits no key with `fixedTPM` that it did not make.

use cert_chain::{AttestationKey, Digest32, TpmName};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use tpm2_protocol::TpmUnmarshal;
use tpm2_protocol::data::{TpmsAttest, TpmuAttest};

/// What the TPM signed. Nothing of it was looked at.
#[derive(Clone, Debug)]
pub struct SrkStatement {
    /// Marshalled `TPMS_ATTEST`.
    pub attest: Vec<u8>,
    /// ECDSA signature in DER.
    pub signature: Vec<u8>,
}

/// A key that was in the TPM of a host IK when a nonce was fresh.
#[derive(Debug)]
pub(super) struct ResidentKey(TpmName);

/// `TPM_GENERATED_VALUE`: no restricted key signs what begins so unless its TPM made it (TPM 2.0
/// Part 2 §6.2).
const GENERATED: [u8; 4] = [0xff, 0x54, 0x43, 0x47];

impl SrkStatement {
    /// Verifies the signature, and only then reads what was signed. It does not establish whose
    /// `ik` is.
    pub(super) fn verify(&self, ik: &AttestationKey, nonce: &Digest32) -> Option<ResidentKey> {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, ik.public_area().public_key_bytes())
            .verify(&self.attest, &self.signature)
            .ok()?;
        if !self.attest.starts_with(&GENERATED) {
            return None;
        }
        let (attest, rest) = TpmsAttest::unmarshal(&self.attest).ok()?;
        let TpmuAttest::Certify(certified) = &attest.attested else {
            return None;
        };
        if !rest.is_empty() || attest.extra_data.as_ref() != nonce.as_bytes() {
            return None;
        }
        TpmName::from_bytes(certified.name.as_ref())
            .ok()
            .map(ResidentKey)
    }
}

impl ResidentKey {
    /// Its name.
    pub(super) fn name(&self) -> &TpmName {
        &self.0
    }
}
