//! The keys that authenticate the chain of batches and the anchor, all from the root secret.

use std::fmt;

use ring::hmac;
use zeroize::Zeroizing;

use super::register::Register;

/// Keys that only this host's manager has, because only this host's TPM unseals the root secret.
#[derive(Clone)]
pub struct RollbackKeys {
    chain: hmac::Key,
    anchor: hmac::Key,
    volatile_auth: Zeroizing<[u8; 32]>,
    durable_auth: Zeroizing<[u8; 32]>,
    generation_auth: Zeroizing<[u8; 32]>,
}

const CHAIN_LABEL: &[u8] = b"vrot rollback chain key v1";
const ANCHOR_LABEL: &[u8] = b"vrot rollback anchor key v1";
const VOLATILE_AUTH_LABEL: &[u8] = b"vrot rollback volatile index auth v1";
const DURABLE_AUTH_LABEL: &[u8] = b"vrot rollback durable index auth v1";
const GENERATION_AUTH_LABEL: &[u8] = b"vrot rollback generation index auth v1";

impl RollbackKeys {
    /// Derives the keys from the root secret that the physical TPM unsealed.
    pub fn derive(root_secret: &[u8]) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, root_secret);
        Self {
            chain: hmac::Key::new(hmac::HMAC_SHA256, &*subkey(&root, CHAIN_LABEL)),
            anchor: hmac::Key::new(hmac::HMAC_SHA256, &*subkey(&root, ANCHOR_LABEL)),
            volatile_auth: subkey(&root, VOLATILE_AUTH_LABEL),
            durable_auth: subkey(&root, DURABLE_AUTH_LABEL),
            generation_auth: subkey(&root, GENERATION_AUTH_LABEL),
        }
    }

    /// The authorization value of a register's NV index. Without it the index can neither be
    /// written nor replaced by another one that answers to it.
    pub fn auth(&self, register: Register) -> &Zeroizing<[u8; 32]> {
        match register {
            Register::Volatile => &self.volatile_auth,
            Register::Durable => &self.durable_auth,
        }
    }

    /// The authorization value of the generation counter's NV index.
    pub fn generation_auth(&self) -> &Zeroizing<[u8; 32]> {
        &self.generation_auth
    }

    pub(super) fn chain(&self) -> &hmac::Key {
        &self.chain
    }

    pub(super) fn anchor(&self) -> &hmac::Key {
        &self.anchor
    }
}

impl fmt::Debug for RollbackKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RollbackKeys(..)")
    }
}

/// One HMAC with a label is the expand step of HKDF for a single block (RFC 5869 §2.3, with the
/// root secret as the pseudorandom key it is).
fn subkey(root: &hmac::Key, label: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut context = hmac::Context::with_key(root);
    context.update(label);
    context.update(&[1]);
    let tag = context.sign();
    let mut key = Zeroizing::new([0; 32]);
    key.copy_from_slice(tag.as_ref());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Indices in the field answer to these values alone.
    #[test]
    fn the_authorization_values_of_version_one_stay_as_they_are() {
        let keys = RollbackKeys::derive(&[7; 32]);
        let values = [
            keys.auth(Register::Volatile),
            keys.auth(Register::Durable),
            keys.generation_auth(),
        ];
        let golden: Vec<&str> = include_str!("index_auth_v1.hex").lines().collect();
        assert_eq!(values.map(|value| hex::encode(**value)).as_slice(), golden);
    }
}
