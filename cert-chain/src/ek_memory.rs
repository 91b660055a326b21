//! The endorsement key as a TPM's maker left it in the TPM's NV memory, whoever reads that.

use crate::ek_chain::MAX_EK_CHAIN;
use crate::ek_template::{EkTemplate, with_nonce};

/// The NV memory of a TPM, as far as its endorsement key needs it.
pub trait EkMemory {
    /// Why it cannot be read.
    type Error;

    /// At most `count` handles of NV indices that exist, from `first` on.
    fn indices_from(&mut self, first: u32, count: u32) -> Result<Vec<u32>, Self::Error>;

    /// All that an index holds. Makers allow the owner to read it, or the index's own (empty) authorization, or
    /// both.
    fn read_index(&mut self, index: u32) -> Result<Vec<u8>, Self::Error>;

    /// The first endorsement key that has a certificate.
    fn makers_ek(&mut self) -> Result<Option<MakersEk>, Self::Error> {
        for place in EK_PLACES {
            if self.has_index(place.certificate)? {
                return Ok(Some(MakersEk {
                    certificate: self.read_index(place.certificate)?,
                    template: template_of(self, place)?,
                }));
            }
        }
        Ok(None)
    }

    /// The certificates that the TPM has for the path from the endorsement key's to the maker's, as they stand in
    /// NV memory.
    fn ek_chain(&mut self) -> Result<Vec<u8>, EkChainUnread<Self::Error>> {
        let mut chain = Vec::new();
        let found = self.indices_from(EK_CHAIN.0, MOST_CHAIN_INDICES);
        for index in found.map_err(EkChainUnread::Memory)? {
            if index <= EK_CHAIN.1 {
                chain.extend(self.read_index(index).map_err(EkChainUnread::Memory)?);
            }
        }
        match chain.len() {
            0..=MAX_EK_CHAIN => Ok(chain),
            length => Err(EkChainUnread::TooLong { length }),
        }
    }

    /// Whether there is such an index.
    fn has_index(&mut self, index: u32) -> Result<bool, Self::Error> {
        Ok(self.indices_from(index, 1)?.contains(&index))
    }
}

/// An endorsement key that its maker certified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MakersEk {
    /// The certificate in DER, as NV memory has it.
    pub certificate: Vec<u8>,
    /// The `TPMT_PUBLIC` from which the TPM makes the key.
    pub template: Vec<u8>,
}

/// Why a TPM's chain of certificates cannot be shown to an issuer. It may do without.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EkChainUnread<E> {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Memory(E),
    /// No issuer takes it.
    #[error("its {length} bytes are too many for an issuer (at most {MAX_EK_CHAIN})")]
    TooLong {
        /// How many bytes.
        length: usize,
    },
}

/// Where a TPM's maker puts an endorsement key's certificate in NV memory, and how the key is made (EK
/// Credential Profile 2.5 §2.2.1.4).
#[derive(Clone, Copy, Debug)]
struct EkPlace {
    /// NV index of the certificate.
    certificate: u32,
    /// That of what makes the key another one, if there is one.
    nonce: u32,
    /// That of another template than the TCG's, if there is one.
    template: u32,
    /// The TCG's.
    default_template: EkTemplate,
}

/// The keys that a maker certifies, the shorter one first: on hardware it is also the much quicker one.
const EK_PLACES: [EkPlace; 2] = [
    EkPlace {
        certificate: 0x01c0_000a,
        nonce: 0x01c0_000b,
        template: 0x01c0_000c,
        default_template: EkTemplate::L2,
    },
    EkPlace {
        certificate: 0x01c0_0002,
        nonce: 0x01c0_0003,
        template: 0x01c0_0004,
        default_template: EkTemplate::L1,
    },
];
/// NV indices of certificates above those (§2.2.1.5.2), the first and the last.
const EK_CHAIN: (u32, u32) = (0x01c0_0100, 0x01c0_01ff);
/// An index holds 2 KiB in most TPMs: these are more than are sent.
const MOST_CHAIN_INDICES: u32 = 32;

/// The TCG's template, unless NV memory has another one, with what the maker put there to make the key another
/// one.
fn template_of<M: EkMemory + ?Sized>(memory: &mut M, place: EkPlace) -> Result<Vec<u8>, M::Error> {
    let template = match memory.has_index(place.template)? {
        true => memory.read_index(place.template)?,
        false => place.default_template.to_bytes(),
    };
    match memory.has_index(place.nonce)? {
        true => Ok(with_nonce(template, &memory.read_index(place.nonce)?)),
        false => Ok(template),
    }
}
