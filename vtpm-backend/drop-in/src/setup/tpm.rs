//! The TPM in this process, and the commands that its making takes (TPM 2.0 Part 3).

use anyhow::{Context, Result, bail, ensure};
use tpm_wire::{HEADER, Header, NO_SESSIONS, SESSIONS, frame};
use vtpm_backend::engine::{Engine, Libtpms, StateKind};

use super::banks::Bank;
use super::keys::Key;

pub(super) struct Tpm(Libtpms);

/// What of a key everybody may know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Public {
    Rsa { modulus: Vec<u8> },
    Ecc { x: Vec<u8>, y: Vec<u8> },
}

const PLATFORM: u32 = 0x4000_000c;
const OWNER: u32 = 0x4000_0001;
/// An empty password: `TPM_RS_PW`, no nonce, no attributes, no password; with its length before.
const EMPTY_PASSWORD: [u8; 13] = [0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0];
/// Longest chunk of one `TPM2_NV_Write` (`TPM_PT_NV_BUFFER_MAX` of libtpms).
const CHUNK: usize = 1024;
/// `MAX_NV_INDEX_SIZE` of libtpms.
const MAX_INDEX: usize = 2048;
const SHA256: u16 = 0x000b;
/// `TPMA_NV`: made by the platform, which alone writes; everybody reads; outside of the protection against
/// dictionary attacks; can be locked for good.
const PUBLISHED: u32 = 0x4000_0000 | 0x0200_0000 | 0x0007_0000 | 0x2000 | 0x1;

impl Tpm {
    /// Switches a TPM on that has this state, or is new.
    pub(super) fn start(state: Option<&[u8]>) -> Result<Self> {
        let mut engine = Libtpms::new()?;
        if let Some(state) = state {
            let taken = engine.set_state(StateKind::Permanent, state);
            taken.context("there is something that is no TPM's state; nothing was changed")?;
        }
        engine.power_on().context("the TPM does not switch on")?;
        let mut tpm = Self(engine);
        tpm.run("TPM2_Startup", NO_SESSIONS, 0x144, &[&[0, 0]])?;
        Ok(tpm)
    }

    /// Switches it off, and gives its state.
    pub(super) fn end(mut self) -> Result<zeroize::Zeroizing<Vec<u8>>> {
        self.run("TPM2_Shutdown", NO_SESSIONS, 0x145, &[&[0, 0]])?;
        self.0.power_off();
        let state = self.0.state(StateKind::Permanent)?;
        let state = state.context("the TPM has no state")?;
        Ok(zeroize::Zeroizing::new(state))
    }

    /// What the TPM says of itself (`TPMLIB_InfoFlags`).
    pub(super) fn info(&self, flags: u64) -> Result<String> {
        Ok(self.0.info(flags)?)
    }

    /// Makes a key from its template and keeps it.
    pub(super) fn make(&mut self, key: &Key) -> Result<Public> {
        let response = self.run(
            "TPM2_CreatePrimary",
            SESSIONS,
            0x131,
            &[
                &key.hierarchy.to_be_bytes(),
                &EMPTY_PASSWORD,
                // inSensitive, inPublic, outsideInfo, creationPCR
                &[0, 4, 0, 0, 0, 0],
                &length(&key.template)?,
                &key.template,
                &[0; 6],
            ],
        )?;
        let mut reader = Reader(&response);
        let handle = reader.take(4)?.to_vec();
        // The size of all parameters; of them, outPublic comes first.
        reader.take(4)?;
        let public = Public::parse(reader.sized()?)?;
        let place = key.handle.to_be_bytes();
        let owner = OWNER.to_be_bytes();
        let kept = self.run(
            "TPM2_EvictControl",
            SESSIONS,
            0x120,
            &[&owner, &handle, &EMPTY_PASSWORD, &place],
        );
        self.run("TPM2_FlushContext", NO_SESSIONS, 0x165, &[&handle])?;
        kept.map(|_| public)
    }

