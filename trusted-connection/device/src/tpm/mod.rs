//! The device's own TPM: its identity key, its quotes, what enrolment asks of it, and its signatures of data.
//!
//! A dozen commands, sent as they are. A TCG software stack would do no more here, and every verifier
//! would have to bring it along. Nothing secret travels to the TPM: what it opens for an issuer is
//! worth something to that issuer alone, and only once.

mod channel;
mod data_counter;
mod data_key;
mod endorsement;
mod error;
mod wire;

use std::path::Path;

use attestation::quote::{VerifiedQuote, canonical_signature};
use cert_chain::pcr::BANKS;
use cert_chain::{
    AttestationKey, Digest32, HashAlgorithm, HashValue, PcrSelection, PcrValues, PublicArea,
    template,
};
use tpm_wire::Operation;

use channel::Channel;
use data_key::LoadedDataKey;
use wire::{Command, Reader};

pub use endorsement::CertifiedEk;
pub use error::TpmError;

/// A device's TPM with its identity key loaded.
pub struct DeviceTpm {
    channel: Channel,
    ik: Primary,
    key: AttestationKey,
    data_key: Option<LoadedDataKey>,
}

/// A quote as it travels.
#[derive(Clone, Debug)]
pub struct SignedQuote {
    /// Marshalled `TPMS_ATTEST`.
    pub attest: Vec<u8>,
    /// Marshalled `TPMT_SIGNATURE`.
    pub signature: Vec<u8>,
    /// The PCRs that were quoted.
    pub pcrs: PcrValues,
}

/// A primary key that was made from its template, and is loaded.
struct Primary {
    handle: u32,
    public: PublicArea,
}

const GET_CAPABILITY: Operation = Operation("TPM2_GetCapability");
const CREATE_PRIMARY: Operation = Operation("TPM2_CreatePrimary");
const FLUSH: Operation = Operation("TPM2_FlushContext");
const PCR_READ: Operation = Operation("TPM2_PCR_Read");
const QUOTE: Operation = Operation("TPM2_Quote");

const CC_CREATE_PRIMARY: u32 = 0x0000_0131;
const CC_QUOTE: u32 = 0x0000_0158;
const CC_FLUSH_CONTEXT: u32 = 0x0000_0165;
const CC_GET_CAPABILITY: u32 = 0x0000_017a;
const CC_PCR_READ: u32 = 0x0000_017e;
const OWNER: u32 = 0x4000_0001;
const ENDORSEMENT: u32 = 0x4000_000b;
const CAP_PCRS: u32 = 0x0000_0005;
/// `TPM_ALG_NULL`: the scheme that the key has.
const NULL: u16 = 0x0010;
/// More than any TPM has.
const MAX_BANKS: u32 = 16;

impl DeviceTpm {
    /// Opens a TPM and makes the device's identity key in it: the same one each time.
    pub fn open(path: &Path) -> Result<Self, TpmError> {
        let mut channel = Channel::open(path).map_err(|source| TpmError::Open {
            path: path.to_owned(),
            source,
        })?;
        let ik = create_primary(&mut channel, &template::device_key())?;
        match AttestationKey::try_from(ik.public.clone()) {
            Ok(key) => Ok(Self {
                channel,
                ik,
                key,
                data_key: None,
            }),
            Err(error) => {
                flush(&mut channel, ik.handle)?;
                Err(TpmError::IdentityKey(error))
            }
        }
    }

    /// The device's identity key.
    pub fn identity_key(&self) -> &AttestationKey {
        &self.key
    }

