//! Quotes: `TPMS_ATTEST` of type quote (TPM 2.0 Part 2 §10.12) and the signature over it.

use cert_chain::pcr::BANKS;
use cert_chain::{AttestationKey, Digest32, HashAlgorithm, PcrSelection, TpmName};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde::Serialize;
use tpm2_protocol::data::{TpmAlgId, TpmsAttest, TpmtSignature, TpmuAttest, TpmuSignature};
use tpm2_protocol::{TpmError, TpmUnmarshal};

/// A quote whose signature was verified with a given key.
///
/// It establishes that the TPM with that key reported these PCRs. It does not establish whose
/// key that is, nor that the quote is fresh: the qualifying data do, once they are compared.
#[derive(Clone, Debug)]
pub struct VerifiedQuote {
    qualifying_data: Vec<u8>,
    clock: ClockInfo,
    firmware_version: u64,
    bank: HashAlgorithm,
    selection: PcrSelection,
    pcr_digest: Digest32,
}

/// `TPMS_CLOCK_INFO`: lets a verifier see that a TPM was reset between two quotes of one key.
///
/// The two counts are what they say only where the key lives in the endorsement or platform
/// hierarchy, as a vIK does. For all other keys, a host IK among them, the TPM adds a secret
/// number that stays the same for that key (TPM 2.0 Part 3 §18.1): they can then be compared for
/// equality, and say nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ClockInfo {
    /// Milliseconds for which the TPM had power.
    pub clock_ms: u64,
    /// Resets of the TPM since it was last cleared.
    pub reset_count: u32,
    /// Restarts and resumptions since the last reset.
    pub restart_count: u32,
    /// Whether the clock cannot have had any of these values before. It is `false` for a while
    /// after every loss of power, so nothing here relies on the clock, and nobody is judged by
    /// this.
    pub safe: bool,
}

