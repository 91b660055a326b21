//! Key derivation as a TPM does it.

use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

/// KDFa (TPM 2.0 Part 1 §11.4.10): SP 800-108 in counter mode with HMAC-SHA-256, for keys of up to
/// 32 bytes, which one round makes. `context` is contextU followed by contextV.
pub fn kdfa<const N: usize>(key: &[u8], label: &str, context: &[u8]) -> Zeroizing<[u8; N]> {
    const { assert!(N <= 32, "one round of HMAC-SHA-256") };
    let mut mac = keyed(key);
    mac.update(&1u32.to_be_bytes());
    mac.update(label.as_bytes());
    mac.update(&[0]);
    mac.update(context);
    mac.update(&bits::<N>());
    first_bytes(&mac.finalize().into_bytes())
}

pub(crate) fn keyed(key: &[u8]) -> Hmac<Sha256> {
    match Hmac::new_from_slice(key) {
        Ok(mac) => mac,
        // HMAC is defined for keys of every length (RFC 2104 §2).
        Err(error) => unreachable!("HMAC key: {error}"),
    }
}

/// The key length in bits, as the KDF's last input.
const fn bits<const N: usize>() -> [u8; 4] {
    #[expect(clippy::cast_possible_truncation, reason = "N is at most 32")]
    let bits = (N * 8) as u32;
    bits.to_be_bytes()
}

pub(crate) fn first_bytes<const N: usize>(digest: &[u8]) -> Zeroizing<[u8; N]> {
    let mut key = Zeroizing::new([0; N]);
    for (to, from) in key.iter_mut().zip(digest) {
        *to = *from;
    }
    key
}