    /// Puts something where everybody may read it; for good, if it is to be locked.
    pub(super) fn publish(&mut self, index: u32, content: &[u8], locked: bool) -> Result<()> {
        ensure!(
            content.len() <= MAX_INDEX,
            "what is to be in NV index 0x{index:x} has {} bytes; there is room for {MAX_INDEX}",
            content.len()
        );
        let (platform, handle) = (PLATFORM.to_be_bytes(), index.to_be_bytes());
        let public = [
            handle.as_slice(),
            &SHA256.to_be_bytes(),
            &PUBLISHED.to_be_bytes(),
            &[0, 0],
            &length(content)?,
        ]
        .concat();
        self.run(
            "TPM2_NV_DefineSpace",
            SESSIONS,
            0x12a,
            &[
                &platform,
                &EMPTY_PASSWORD,
                &[0, 0],
                &length(&public)?,
                &public,
            ],
        )?;
        let mut offset = 0;
        for chunk in content.chunks(CHUNK) {
            let at = u16::try_from(offset)?.to_be_bytes();
            self.run(
                "TPM2_NV_Write",
                SESSIONS,
                0x137,
                &[
                    &platform,
                    &handle,
                    &EMPTY_PASSWORD,
                    &length(chunk)?,
                    chunk,
                    &at,
                ],
            )?;
            offset += chunk.len();
        }
        if locked {
            let parts: [&[u8]; 3] = [&platform, &handle, &EMPTY_PASSWORD];
            self.run("TPM2_NV_WriteLock", SESSIONS, 0x138, &parts)?;
        }
        Ok(())
    }

    /// All banks that the TPM has, whether they are active or not.
    pub(super) fn banks(&mut self) -> Result<Vec<Bank>> {
        // TPM_CAP_PCRS, from 0 on, at most 64.
        let asked = [0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 64];
        let response = self.run("TPM2_GetCapability", NO_SESSIONS, 0x17a, &[&asked])?;
        let mut reader = Reader(&response);
        // moreData, capability
        reader.take(5)?;
        let count = reader.u32()?;
        ensure!(count <= 16, "the TPM says that it has {count} PCR banks");
        let mut banks = Vec::new();
        for _ in 0..count {
            banks.push(Bank(reader.u16()?));
            let [length] = *reader.take(1)? else {
                bail!("half of a PCR selection came");
            };
            reader.take(length.into())?;
        }
        Ok(banks)
    }

    /// Makes some of the banks active, and the others not: when the TPM is next switched on.
    pub(super) fn allocate(&mut self, active: &[Bank], all: &[Bank]) -> Result<()> {
        let mut selections = u32::try_from(all.len())?.to_be_bytes().to_vec();
        for bank in all {
            let registers = if active.contains(bank) { 0xff } else { 0 };
            selections.extend(bank.0.to_be_bytes());
            selections.extend([3, registers, registers, registers]);
        }
        let platform = PLATFORM.to_be_bytes();
        let parts: [&[u8]; 3] = [&platform, &EMPTY_PASSWORD, &selections];
        let response = self.run("TPM2_PCR_Allocate", SESSIONS, 0x12b, &parts)?;
        // The size of all parameters, then allocationSuccess.
        ensure!(
            response.get(4) == Some(&1),
            "the TPM refuses these PCR banks"
        );
        Ok(())
    }

    /// Sends a command; gives what follows the response's header.
    fn run(&mut self, name: &str, tag: u16, code: u32, parts: &[&[u8]]) -> Result<Vec<u8>> {
        let response = self.0.execute(&frame(tag, code, &parts.concat()), 0);
        let header = Header::parse(&response);
        let header = header.with_context(|| format!("half a response to {name} came"))?;
        ensure!(
            header.code == 0,
            "the TPM refuses {name} with response code 0x{:x}",
            header.code
        );
        Ok(response.get(HEADER..).unwrap_or_default().to_vec())
    }
}

/// The two bytes that come before something of variable length.
fn length(content: &[u8]) -> Result<[u8; 2]> {
    Ok(u16::try_from(content.len())?.to_be_bytes())
}

impl Public {
    /// Of a `TPMT_PUBLIC`.
    fn parse(bytes: &[u8]) -> Result<Self> {
        const RSA: u16 = 0x0001;
        const ECC: u16 = 0x0023;
        const NULL: u16 = 0x0010;
        let mut reader = Reader(bytes);
        let kind = reader.u16()?;
        // nameAlg, objectAttributes, authPolicy
        reader.take(6)?;
        reader.sized()?;
        if reader.u16()? != NULL {
            reader.take(4)?;
        }
        ensure!(reader.u16()? == NULL, "the key has a scheme");
        match kind {
            RSA => {
                reader.take(6)?;
                let modulus = reader.sized()?.to_vec();
                Ok(Self::Rsa { modulus })
            }
            ECC => {
                reader.take(4)?;
                let (x, y) = (reader.sized()?.to_vec(), reader.sized()?.to_vec());
                Ok(Self::Ecc { x, y })
            }
            _ => bail!("the TPM made a key of another kind (0x{kind:x})"),
        }
    }
}

struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn take(&mut self, length: usize) -> Result<&'b [u8]> {
        let split = self.0.split_at_checked(length);
        let (taken, rest) = split.context("half a response of the TPM came")?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_be_bytes(self.take(2)?.try_into()?))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.take(4)?.try_into()?))
    }

    fn sized(&mut self) -> Result<&'b [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }
}