/// Why a quote is not valid.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuoteError {
    /// The statement cannot be read. Only signed statements are read.
    #[error("the statement that the TPM signed is malformed")]
    Malformed(#[source] TpmError),
    /// The TPM signed something else.
    #[error("the TPM signed a statement that is no quote")]
    NotAQuote,
    /// The PCRs are in several banks, or in none.
    #[error("the quote must select PCRs of one bank, and not of {banks}")]
    Banks {
        /// How many banks it selects.
        banks: usize,
    },
    /// The bank's algorithm is not accepted.
    #[error("the quote selects PCRs of the {bank} bank: sha256, sha384 or sha512 is needed")]
    Bank {
        /// Its name, or the number of its algorithm.
        bank: String,
    },
    /// PCRs that do not exist, or a digest of them that is no SHA-256 value.
    #[error("the quote's selection of PCRs, or the digest over them, is not as a TPM makes it")]
    Selection,
    /// The signature does not verify.
    #[error("the signature does not verify with the key")]
    Signature,
    /// The signature's algorithms are not accepted.
    #[error("the signature must be ECDSA with SHA-256")]
    SignatureAlgorithm,
    /// `r` or `s` is not written in full length.
    #[error("r and s of the signature must have {SCALAR} bytes each, not {r} and {s}")]
    SignatureLength {
        /// Length of `r`.
        r: usize,
        /// Length of `s`.
        s: usize,
    },
    /// The signature cannot be read.
    #[error("the signature is malformed")]
    SignatureMalformed(#[source] TpmError),
    /// Bytes follow a structure.
    #[error("bytes follow the {structure}")]
    TrailingBytes {
        /// What they follow.
        structure: &'static str,
    },
}

/// Keeps the digest apart from all others over the same bytes.
const BOOT_CYCLE: &[u8] = b"vrot boot cycle v1";
/// Length of a coordinate or scalar on P-256.
const SCALAR: usize = 32;
/// The same as a `TPM2B` states it.
const SCALAR_LENGTH: u16 = 32;
/// `TPM_ALG_ECDSA`
const ECDSA: u16 = 0x0018;
/// `TPM_ALG_SHA256`
const SHA256: u16 = 0x000b;

impl ClockInfo {
    /// A digest that is the same in two quotes of the same key as long as the TPM was neither
    /// reset nor restarted between them. There is no other meaning in it, and no order.
    pub fn boot_cycle(&self, key: &TpmName) -> Digest32 {
        let counts = [
            self.reset_count.to_be_bytes(),
            self.restart_count.to_be_bytes(),
        ];
        Digest32::of(&[BOOT_CYCLE, key.as_bytes(), counts.as_flattened()].concat())
    }
}

impl VerifiedQuote {
    /// Verifies the signature, and only then reads what was signed.
    ///
    /// `attest` is a marshalled `TPMS_ATTEST`, `signature` a marshalled `TPMT_SIGNATURE`.
    pub fn verify(
        attest: &[u8],
        signature: &[u8],
        key: &AttestationKey,
    ) -> Result<Self, QuoteError> {
        Self::read(verify_signature(attest, signature, key)?)
    }

    fn read(attest: &[u8]) -> Result<Self, QuoteError> {
        let (attest, rest) = TpmsAttest::unmarshal(attest).map_err(QuoteError::Malformed)?;
        if !rest.is_empty() {
            return Err(QuoteError::TrailingBytes {
                structure: "statement",
            });
        }
        let TpmuAttest::Quote(quote) = &attest.attested else {
            return Err(QuoteError::NotAQuote);
        };
        let [bank] = quote.pcr_select.as_ref() else {
            return Err(QuoteError::Banks {
                banks: quote.pcr_select.as_ref().len(),
            });
        };
        let octets: &[u8] = bank.pcr_select.as_ref();
        let bank = accepted_bank(bank.hash as u16)?;
        let selected = octets.iter().zip(0u8..).flat_map(|(octet, at)| {
            (0..8u8)
                .filter(move |bit| octet >> bit & 1 == 1)
                .map(move |bit| at.saturating_mul(8).saturating_add(bit))
        });
        let selection = PcrSelection::new(selected).map_err(|_| QuoteError::Selection)?;
        let pcr_digest = <[u8; 32]>::try_from(quote.pcr_digest.as_ref())
            .map_err(|_| QuoteError::Selection)?
            .into();
        let clock = &attest.clock_info;
        Ok(Self {
            qualifying_data: attest.extra_data.as_ref().to_vec(),
            clock: ClockInfo {
                clock_ms: clock.clock.value(),
                reset_count: clock.reset_count.value(),
                restart_count: clock.restart_count.value(),
                safe: bool::from(clock.safe),
            },
            firmware_version: attest.firmware_version.value(),
            bank,
            selection,
            pcr_digest,
        })
    }

    /// What the caller of `TPM2_Quote` gave.
    pub fn qualifying_data(&self) -> &[u8] {
        &self.qualifying_data
    }

    /// The TPM's clock and counters.
    pub fn clock(&self) -> ClockInfo {
        self.clock
    }

    /// The TPM's firmware version, as its maker counts; for keys outside the endorsement and
    /// platform hierarchies obfuscated as the counts of [`ClockInfo`] are.
    pub fn firmware_version(&self) -> u64 {
        self.firmware_version
    }

    /// The quoted PCRs' bank.
    pub fn bank(&self) -> HashAlgorithm {
        self.bank
    }

    /// The quoted PCRs.
    pub fn selection(&self) -> PcrSelection {
        self.selection
    }

    /// SHA-256 value over the quoted PCRs' values, in rising order: the key's hash algorithm
    /// decides, not the bank's.
    pub fn pcr_digest(&self) -> &Digest32 {
        &self.pcr_digest
    }
}

/// Statements of TPMs are read only once their signature is verified.
pub(crate) fn verify_signature<'a>(
    attest: &'a [u8],
    signature: &[u8],
    key: &AttestationKey,
) -> Result<&'a [u8], QuoteError> {
    let signature = fixed_signature(signature)?;
    UnparsedPublicKey::new(
        &ECDSA_P256_SHA256_FIXED,
        key.public_area().public_key_bytes(),
    )
    .verify(attest, &signature)
    .map_err(|_| QuoteError::Signature)?;
    Ok(attest)
}

fn accepted_bank(algorithm: u16) -> Result<HashAlgorithm, QuoteError> {
    let known = HashAlgorithm::from_identifier(algorithm);
    known
        .filter(|bank| BANKS.contains(bank))
        .ok_or_else(|| QuoteError::Bank {
            bank: known.map_or_else(
                || format!("0x{algorithm:04x}"),
                |bank| bank.name().to_owned(),
            ),
        })
}

