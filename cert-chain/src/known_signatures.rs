//! Signatures of certificates that were verified lately.
//!
//! The same certificates come with each connection and each round of attestation. What was verified once need
//! not be verified again: to verify a signature takes most of the time that a small device has for evidence. All
//! else about a certificate is checked each time.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};

use crate::digest::Digest32;

/// Which signatures were verified lately: the last [`MOST`] for certain, and at most twice as many.
#[derive(Default)]
pub(crate) struct KnownSignatures(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    young: HashSet<Digest32>,
    old: HashSet<Digest32>,
}

/// An algorithm that verifies what it has not verified lately.
#[derive(Debug)]
pub struct Remembering<'k> {
    algorithm: &'static dyn SignatureVerificationAlgorithm,
    known: &'k KnownSignatures,
}

/// Hosts and VMs with which a gateway deals at a time have two certificates each.
const MOST: usize = 1024;

impl KnownSignatures {
    pub(crate) fn remembering(
        &self,
        algorithm: &'static dyn SignatureVerificationAlgorithm,
    ) -> Remembering<'_> {
        Remembering {
            algorithm,
            known: self,
        }
    }

    fn has(&self, signature: &Digest32) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.young.contains(signature) || known.old.contains(signature)
    }

    fn add(&self, signature: Digest32) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.young.len() >= MOST {
            known.old = std::mem::take(&mut known.young);
        }
        known.young.insert(signature);
    }
}

impl Remembering<'_> {
    /// Stands for one key, message and signature, and for how they belong together.
    fn digest(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> Digest32 {
        let algorithms = [
            self.algorithm.public_key_alg_id(),
            self.algorithm.signature_alg_id(),
        ];
        let [key, signing] = &algorithms;
        let parts = [
            key.as_ref(),
            signing.as_ref(),
            public_key,
            message,
            signature,
        ];
        let mut bytes = Vec::new();
        for part in parts {
            bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part);
        }
        Digest32::of(&bytes)
    }
}

impl SignatureVerificationAlgorithm for Remembering<'_> {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let digest = self.digest(public_key, message, signature);
        if !self.known.has(&digest) {
            (self.algorithm).verify_signature(public_key, message, signature)?;
            self.known.add(digest);
        }
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.signature_alg_id()
    }
}

impl fmt::Debug for KnownSignatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KnownSignatures")
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::sync::atomic::{AtomicUsize, Ordering};

    use rustls_pki_types::alg_id;

    use super::*;

    /// A signature is the message itself; how often that was looked at is counted.
    #[derive(Debug)]
    struct Counting(AtomicUsize);

    impl SignatureVerificationAlgorithm for Counting {
        fn verify_signature(
            &self,
            _: &[u8],
            message: &[u8],
            signature: &[u8],
        ) -> Result<(), InvalidSignature> {
            self.0.fetch_add(1, Ordering::SeqCst);
            (message == signature).then_some(()).ok_or(InvalidSignature)
        }

        fn public_key_alg_id(&self) -> AlgorithmIdentifier {
            alg_id::ECDSA_P256
        }

        fn signature_alg_id(&self) -> AlgorithmIdentifier {
            alg_id::ECDSA_SHA256
        }
    }

    #[test]
    fn a_signature_is_verified_once_and_a_wrong_one_each_time() {
        static ALGORITHM: Counting = Counting(AtomicUsize::new(0));
        let looked = || ALGORITHM.0.load(Ordering::SeqCst);
        let known = KnownSignatures::default();
        let algorithm = known.remembering(&ALGORITHM);
        algorithm.verify_signature(b"key", b"aa", b"aa").unwrap();
        algorithm.verify_signature(b"key", b"aa", b"aa").unwrap();
        assert_eq!(looked(), 1);
        // Neither of another key, nor of one that takes bytes of the message.
        algorithm.verify_signature(b"other", b"aa", b"aa").unwrap();
        algorithm.verify_signature(b"keyaa", b"a", b"a").unwrap();
        assert_eq!(looked(), 3);
        for _ in 0..2 {
            let wrong = algorithm.verify_signature(b"key", b"aa", b"ab");
            assert!(wrong.is_err());
        }
        assert_eq!(looked(), 5);
    }

    #[test]
    fn the_last_signatures_are_known_and_no_more_than_there_is_room_for() {
        let known = KnownSignatures::default();
        let of = |number: usize| Digest32::of(&number.to_be_bytes());
        for number in 0..5 * MOST {
            known.add(of(number));
            assert!(known.has(&of(number)));
            assert!(number < MOST - 1 || known.has(&of(number + 1 - MOST)));
        }
        let kept = (0..5 * MOST).filter(|number| known.has(&of(*number)));
        assert!(kept.count() <= 2 * MOST);
    }
}