    /// The PCR banks that may be quoted and have these PCRs, the preferred one first.
    pub fn banks(&mut self, pcrs: PcrSelection) -> Result<Vec<HashAlgorithm>, TpmError> {
        let command = Command::new(CC_GET_CAPABILITY)
            .u32(CAP_PCRS)
            .u32(0)
            .u32(MAX_BANKS);
        let response = self.channel.run(GET_CAPABILITY, &command, 0)?;
        let mut reader = Reader::new(&response);
        let read = |reader: &mut Reader<'_>| {
            let _more = reader.u8()?;
            (reader.u32()? == CAP_PCRS).then_some(())?;
            read_selections(reader)
        };
        let found = read(&mut reader).ok_or(TpmError::Response {
            operation: GET_CAPABILITY,
        })?;
        let has = |bank: &HashAlgorithm| {
            found.iter().any(|(algorithm, selected)| {
                *algorithm == bank.identifier() && pcrs.iter().all(|pcr| selected.contains(&pcr))
            })
        };
        let banks: Vec<_> = BANKS.into_iter().filter(has).collect();
        if banks.is_empty() {
            Err(TpmError::Bank)
        } else {
            Ok(banks)
        }
    }

    /// Quotes PCRs of a bank with the identity key.
    pub fn quote(
        &mut self,
        bank: HashAlgorithm,
        pcrs: PcrSelection,
        qualifying_data: &Digest32,
    ) -> Result<SignedQuote, TpmError> {
        /// Whatever extends PCRs after the boot does so now and then.
        const ATTEMPTS: usize = 3;
        let command = Command::new(CC_QUOTE)
            .authorized(self.ik.handle)
            .sized(qualifying_data.as_bytes())
            .u16(NULL)
            .bytes(&pcrs.to_bytes(bank));
        for _ in 0..ATTEMPTS {
            let values = self.read_pcrs(bank, pcrs)?;
            let response = self.channel.run(QUOTE, &command, 0)?;
            let mut reader = Reader::new(&response);
            let attest = reader
                .sized()
                .ok_or(TpmError::Response { operation: QUOTE })?;
            let signature = canonical_signature(reader.rest()).map_err(TpmError::Quote)?;
            let quote =
                VerifiedQuote::verify(attest, &signature, &self.key).map_err(TpmError::Quote)?;
            if *quote.pcr_digest() == values.digest() {
                return Ok(SignedQuote {
                    attest: attest.to_vec(),
                    signature,
                    pcrs: values,
                });
            }
        }
        Err(TpmError::PcrsChange)
    }

    fn read_pcrs(
        &mut self,
        bank: HashAlgorithm,
        pcrs: PcrSelection,
    ) -> Result<PcrValues, TpmError> {
        let malformed = || TpmError::Response {
            operation: PCR_READ,
        };
        let mut values = PcrValues::new(bank);
        let mut wanted = pcrs;
        // A TPM returns as many at a time as it likes, at most eight (TPM 2.0 Part 3 §22.4).
        while !wanted.is_empty() {
            let command = Command::new(CC_PCR_READ).bytes(&wanted.to_bytes(bank));
            let response = self.channel.run(PCR_READ, &command, 0)?;
            let mut reader = Reader::new(&response);
            let read = read_values(&mut reader, bank).ok_or_else(malformed)?;
            for (pcr, value) in read {
                values.insert(pcr, value).map_err(|_| malformed())?;
            }
            let missing = wanted.filter(|pcr| values.get(pcr).is_none());
            if missing == wanted {
                return Err(TpmError::Bank);
            }
            wanted = missing;
        }
        Ok(values)
    }
}

impl Drop for DeviceTpm {
    /// A resource manager would do it as well; a TPM without one has three places for keys.
    fn drop(&mut self) {
        let keys = [
            Some(self.ik.handle),
            self.data_key.as_ref().map(|key| key.handle),
        ];
        for handle in keys.into_iter().flatten() {
            if let Err(error) = flush(&mut self.channel, handle) {
                tracing::debug!(%error, "a key stays in the TPM's memory");
            }
        }
    }
}

fn create_primary(channel: &mut Channel, template: &[u8]) -> Result<Primary, TpmError> {
    let malformed = || TpmError::Response {
        operation: CREATE_PRIMARY,
    };
    let command = Command::new(CC_CREATE_PRIMARY)
        .authorized(ENDORSEMENT)
        // No authorization value and no data of ours.
        .sized(&[0; 4])
        .sized(template)
        .sized(&[])
        .u32(0);
    let response = channel.run(CREATE_PRIMARY, &command, 1)?;
    let mut reader = Reader::new(&response);
    let handle = reader.u32().ok_or_else(malformed)?;
    let public = reader.sized().and_then(|area| PublicArea::parse(area).ok());
    match public {
        Some(public) => Ok(Primary { handle, public }),
        None => {
            flush(channel, handle)?;
            Err(malformed())
        }
    }
}

fn flush(channel: &mut Channel, handle: u32) -> Result<(), TpmError> {
    let command = Command::new(CC_FLUSH_CONTEXT).u32(handle);
    channel.run(FLUSH, &command, 0).map(drop)
}

/// `TPML_PCR_SELECTION`: algorithms, each with its PCRs.
fn read_selections(reader: &mut Reader<'_>) -> Option<Vec<(u16, Vec<u8>)>> {
    let count = reader.u32().filter(|count| *count <= MAX_BANKS)?;
    (0..count)
        .map(|_| {
            let algorithm = reader.u16()?;
            let length = reader.u8()?;
            let octets = reader.take(usize::from(length))?;
            let selected = octets.iter().zip(0u8..).flat_map(|(octet, at)| {
                (0..8u8)
                    .filter(move |bit| octet >> bit & 1 == 1)
                    .map(move |bit| at.saturating_mul(8).saturating_add(bit))
            });
            Some((algorithm, selected.collect()))
        })
        .collect()
}

/// The parameters of `TPM2_PCR_Read`'s response.
fn read_values(reader: &mut Reader<'_>, bank: HashAlgorithm) -> Option<Vec<(u8, HashValue)>> {
    let _update_counter = reader.u32()?;
    let selections = read_selections(reader)?;
    let pcrs = selections
        .into_iter()
        .filter(|(algorithm, _)| *algorithm == bank.identifier())
        .flat_map(|(_, pcrs)| pcrs);
    let _count = reader.u32()?;
    pcrs.map(|pcr| Some((pcr, HashValue::new(bank, reader.sized()?)?)))
        .collect()
}
