//! PCR banks.

use tpm_wire::{HEADER, Operation};
use tpm2_protocol::basic::TpmUint32;
use tpm2_protocol::data::{
    TpmAlgId, TpmCap, TpmRh, TpmlPcrSelection, TpmsPcrSelect, TpmsPcrSelection,
};
use tpm2_protocol::frame::{TpmGetCapabilityCommand, TpmPcrAllocateCommand};

use super::{Authorization, Tpm, permanent};
use crate::error::ManufactureError;

/// A bank that the TPM has.
pub(crate) struct Bank {
    /// `TPM_ALG_ID`.
    pub(crate) algorithm: u16,
    /// Whether it has registers.
    pub(crate) is_active: bool,
}

/// More than any TPM has.
const MAX_BANKS: u32 = 16;
/// All 24 registers of a bank, or none.
const ALL: [u8; 3] = [0xff; 3];
const NONE: [u8; 3] = [0; 3];

impl Tpm<'_> {
    /// All banks that the TPM has, whether they are active or not (`TPM_CAP_PCRS`, TPM 2.0 Part 3 §30.2).
    pub(crate) fn banks(&mut self) -> Result<Vec<Bank>, ManufactureError> {
        let operation = Operation("TPM2_GetCapability");
        let command = TpmGetCapabilityCommand {
            handles: [],
            cap: TpmCap::Pcrs,
            property: TpmUint32::from(0),
            property_count: TpmUint32::from(MAX_BANKS),
        };
        let response = self.send(operation, &command, &[])?;
        // moreData and capability come before the list.
        let list = response.get(HEADER + 1 + 4..).and_then(parse);
        list.ok_or(ManufactureError::Response { operation })
    }

    /// Gives each bank all its registers, or none, when the TPM is next switched on
    /// (`TPM2_PCR_Allocate`, TPM 2.0 Part 3 §22.5).
    pub(crate) fn allocate(&mut self, banks: &[Bank]) -> Result<(), ManufactureError> {
        let operation = Operation("TPM2_PCR_Allocate");
        let malformed = || ManufactureError::Response { operation };
        let mut allocation = TpmlPcrSelection::default();
        for bank in banks {
            let registers = if bank.is_active { ALL } else { NONE };
            let selection = TpmsPcrSelection {
                hash: TpmAlgId::try_from(bank.algorithm).map_err(|_| malformed())?,
                pcr_select: TpmsPcrSelect::try_from(&registers[..]).map_err(|_| malformed())?,
            };
            allocation.try_push(selection).map_err(|_| malformed())?;
        }
        let command = TpmPcrAllocateCommand {
            handles: [permanent(TpmRh::Platform)],
            pcr_allocation: allocation,
        };
        let session = Authorization::Empty.session(operation)?;
        let response = self.send(operation, &command, &[session])?;
        // The size of the parameters, then allocationSuccess.
        match response.get(HEADER + 4) {
            Some(1) => Ok(()),
            Some(_) => Err(ManufactureError::Banks),
            None => Err(malformed()),
        }
    }
}

/// A `TPML_PCR_SELECTION`.
fn parse(list: &[u8]) -> Option<Vec<Bank>> {
    let (count, mut rest) = list.split_first_chunk()?;
    let count = Some(u32::from_be_bytes(*count)).filter(|count| *count <= MAX_BANKS)?;
    let mut banks = Vec::new();
    for _ in 0..count {
        let ([high, low, size], after) = rest.split_first_chunk::<3>()?;
        let (registers, after) = after.split_at_checked(usize::from(*size))?;
        banks.push(Bank {
            algorithm: u16::from_be_bytes([*high, *low]),
            is_active: registers.iter().any(|byte| *byte != 0),
        });
        rest = after;
    }
    Some(banks)
}
