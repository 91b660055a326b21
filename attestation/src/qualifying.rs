//! What quotes sign beyond the PCRs: their qualifying data.
//!
//! Each value is the SHA-256 digest of a deterministic CBOR array (RFC 8949 §4.2) that starts
//! with a domain string, so that no value made for one purpose can serve for another.

use std::convert::Infallible;

use cert_chain::{Digest32, TpmName};
use minicbor::{Decode, Encode, Encoder};

use crate::binding::Binding;
use crate::evidence::BootRecord;
use crate::merkle;
use crate::nonce::Nonce;

/// All that a guest hands to its host when it asks for a host layer: a digest over the VM's quote
/// and its signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct RequestDigest(#[n(0)] pub Digest32);

const VM_REQUEST: &str = "vrot vm request v1";
const VM_QUOTE: &str = "vrot vm quote v2";
const HOST_REQUEST: &str = "vrot host evidence request v2";
const TENANT_QUOTE: &str = "vrot tenant quote v1";
const TENANT_REQUEST: &str = "vrot tenant evidence v1";
const HOST_QUOTE: &str = "vrot host quote v1";
const DATA_KEY: &str = "vrot data key v1";
const CONFIRMATION_KEY: &str = "vrot confirmation key v1";
const DEVICE_QUOTE: &str = "vrot device quote v1";

/// The leaf of one request for evidence in the tree that the VM's quote covers: challenge and
/// purpose, the statement about the key that authenticates the connection, and a salt, so that who
/// sees the leaf's neighbours learns nothing of it.
pub fn vm_request_leaf(
    salt: &Digest32,
    nonce: &Nonce,
    binding: &Binding,
    tls_key: Option<&Digest32>,
) -> Digest32 {
    merkle::leaf_hash(&encoded(|encoder| {
        encoder
            .array(5)?
            .str(VM_REQUEST)?
            .encode(salt)?
            .encode(nonce)?
            .encode(binding)?
            .encode(tls_key)?
            .ok()
    }))
}

/// Qualifying data of the vIK's quote: the tree of all requests that it answers, and the boot record
/// that goes with it. A log is covered as a whole, because most of what it says is not what a PCR
/// measured; and so is that there is none.
pub fn vm_qualifying_data(root: &Digest32, tree_size: u64, boot: &BootRecord) -> Digest32 {
    digest(|encoder| {
        encoder
            .array(4)?
            .str(VM_QUOTE)?
            .encode(root)?
            .u64(tree_size)?
            .encode(boot.log_digest())?
            .ok()
    })
}

/// What the host layer is asked for: this quote, under this signature. The quote covers all
/// challenges that it answers.
///
/// `attest` is the marshalled `TPMS_ATTEST`, `signature` the marshalled `TPMT_SIGNATURE`.
pub fn request_digest(attest: &[u8], signature: &[u8]) -> RequestDigest {
    request_digest_of(HOST_REQUEST, attest, signature)
}

fn request_digest_of(domain: &str, attest: &[u8], signature: &[u8]) -> RequestDigest {
    RequestDigest(digest(|encoder| {
        encoder
            .array(3)?
            .str(domain)?
            .encode(Digest32::of(attest))?
            .encode(Digest32::of(signature))?
            .ok()
    }))
}

/// Qualifying data of the vIK's quote that a host has made for the VM's tenant: the tenant's challenge,
/// and the key's own name.
///
/// That a host had it made, this does not show: a guest can have its vIK sign the same. The host's
/// [statement](crate::HostLeaf) does.
pub fn tenant_qualifying_data(nonce: &Nonce, vik: &TpmName) -> Digest32 {
    digest(|encoder| {
        encoder
            .array(3)?
            .str(TENANT_QUOTE)?
            .encode(nonce)?
            .encode(vik)?
            .ok()
    })
}

