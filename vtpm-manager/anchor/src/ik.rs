//! The host IK as a signing key for certificates.

use std::sync::{Mutex, PoisonError};

use cert_chain::AttestationKey;
use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm, SigningKey};

use super::error::AnchorError;
use super::queue::Priority;
use super::trust_anchor::TrustAnchor;

/// Signs certificates with the host IK in the physical TPM.
///
/// The key is restricted: it signs only what the TPM hashed itself (TPM 2.0 Part 3 §20.2), so
/// at most 1,024 bytes. Signing blocks for as long as the TPM takes: call it from
/// `spawn_blocking`.
pub struct HostIkSigner {
    anchor: TrustAnchor,
    ik: AttestationKey,
    priority: Priority,
    failure: Mutex<Option<AnchorError>>,
}

impl TrustAnchor {
    /// The host IK for signing certificates.
    pub fn ik_signer(&self, ik: &AttestationKey) -> HostIkSigner {
        HostIkSigner::new(self.clone(), ik.clone())
    }
}

impl HostIkSigner {
    pub(super) fn new(anchor: TrustAnchor, ik: AttestationKey) -> Self {
        Self {
            anchor,
            ik,
            priority: Priority::Bulk,
            failure: Mutex::new(None),
        }
    }

    /// The same key, for what is needed and can wait: before the background's.
    pub fn later(mut self) -> Self {
        self.priority = Priority::Later;
        self
    }

    /// The same key, for what the TPM signs when it has nothing more urgent to do.
    pub fn in_background(mut self) -> Self {
        self.priority = Priority::Background;
        self
    }

    /// Why signing failed last: `rcgen` has no place for a reason.
    pub fn take_failure(&self) -> Option<AnchorError> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

impl PublicKeyData for HostIkSigner {
    fn der_bytes(&self) -> &[u8] {
        self.ik.public_area().public_key_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for HostIkSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.anchor
            .sign_blocking(self.priority, message.to_vec())
            .map_err(|error| {
                tracing::warn!(%error, "the host IK did not sign");
                *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                rcgen::Error::RemoteKeyError
            })
    }
}

impl Clone for HostIkSigner {
    fn clone(&self) -> Self {
        Self {
            priority: self.priority,
            ..Self::new(self.anchor.clone(), self.ik.clone())
        }
    }
}
