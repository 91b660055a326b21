//! The commands that are timed.

use cert_chain::HashAlgorithm;
use tpm_wire::{NO_SESSIONS, SESSIONS, frame};

use crate::vmm::{password, pcr_extend};

/// A kind of command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `TPM2_GetRandom` of 16 bytes: next to nothing is done.
    GetRandom,
    /// `TPM2_PCR_Read` of eight PCRs.
    PcrRead,
    /// `TPM2_PCR_Extend` of one PCR, as firmware and IMA do.
    PcrExtend,
    /// `TPM2_Quote` of eight PCRs by a P-256 key: nearly all of the time is the signature's.
    Quote,
}

const GET_RANDOM: u32 = 0x17b;
const PCR_READ: u32 = 0x17e;
const CREATE_PRIMARY: u32 = 0x131;
const QUOTE: u32 = 0x158;

const OWNER: u32 = 0x4000_0001;
const ALG_RSA: u16 = 0x0001;
const ALG_SHA256: u16 = 0x000b;
const ALG_NULL: u16 = 0x0010;
const ALG_ECDSA: u16 = 0x0018;
const ALG_ECC: u16 = 0x0023;
const NIST_P256: u16 = 0x0003;
/// `fixedTPM`, `fixedParent`, `sensitiveDataOrigin`, `userWithAuth`, `restricted`, `sign`.
const SIGNING: u32 = 0x0005_0072;
/// `fixedTPM`, `fixedParent`, `sensitiveDataOrigin`, `userWithAuth`, `restricted`, `decrypt`.
const STORAGE: u32 = 0x0003_0072;
/// One that an operating system may use.
const PCR: u32 = 10;

impl Kind {
    /// All of them.
    pub(super) const ALL: [Self; 4] =
        [Self::GetRandom, Self::PcrRead, Self::PcrExtend, Self::Quote];

    /// What its figures' names end in.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::GetRandom => "",
            Self::PcrRead => "_pcr_read",
            Self::PcrExtend => "_pcr_extend",
            Self::Quote => "_quote",
        }
    }

    /// The command, with this key if it needs one.
    pub(super) fn command(self, key: [u8; 4]) -> Vec<u8> {
        match self {
            Self::GetRandom => frame(NO_SESSIONS, GET_RANDOM, &16u16.to_be_bytes()),
            Self::PcrRead => frame(NO_SESSIONS, PCR_READ, &first_eight()),
            Self::PcrExtend => pcr_extend(PCR, &HashAlgorithm::Sha256.filled(0xab)),
            Self::Quote => {
                let nonce = [&32u16.to_be_bytes()[..], &[0x5a; 32]].concat();
                let scheme = ALG_NULL.to_be_bytes();
                let body = [&key[..], &password(), &nonce, &scheme, &first_eight()].concat();
                frame(SESSIONS, QUOTE, &body)
            }
        }
    }
}

/// `TPM2_CreatePrimary` of a storage key of RSA, another one for each number.
pub(super) fn create_rsa_key(number: u32) -> Vec<u8> {
    let public = [
        &ALG_RSA.to_be_bytes()[..],
        &ALG_SHA256.to_be_bytes(),
        &STORAGE.to_be_bytes(),
        &[0, 0],                  // no policy
        &[0, 6, 0, 128, 0, 0x43], // AES-128 in CFB mode
        &ALG_NULL.to_be_bytes(),
        &[8, 0, 0, 0, 0, 0], // 2048 bits, the usual exponent
        &[0, 4],
        &number.to_be_bytes(),
    ]
    .concat();
    create_primary(&public)
}

/// `TPM2_CreatePrimary` of the key that quotes.
pub(super) fn create_key() -> Vec<u8> {
    let public = [
        &ALG_ECC.to_be_bytes()[..],
        &ALG_SHA256.to_be_bytes(),
        &SIGNING.to_be_bytes(),
        &[0, 0], // no policy
        &ALG_NULL.to_be_bytes(),
        &ALG_ECDSA.to_be_bytes(),
        &ALG_SHA256.to_be_bytes(),
        &NIST_P256.to_be_bytes(),
        &ALG_NULL.to_be_bytes(),
        &[0, 0, 0, 0], // no unique value
    ]
    .concat();
    create_primary(&public)
}

fn create_primary(public: &[u8]) -> Vec<u8> {
    // Some twenty bytes.
    let size = u16::try_from(public.len()).unwrap_or(u16::MAX);
    let body = [
        &OWNER.to_be_bytes()[..],
        &password(),
        &[0, 4, 0, 0, 0, 0], // no authorization value, no data
        &size.to_be_bytes(),
        public,
        &[0, 0, 0, 0, 0, 0], // no outside information, no PCRs
    ]
    .concat();
    frame(SESSIONS, CREATE_PRIMARY, &body)
}

/// A selection of PCRs 0 to 7 in the SHA-256 bank (`TPML_PCR_SELECTION`).
fn first_eight() -> Vec<u8> {
    let bank = ALG_SHA256.to_be_bytes();
    [&1u32.to_be_bytes()[..], &bank, &[3, 0xff, 0, 0]].concat()
}
