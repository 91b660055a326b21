//! A policy session that its owner alone can use.
//!
//! The guest shares the vRoT, and with it every session in there: the handles are small numbers,
//! and every user of the TPM can save and load a session. A satisfied policy session without a key would
//! let the guest write what only the manager may write. So the manager's is bound to
//! [`NvIndex::WRITER`](cert_chain::layout::NvIndex::WRITER): its key is derived from that index's authorization
//! value, which the guest does not know, and each use takes an HMAC under it (TPM 2.0 Part 1
//! §19.6.8 and §19.6.10).

use cert_chain::kdf::kdfa;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::authority::NvAuthority;
use super::error::ManufactureError;
use super::handle::Handle;

/// The session, as its owner knows it.
pub(super) struct BoundSession {
    handle: Handle,
    key: hmac::Key,
    /// The nonce that the TPM sent last.
    nonce_tpm: Vec<u8>,
}

/// What the owner puts beside the session's handle in a command.
pub(super) struct Proof {
    pub(super) nonce_caller: Nonce,
    pub(super) hmac: hmac::Tag,
}

/// The caller's nonce; 16 bytes are the least that a TPM takes.
pub(super) type Nonce = [u8; 16];

/// `continueSession` alone (TPM 2.0 Part 2 §8.4).
pub(super) const CONTINUE: u8 = 0x01;
/// The label of a session's key (TPM 2.0 Part 1 §19.6.8).
const LABEL: &str = "ATH";

/// A fresh nonce.
pub(super) fn nonce() -> Result<Nonce, ManufactureError> {
    let mut nonce = Nonce::default();
    SystemRandom::new()
        .fill(&mut nonce)
        .map_err(|_| ManufactureError::Random)?;
    Ok(nonce)
}

impl BoundSession {
    /// The session that the TPM began with these two nonces.
    pub(super) fn new(
        handle: Handle,
        authority: &NvAuthority,
        nonce_caller: &Nonce,
        nonce_tpm: &[u8],
    ) -> Self {
        let nonces = [nonce_tpm, nonce_caller].concat();
        let key: Zeroizing<[u8; 32]> = kdfa(authority.expose(), LABEL, &nonces);
        Self {
            handle,
            key: hmac::Key::new(hmac::HMAC_SHA256, key.as_ref()),
            nonce_tpm: nonce_tpm.to_vec(),
        }
    }

    /// Its handle.
    pub(super) fn handle(&self) -> Handle {
        self.handle
    }

    /// Proves that the owner wants the command with this code and these parameters to act on the
    /// entities with these names.
    pub(super) fn prove(
        &self,
        code: &[u8],
        names: &[Vec<u8>],
        parameters: &[u8],
    ) -> Result<Proof, ManufactureError> {
        let mut command = Sha256::new().chain_update(code);
        for name in names {
            command.update(name);
        }
        let command = command.chain_update(parameters).finalize();
        let nonce_caller = nonce()?;
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&command);
        context.update(&nonce_caller);
        context.update(&self.nonce_tpm);
        context.update(&[CONTINUE]);
        Ok(Proof {
            nonce_caller,
            hmac: context.sign(),
        })
    }

    /// Takes the nonce for the next use out of the response to the last one.
    pub(super) fn rolled(&mut self, nonce_tpm: &[u8]) {
        self.nonce_tpm = nonce_tpm.to_vec();
    }
}
