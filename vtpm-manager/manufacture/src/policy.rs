//! The policy of the indices that all of the guest reads: what it takes to write and to remove them.
//!
//! Either takes the authorization value of [`NvIndex::WRITER`](cert_chain::layout::NvIndex::WRITER); removal
//! takes the platform's authorization besides, and `TPM2_PolicyCommandCode`, because the TPM
//! demands it (TPM 2.0 Part 3 §31.5).

use sha2::{Digest, Sha256};
use tpm_wire::Operation;
use tpm2_protocol::data::TpmsNvPublic;
use tpm2_protocol::{TpmMarshal, TpmWriter};

use super::error::ManufactureError;

/// `TPM2_PolicyOR` of a way to write and a way to remove.
pub(super) struct PublicationPolicy {
    branches: [[u8; 32]; 2],
}

/// What a policy session is to allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Branch {
    Write,
    Remove,
}

/// `TPM_CC_PolicySecret`
const POLICY_SECRET: u32 = 0x0000_0151;
/// `TPM_CC_PolicyCommandCode`
const POLICY_COMMAND_CODE: u32 = 0x0000_016c;
/// `TPM_CC_PolicyOR`
const POLICY_OR: u32 = 0x0000_0171;
/// `TPM_CC_NV_UndefineSpaceSpecial`
const NV_UNDEFINE_SPACE_SPECIAL: u32 = 0x0000_011f;
/// `TPM_ALG_SHA256`
const SHA256: u16 = 0x000b;

impl PublicationPolicy {
    /// The policy that asks for the authorization value of `writer`.
    pub(super) fn of(writer: &TpmsNvPublic) -> Result<Self, ManufactureError> {
        // TPM2_PolicySecret (TPM 2.0 Part 3 §23.4).
        let named = extended([0; 32], POLICY_SECRET, &name(writer)?);
        // The policy reference follows in a second step; it is empty.
        let secret: [u8; 32] = Sha256::digest(named).into();
        let command = NV_UNDEFINE_SPACE_SPECIAL.to_be_bytes();
        Ok(Self {
            branches: [secret, extended(secret, POLICY_COMMAND_CODE, &command)],
        })
    }

    /// What `TPM2_PolicyOR` is told.
    pub(super) fn branches(&self) -> &[[u8; 32]] {
        &self.branches
    }

    /// The digest that an index carries (TPM 2.0 Part 3 §23.6).
    pub(super) fn digest(&self) -> [u8; 32] {
        extended([0; 32], POLICY_OR, &self.branches.concat())
    }
}

fn extended(digest: [u8; 32], command: u32, rest: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(digest)
        .chain_update(command.to_be_bytes())
        .chain_update(rest)
        .finalize()
        .into()
}

/// The name of an index is over its public area (TPM 2.0 Part 1 §16).
fn name(index: &TpmsNvPublic) -> Result<Vec<u8>, ManufactureError> {
    let operation = Operation("TPM2_NV_DefineSpace");
    let mut buffer = [0; 128];
    let mut marshalled = TpmWriter::new(&mut buffer);
    index
        .marshal(&mut marshalled)
        .map_err(|_| ManufactureError::Response { operation })?;
    let digest = Sha256::digest(marshalled.as_bytes());
    Ok([&SHA256.to_be_bytes()[..], &digest].concat())
}