/// The form in which evidence carries a signature: a `TPMT_SIGNATURE` with ECDSA and SHA-256,
/// `r` and `s` in full length. Some TPMs strip leading zeros; whoever makes evidence passes what
/// its TPM returned through here, since a verifier accepts one form only.
pub fn canonical_signature(tpmt_signature: &[u8]) -> Result<Vec<u8>, QuoteError> {
    let (r, s) = read_signature(tpmt_signature)?;
    let too_long = QuoteError::SignatureLength {
        r: r.len(),
        s: s.len(),
    };
    let mut signature = [ECDSA.to_be_bytes(), SHA256.to_be_bytes()].concat();
    for scalar in [r, s] {
        let Some(zeros) = SCALAR.checked_sub(scalar.len()) else {
            return Err(too_long);
        };
        signature.extend(SCALAR_LENGTH.to_be_bytes());
        signature.resize(signature.len() + zeros, 0);
        signature.extend(scalar);
    }
    Ok(signature)
}

/// `r ‖ s`, from a signature in [canonical form](canonical_signature).
pub fn fixed_signature(bytes: &[u8]) -> Result<[u8; 2 * SCALAR], QuoteError> {
    let (r, s) = read_signature(bytes)?;
    let wrong_length = QuoteError::SignatureLength {
        r: r.len(),
        s: s.len(),
    };
    if r.len() != SCALAR {
        return Err(wrong_length);
    }
    [r, s].concat().try_into().map_err(|_| wrong_length)
}

fn read_signature(bytes: &[u8]) -> Result<(Vec<u8>, Vec<u8>), QuoteError> {
    let (signature, rest) =
        TpmtSignature::unmarshal(bytes).map_err(QuoteError::SignatureMalformed)?;
    if !rest.is_empty() {
        return Err(QuoteError::TrailingBytes {
            structure: "signature",
        });
    }
    let TpmuSignature::Ecdsa(ecdsa) = &signature.signature else {
        return Err(QuoteError::SignatureAlgorithm);
    };
    if ecdsa.hash != TpmAlgId::Sha256 {
        return Err(QuoteError::SignatureAlgorithm);
    }
    Ok((
        ecdsa.signature_r.as_ref().to_vec(),
        ecdsa.signature_s.as_ref().to_vec(),
    ))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn signature(r: &[u8], s: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x00, 0x18, 0x00, 0x0b];
        for scalar in [r, s] {
            bytes.extend(u16::try_from(scalar.len()).unwrap().to_be_bytes());
            bytes.extend(scalar);
        }
        bytes
    }

    #[test]
    fn a_stripped_signature_is_filled_up_and_a_full_one_stays() {
        let full = signature(&[[0; 1].as_slice(), &[7; 31]].concat(), &[9; 32]);
        let stripped = signature(&[7; 31], &[9; 32]);
        assert_eq!(canonical_signature(&stripped).unwrap(), full);
        assert_eq!(canonical_signature(&full).unwrap(), full);
    }

    #[test]
    fn only_the_canonical_form_is_accepted() {
        for (r, s) in [(31, 32), (32, 31), (33, 31), (33, 32), (0, 64), (0, 0)] {
            let bytes = signature(&vec![7; r], &vec![7; s]);
            assert!(fixed_signature(&bytes).is_err(), "{r} and {s} bytes");
        }
        assert!(fixed_signature(&signature(&[7; 32], &[7; 32])).is_ok());
        assert!(canonical_signature(&signature(&[7; 33], &[7; 32])).is_err());
    }

    #[test]
    fn a_boot_cycle_is_the_same_until_a_reset_or_restart_and_differs_from_key_to_key() {
        let clock = ClockInfo {
            clock_ms: 1,
            reset_count: 0x8000_0003,
            restart_count: 0xffff_ffff,
            safe: true,
        };
        let key =
            |byte| TpmName::from_bytes(&[&[0, 0x0b], [byte; 32].as_slice()].concat()).unwrap();
        let cycle = clock.boot_cycle(&key(1));
        let later = ClockInfo {
            clock_ms: 2,
            safe: false,
            ..clock
        };
        assert_eq!(later.boot_cycle(&key(1)), cycle);
        assert_ne!(clock.boot_cycle(&key(2)), cycle);
        for other in [
            ClockInfo {
                reset_count: 0x8000_0004,
                ..clock
            },
            ClockInfo {
                restart_count: 0,
                ..clock
            },
        ] {
            assert_ne!(other.boot_cycle(&key(1)), cycle);
        }
    }

    #[test]
    fn other_algorithms_are_refused() {
        let mut bytes = signature(&[7; 32], &[7; 32]);
        for (position, value) in [(1, 0x1a), (3, 0x0c)] {
            let other = std::mem::replace(bytes.get_mut(position).unwrap(), value);
            assert!(matches!(
                fixed_signature(&bytes),
                Err(QuoteError::SignatureAlgorithm | QuoteError::SignatureMalformed(_))
            ));
            *bytes.get_mut(position).unwrap() = other;
        }
    }
}
