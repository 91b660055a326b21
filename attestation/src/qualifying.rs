//! What the two quotes sign beyond the PCRs: their qualifying data.
//!
//! Each value is the SHA-256 digest of a deterministic CBOR array (RFC 8949 §4.2) that starts
//! with a domain string, so that no value made for one purpose can serve for another.

use std::convert::Infallible;

use cert_chain::{Digest32, TpmName};
use minicbor::{Decode, Encode, Encoder};

use crate::binding::Binding;
use crate::nonce::Nonce;

/// All that a guest hands to its host when it asks for a host layer: a digest over the VM's
/// quote, its signature and the challenge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct RequestDigest(#[n(0)] pub Digest32);

const VM_QUOTE: &str = "vrot vm quote v1";
const HOST_REQUEST: &str = "vrot host evidence request v1";
const HOST_QUOTE: &str = "vrot host quote v1";

/// Qualifying data of the vIK's quote: challenge, purpose and the event log that goes with it.
/// The log is covered as a whole, because most of what it says is not what a PCR measured.
pub fn vm_qualifying_data(nonce: &Nonce, binding: &Binding, event_log: &Digest32) -> Digest32 {
    digest(|encoder| {
        encoder
            .array(4)?
            .str(VM_QUOTE)?
            .encode(nonce)?
            .encode(binding)?
            .encode(event_log)?
            .ok()
    })
}

/// What the host layer is asked for: this quote, under this signature, for this challenge.
///
/// `attest` is the marshalled `TPMS_ATTEST`, `signature` the marshalled `TPMT_SIGNATURE`.
pub fn request_digest(attest: &[u8], signature: &[u8], nonce: &Nonce) -> RequestDigest {
    RequestDigest(digest(|encoder| {
        encoder
            .array(4)?
            .str(HOST_REQUEST)?
            .encode(Digest32::of(attest))?
            .encode(Digest32::of(signature))?
            .encode(nonce)?
            .ok()
    }))
}

/// Qualifying data of the host IK's quote: the tree of all requests that it answers, the key's
/// own name, and the host's event log.
pub fn host_qualifying_data(
    root: &Digest32,
    tree_size: u64,
    host_ik: &TpmName,
    event_log: &Digest32,
) -> Digest32 {
    digest(|encoder| {
        encoder
            .array(5)?
            .str(HOST_QUOTE)?
            .encode(root)?
            .u64(tree_size)?
            .encode(host_ik)?
            .encode(event_log)?
            .ok()
    })
}

fn digest(
    write: impl FnOnce(&mut Encoder<Vec<u8>>) -> Result<(), minicbor::encode::Error<Infallible>>,
) -> Digest32 {
    let mut encoder = Encoder::new(Vec::new());
    match write(&mut encoder) {
        Ok(()) => Digest32::of(&encoder.into_writer()),
        Err(error) => unreachable!("a Vec takes every byte: {error}"),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn nonce(byte: u8) -> Nonce {
        Nonce::new([byte; 32]).unwrap()
    }

    #[test]
    fn qualifying_data_depend_on_every_input() {
        let log = Digest32::of(b"log");
        let base = vm_qualifying_data(&nonce(1), &Binding::None, &log);
        assert_ne!(base, vm_qualifying_data(&nonce(2), &Binding::None, &log));
        assert_ne!(
            base,
            vm_qualifying_data(&nonce(1), &Binding::Key(log), &log)
        );
        assert_ne!(
            base,
            vm_qualifying_data(&nonce(1), &Binding::None, &Digest32::of(b"other"))
        );
    }

    #[test]
    fn a_request_digest_depends_on_every_input() {
        let base = request_digest(b"quote", b"signature", &nonce(1));
        assert_ne!(base, request_digest(b"other", b"signature", &nonce(1)));
        assert_ne!(base, request_digest(b"quote", b"other", &nonce(1)));
        assert_ne!(base, request_digest(b"quote", b"signature", &nonce(2)));
    }

    #[test]
    fn equal_digests_for_two_purposes_are_kept_apart() {
        let digest = Digest32::of(b"x");
        assert_ne!(
            vm_qualifying_data(&nonce(1), &Binding::Key(digest), &digest),
            vm_qualifying_data(&nonce(1), &Binding::Document(digest), &digest)
        );
    }
}