/// What a host states of a quote that it had made itself. No guest's request gives this value, whatever
/// digest it hands over: the host states the purpose beside it.
pub fn tenant_request_digest(attest: &[u8], signature: &[u8]) -> RequestDigest {
    request_digest_of(TENANT_REQUEST, attest, signature)
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

/// Qualifying data of a device's quote: challenge and purpose, the key's own name, and the device's
/// event log.
pub fn device_qualifying_data(
    nonce: &Nonce,
    binding: &Binding,
    device_ik: &TpmName,
    event_log: &Digest32,
) -> Digest32 {
    digest(|encoder| {
        encoder
            .array(5)?
            .str(DEVICE_QUOTE)?
            .encode(nonce)?
            .encode(binding)?
            .encode(device_ik)?
            .encode(event_log)?
            .ok()
    })
}

/// Qualifying data of the statement by which a TPM's attestation key says that a key of that TPM signs data.
pub fn data_key_qualifying_data() -> Digest32 {
    digest(|encoder| encoder.array(1)?.str(DATA_KEY)?.ok())
}

/// Qualifying data of the statement by which a TPM's attestation key says that a person confirms with a key of
/// that TPM.
pub fn confirmation_key_qualifying_data() -> Digest32 {
    digest(|encoder| encoder.array(1)?.str(CONFIRMATION_KEY)?.ok())
}

fn digest(
    write: impl FnOnce(&mut Encoder<Vec<u8>>) -> Result<(), minicbor::encode::Error<Infallible>>,
) -> Digest32 {
    Digest32::of(&encoded(write))
}

/// What is written, as bytes.
pub(crate) fn encoded(
    write: impl FnOnce(&mut Encoder<Vec<u8>>) -> Result<(), minicbor::encode::Error<Infallible>>,
) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new());
    match write(&mut encoder) {
        Ok(()) => encoder.into_writer(),
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
    fn a_request_s_leaf_depends_on_every_input() {
        let digest = Digest32::of(b"x");
        let other = Digest32::of(b"y");
        let base = vm_request_leaf(&digest, &nonce(1), &Binding::None, None);
        let connection = Binding::Connection(digest);
        for changed in [
            vm_request_leaf(&other, &nonce(1), &Binding::None, None),
            vm_request_leaf(&digest, &nonce(2), &Binding::None, None),
            vm_request_leaf(&digest, &nonce(1), &connection, None),
            vm_request_leaf(&digest, &nonce(1), &Binding::None, Some(&digest)),
            vm_request_leaf(&digest, &nonce(1), &Binding::None, Some(&other)),
        ] {
            assert_ne!(changed, base);
        }
    }

    #[test]
    fn qualifying_data_depend_on_every_input() {
        let (root, other) = (Digest32::of(b"root"), Digest32::of(b"other"));
        let log = BootRecord::of_log(b"log".to_vec());
        let base = vm_qualifying_data(&root, 2, &log);
        assert_ne!(base, vm_qualifying_data(&other, 2, &log));
        assert_ne!(base, vm_qualifying_data(&root, 3, &log));
        let another = BootRecord::of_log(b"another".to_vec());
        assert_ne!(base, vm_qualifying_data(&root, 2, &another));
        assert_ne!(base, vm_qualifying_data(&root, 2, &BootRecord::PcrsAlone));
    }

    #[test]
    fn a_tenants_quote_depends_on_every_input_and_is_of_its_own_purpose() {
        let name = |byte| TpmName::from_bytes(&[&[0, 0x0b], &[byte; 32][..]].concat()).unwrap();
        let base = tenant_qualifying_data(&nonce(1), &name(1));
        assert_ne!(base, tenant_qualifying_data(&nonce(2), &name(1)));
        assert_ne!(base, tenant_qualifying_data(&nonce(1), &name(2)));
        let own = tenant_request_digest(b"quote", b"signature");
        assert_ne!(own, request_digest(b"quote", b"signature"));
        assert_ne!(own, tenant_request_digest(b"other", b"signature"));
        assert_ne!(own, tenant_request_digest(b"quote", b"other"));
    }

    #[test]
    fn a_request_digest_depends_on_every_input() {
        let base = request_digest(b"quote", b"signature");
        assert_ne!(base, request_digest(b"other", b"signature"));
        assert_ne!(base, request_digest(b"quote", b"other"));
    }
}
