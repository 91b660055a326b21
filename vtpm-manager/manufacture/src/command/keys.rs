//! Keys: made from a template, and kept.

use cert_chain::PublicArea;
use tpm_wire::{MAX_SIZE, Operation};
use tpm2_protocol::basic::TpmHandle;
use tpm2_protocol::data::{Tpm2bPublic, TpmRh, TpmtPublic};
use tpm2_protocol::frame::{
    TpmCreatePrimaryCommand, TpmCreatePrimaryResponse, TpmEvictControlCommand,
    TpmFlushContextCommand,
};
use tpm2_protocol::{TpmMarshal, TpmUnmarshal, TpmWriter};

use super::{Authorization, Tpm, permanent};
use crate::error::ManufactureError;
use crate::handle::Handle;

/// A key that was made from a template and is loaded.
pub(crate) struct Primary {
    pub(crate) handle: Handle,
    pub(crate) public: PublicArea,
}

impl Tpm<'_> {
    /// Makes a primary key in the endorsement hierarchy.
    pub(crate) fn create_primary(&mut self, template: &[u8]) -> Result<Primary, ManufactureError> {
        let operation = Operation("TPM2_CreatePrimary");
        let malformed = || ManufactureError::Response { operation };
        let (template, _) = TpmtPublic::unmarshal(template).map_err(|_| malformed())?;
        let command = TpmCreatePrimaryCommand {
            handles: [permanent(TpmRh::Endorsement)],
            in_sensitive: Default::default(),
            in_public: Tpm2bPublic { inner: template },
            outside_info: Default::default(),
            creation_pcr: Default::default(),
        };
        let response: TpmCreatePrimaryResponse =
            self.ask(operation, &command, &Authorization::Empty)?;
        let mut buffer = [0; MAX_SIZE];
        let mut writer = TpmWriter::new(&mut buffer);
        response
            .out_public
            .inner
            .marshal(&mut writer)
            .map_err(|_| malformed())?;
        let public = PublicArea::parse(writer.as_bytes())
            .map_err(|source| ManufactureError::PublicArea { operation, source })?;
        let [handle] = response.handles;
        Ok(Primary {
            handle: Handle(handle.value()),
            public,
        })
    }

    /// Gives a slot back.
    pub(crate) fn flush(&mut self, handle: Handle) -> Result<(), ManufactureError> {
        let command = TpmFlushContextCommand {
            handles: [],
            flush_handle: TpmHandle::new(handle.0),
        };
        self.send(Operation("TPM2_FlushContext"), &command, &[])
            .map(drop)
    }

    /// Makes a key persistent, at a handle of the owner's.
    pub(crate) fn keep(&mut self, key: Handle, persistent: u32) -> Result<(), ManufactureError> {
        let command = TpmEvictControlCommand {
            handles: [permanent(TpmRh::Owner), TpmHandle::new(key.0)],
            persistent_handle: TpmHandle::new(persistent),
        };
        self.run(
            Operation("TPM2_EvictControl"),
            &command,
            &Authorization::Empty,
        )
    }
}
