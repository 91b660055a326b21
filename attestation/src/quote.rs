//! Quotes: `TPMS_ATTEST` of type quote (TPM 2.0 Part 2 §10.12) and the signature over it.

use cert_chain::policy::PcrSelection;
use cert_chain::{AttestationKey, Digest32};
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
    selection: PcrSelection,
    pcr_digest: Digest32,
}

/// `TPMS_CLOCK_INFO`: lets a verifier see that a TPM was reset between two quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ClockInfo {
    /// Milliseconds for which the TPM had power.
    pub clock_ms: u64,
    /// Resets of the TPM since it was last cleared.
    pub reset_count: u32,
    /// Restarts and resumptions since the last reset.
    pub restart_count: u32,
    /// Whether the clock cannot have had any of these values before.
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
    /// The PCRs are not in one SHA-256 bank.
    #[error("the quote must select PCRs of the SHA-256 bank, and of no other")]
    Selection,
    /// The signature does not verify.
    #[error("the signature does not verify with the key")]
    Signature,
    /// The signature's algorithms are not accepted.
    #[error("the signature must be ECDSA with SHA-256")]
    SignatureAlgorithm,
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

/// Length of a coordinate or scalar on P-256.
const SCALAR: usize = 32;

impl VerifiedQuote {
    /// Verifies the signature, and only then reads what was signed.
    ///
    /// `attest` is a marshalled `TPMS_ATTEST`, `signature` a marshalled `TPMT_SIGNATURE`.
    pub fn verify(
        attest: &[u8],
        signature: &[u8],
        key: &AttestationKey,
    ) -> Result<Self, QuoteError> {
        let signature = fixed_signature(signature)?;
        UnparsedPublicKey::new(
            &ECDSA_P256_SHA256_FIXED,
            key.public_area().public_key_bytes(),
        )
        .verify(attest, &signature)
        .map_err(|_| QuoteError::Signature)?;
        Self::read(attest)
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
            return Err(QuoteError::Selection);
        };
        if bank.hash != TpmAlgId::Sha256 {
            return Err(QuoteError::Selection);
        }
        let octets: &[u8] = bank.pcr_select.as_ref();
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

    /// The TPM's firmware version, as its maker counts.
    pub fn firmware_version(&self) -> u64 {
        self.firmware_version
    }

    /// The quoted PCRs of the SHA-256 bank.
    pub fn selection(&self) -> PcrSelection {
        self.selection
    }

    /// SHA-256 value over the quoted PCRs' values, in rising order.
    pub fn pcr_digest(&self) -> &Digest32 {
        &self.pcr_digest
    }
}

/// `r ‖ s`. Some TPMs strip leading zeros; each half is filled up again.
fn fixed_signature(bytes: &[u8]) -> Result<[u8; 2 * SCALAR], QuoteError> {
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
    let mut fixed = [0; 2 * SCALAR];
    let halves = [ecdsa.signature_r.as_ref(), ecdsa.signature_s.as_ref()];
    for (half, scalar) in fixed.chunks_exact_mut(SCALAR).zip(halves) {
        let padding = SCALAR
            .checked_sub(scalar.len())
            .ok_or(QuoteError::Signature)?;
        if let Some(end) = half.get_mut(padding..) {
            end.copy_from_slice(scalar);
        }
    }
    Ok(fixed)
}
