//! NV indices: defined, looked at, read, written and removed.

use cert_chain::layout::NvIndex;
use tpm_wire::{Operation, ResponseCode};
use tpm2_protocol::basic::TpmHandle;
use tpm2_protocol::data::{
    Tpm2bAuth, Tpm2bMaxNvBuffer, Tpm2bNvPublic, TpmRh, TpmaNv, TpmsNvPublic,
};
use tpm2_protocol::frame::{
    TpmNvDefineSpaceCommand, TpmNvReadCommand, TpmNvReadPublicCommand, TpmNvReadPublicResponse,
    TpmNvReadResponse, TpmNvUndefineSpaceCommand, TpmNvUndefineSpaceSpecialCommand,
    TpmNvWriteCommand,
};

use super::{Authorization, Tpm, permanent, short, unmarshal};
use crate::authority::NvAuthority;
use crate::bound_session::BoundSession;
use crate::error::ManufactureError;

impl Tpm<'_> {
    /// Defines an index with the platform's authorization.
    pub(crate) fn define(
        &mut self,
        authority: Option<&NvAuthority>,
        public: TpmsNvPublic,
    ) -> Result<(), ManufactureError> {
        let operation = Operation("TPM2_NV_DefineSpace");
        let auth: &[u8] = authority.map_or(&[], |authority| authority.expose());
        let command = TpmNvDefineSpaceCommand {
            handles: [permanent(TpmRh::Platform)],
            auth: Tpm2bAuth::try_from(auth)
                .map_err(|_| ManufactureError::Response { operation })?,
            public_info: Tpm2bNvPublic { inner: public },
        };
        self.run(operation, &command, &Authorization::Empty)
    }

    /// Whether there is such an index.
    pub(crate) fn is_defined(&mut self, index: NvIndex) -> Result<bool, ManufactureError> {
        match self.read_public(index) {
            Ok(_) => Ok(true),
            Err(ManufactureError::Tpm { code, .. })
                if code.without_position() == ResponseCode::HANDLE =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Removes an index that has no policy for that, with the platform's authorization.
    pub(crate) fn remove(&mut self, index: NvIndex) -> Result<(), ManufactureError> {
        let command = TpmNvUndefineSpaceCommand {
            handles: [permanent(TpmRh::Platform), TpmHandle::new(index.handle())],
        };
        let operation = Operation("TPM2_NV_UndefineSpace");
        self.run(operation, &command, &Authorization::Empty)
    }

    /// Size of an index.
    pub(crate) fn size_of(&mut self, index: NvIndex) -> Result<usize, ManufactureError> {
        let public = self.read_public(index)?;
        Ok(public.nv_public.inner.data_size.value().into())
    }

    /// Size of an index without content; none, if it has some.
    pub(crate) fn reserved(&mut self, index: NvIndex) -> Result<Option<usize>, ManufactureError> {
        let public = self.read_public(index)?.nv_public.inner;
        let is_written = public.attributes.contains(TpmaNv::WRITTEN);
        Ok((!is_written).then(|| public.data_size.value().into()))
    }

    /// Name of an index, which changes with its first write.
    fn name_of(&mut self, index: NvIndex) -> Result<Vec<u8>, ManufactureError> {
        Ok(self.read_public(index)?.nv_name.to_vec())
    }

    fn read_public(&mut self, index: NvIndex) -> Result<TpmNvReadPublicResponse, ManufactureError> {
        let operation = Operation("TPM2_NV_ReadPublic");
        let command = TpmNvReadPublicCommand {
            handles: [TpmHandle::new(index.handle())],
        };
        let response = self.send(operation, &command, &[])?;
        unmarshal(operation, &response)
    }

    /// Reads a part of an index with the index's own, empty authorization.
    pub(crate) fn read(
        &mut self,
        index: NvIndex,
        offset: usize,
        length: usize,
    ) -> Result<Vec<u8>, ManufactureError> {
        let operation = Operation("TPM2_NV_Read");
        let handle = TpmHandle::new(index.handle());
        let command = TpmNvReadCommand {
            handles: [handle, handle],
            size: short(operation, length)?,
            offset: short(operation, offset)?,
        };
        let response: TpmNvReadResponse = self.ask(operation, &command, &Authorization::Empty)?;
        Ok(response.data.to_vec())
    }

    /// Writes a part of an index in a session that satisfies the index's policy.
    pub(crate) fn write(
        &mut self,
        index: NvIndex,
        offset: usize,
        chunk: &[u8],
        session: &mut BoundSession,
    ) -> Result<(), ManufactureError> {
        let operation = Operation("TPM2_NV_Write");
        let handle = TpmHandle::new(index.handle());
        let name = self.name_of(index)?;
        let command = TpmNvWriteCommand {
            handles: [handle, handle],
            data: Tpm2bMaxNvBuffer::try_from(chunk)
                .map_err(|_| ManufactureError::Response { operation })?,
            offset: short(operation, offset)?,
        };
        self.run_in(operation, &command, session, &[name.clone(), name], None)
    }

    /// Removes an index, with the platform's authorization and a session that satisfies the
    /// index's policy for that.
    pub(crate) fn undefine(
        &mut self,
        index: NvIndex,
        session: &mut BoundSession,
    ) -> Result<(), ManufactureError> {
        let operation = Operation("TPM2_NV_UndefineSpaceSpecial");
        let platform = TpmRh::Platform.value().to_be_bytes().to_vec();
        let names = [self.name_of(index)?, platform];
        let command = TpmNvUndefineSpaceSpecialCommand {
            handles: [TpmHandle::new(index.handle()), permanent(TpmRh::Platform)],
        };
        let platform = Authorization::Empty.session(operation)?;
        self.run_in(operation, &command, session, &names, Some(platform))
    }
}
