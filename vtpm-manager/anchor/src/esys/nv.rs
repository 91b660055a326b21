//! NV indices of the rollback registers and of the generation counter over ESYS.

use tpm_wire::{Disposition, Operation, ResponseCode};
use tss_esapi::Context;
use tss_esapi::attributes::{
    NvIndexAttributes, NvIndexAttributesBuilder, SessionAttributesBuilder,
};
use tss_esapi::constants::{NvIndexType, SessionType};
use tss_esapi::handles::{NvIndexHandle, NvIndexTpmHandle, SessionHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::{NvAuth, Provision};
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{Auth, MaxNvBuffer, NvPublic, SymmetricDefinition};

use super::convert::checked;
use super::root::EsysRoot;
use super::session::Protect;
use crate::error::HardwareError;
use crate::nv::{Defined, Index, NvMemory, REGISTER_SIZE, Retention};

const READ_PUBLIC: Operation = Operation("TPM2_NV_ReadPublic");
const DEFINE: Operation = Operation("TPM2_NV_DefineSpace");
const UNDEFINE: Operation = Operation("TPM2_NV_UndefineSpace");
const READ: Operation = Operation("TPM2_NV_Read");
const WRITE: Operation = Operation("TPM2_NV_Write");
const INCREMENT: Operation = Operation("TPM2_NV_Increment");
const START: Operation = Operation("TPM2_StartAuthSession");

impl NvMemory for EsysRoot {
    fn find(&mut self, index: Index) -> Result<Defined, HardwareError> {
        // What was there before is of no use: the public area is read anew.
        self.forget(index)?;
        let handle = match self.open(index) {
            Ok(handle) => handle,
            Err(HardwareError::Tpm { code, .. })
                if code.without_position() == ResponseCode::HANDLE =>
            {
                return Ok(Defined::Nothing);
            }
            Err(error) => return Err(error),
        };
        let (found, _) = checked(READ_PUBLIC, self.context.nv_read_public(handle))?;
        let wanted = public(index)?;
        let same = (found.name_algorithm(), found.data_size())
            == (wanted.name_algorithm(), wanted.data_size())
            && found.authorization_policy() == wanted.authorization_policy()
            && unwritten(found.attributes()) == unwritten(wanted.attributes());
        Ok(if same {
            Defined::SameKind
        } else {
            Defined::OtherKind
        })
    }

    fn define(&mut self, index: Index, auth: &[u8; 32]) -> Result<(), HardwareError> {
        let public = public(index)?;
        let auth = auth_value(DEFINE, auth)?;
        let handle = self.with_hmac_session(Protect::Request, |context| {
            checked(
                DEFINE,
                context.nv_define_space(Provision::Owner, Some(auth), public),
            )
        })?;
        self.nv_indices.insert(index.number(), handle);
        Ok(())
    }

    fn undefine(&mut self, index: Index) -> Result<(), HardwareError> {
        let handle = self.open(index)?;
        self.nv_indices.remove(&index.number());
        self.with_hmac_session(Protect::Nothing, |context| {
            checked(
                UNDEFINE,
                context.nv_undefine_space(Provision::Owner, handle),
            )
        })
    }

    fn read(&mut self, index: Index, auth: &[u8; 32]) -> Result<Vec<u8>, HardwareError> {
        let handle = self.open_with(index, auth)?;
        let size = u16::try_from(index.size()).unwrap_or(u16::MAX);
        let contents = self.with_index_auth(|context| {
            checked(
                READ,
                context.nv_read(NvAuth::NvIndex(handle), handle, size, 0),
            )
        })?;
        Ok(contents.value().to_vec())
    }

    fn write(
        &mut self,
        index: Index,
        auth: &[u8; 32],
        contents: &[u8; REGISTER_SIZE],
    ) -> Result<(), HardwareError> {
        // The TPM has few slots for sessions. One that a TPM reset has ended is gone already.
        if let Some(session) = self.index_session.take() {
            drop(self.flush(SessionHandle::from(session).into()));
        }
        match self.register_writer.write(index.number(), auth, contents) {
            Ok(()) => return Ok(()),
            Err(error) => tracing::debug!(%error, "a register is written through the TPM's stack"),
        }
        // Its name changes when it is written for the first time.
        self.forget(index)?;
        let handle = self.open_with(index, auth)?;
        let contents = checked(WRITE, MaxNvBuffer::try_from(contents.to_vec()))?;
        self.with_index_auth(|context| {
            checked(
                WRITE,
                context.nv_write(NvAuth::NvIndex(handle), handle, contents.clone(), 0),
            )
        })
    }

    fn increment(&mut self, index: Index, auth: &[u8; 32]) -> Result<(), HardwareError> {
        let handle = self.open_with(index, auth)?;
        self.with_index_auth(|context| {
            checked(
                INCREMENT,
                context.nv_increment(NvAuth::NvIndex(handle), handle),
            )
        })
    }
}

impl EsysRoot {
    /// A handle of the index, kept for the next time: opening costs a command.
    fn open(&mut self, index: Index) -> Result<NvIndexHandle, HardwareError> {
        if let Some(handle) = self.nv_indices.get(&index.number()) {
            return Ok(*handle);
        }
        let number = checked(READ_PUBLIC, NvIndexTpmHandle::new(index.number()))?;
        let handle = checked(
            READ_PUBLIC,
            self.context.tr_from_tpm_public(TpmHandle::NvIndex(number)),
        )?;
        let handle = NvIndexHandle::from(handle);
        self.nv_indices.insert(index.number(), handle);
        Ok(handle)
    }

    fn open_with(&mut self, index: Index, auth: &[u8; 32]) -> Result<NvIndexHandle, HardwareError> {
        let handle = self.open(index)?;
        let auth = auth_value(READ_PUBLIC, auth)?;
        checked(READ_PUBLIC, self.context.tr_set_auth(handle.into(), auth))?;
        Ok(handle)
    }

    fn forget(&mut self, index: Index) -> Result<(), HardwareError> {
        let Some(handle) = self.nv_indices.remove(&index.number()) else {
            return Ok(());
        };
        let mut handle = handle.into();
        checked(READ_PUBLIC, self.context.tr_close(&mut handle))
    }

    /// Runs a command in an HMAC session for the authorization value of an index. The session is
    /// kept for the next time: each batch of the store waits for such a command, and a new session
    /// would make it three.
    fn with_index_auth<T>(
        &mut self,
        mut command: impl FnMut(&mut Context) -> Result<T, HardwareError>,
    ) -> Result<T, HardwareError> {
        if let Some(session) = self.index_session.take() {
            match self.in_session(session, &mut command) {
                Ok(value) => {
                    self.index_session = Some(session);
                    return Ok(value);
                }
                Err(error) if error.disposition() == Disposition::ConnectionLost => {
                    return Err(error);
                }
                // It may be the session that failed, e.g. after a TPM reset; then it is gone
                // already.
                Err(_) => drop(self.flush(SessionHandle::from(session).into())),
            }
        }
        let session = self.start_index_session()?;
        let result = self.in_session(session, command);
        if result.is_ok() {
            self.index_session = Some(session);
            return result;
        }
        self.then_flush(SessionHandle::from(session).into(), result)
    }

    /// Not salted: the authorization value has 256 bits of entropy, the contents are no secret.
    fn start_index_session(&mut self) -> Result<AuthSession, HardwareError> {
        checked(
            START,
            self.context.start_auth_session(
                None,
                None,
                None,
                SessionType::Hmac,
                SymmetricDefinition::AES_128_CFB,
                HashingAlgorithm::Sha256,
            ),
        )?
        .ok_or(HardwareError::Response {
            operation: START,
            what: "no session",
        })
    }

    fn in_session<T>(
        &mut self,
        session: AuthSession,
        command: impl FnOnce(&mut Context) -> Result<T, HardwareError>,
    ) -> Result<T, HardwareError> {
        let (attributes, mask) = SessionAttributesBuilder::new()
            // Kept or flushed by the caller.
            .with_continue_session(true)
            .build();
        checked(
            START,
            self.context
                .tr_sess_set_attributes(session, attributes, mask),
        )?;
        self.context.execute_with_session(Some(session), command)
    }
}

fn auth_value(operation: Operation, auth: &[u8; 32]) -> Result<Auth, HardwareError> {
    checked(operation, Auth::try_from(auth.to_vec()))
}

/// The public area of an index.
fn public(index: Index) -> Result<NvPublic, HardwareError> {
    let number = checked(DEFINE, NvIndexTpmHandle::new(index.number()))?;
    let attributes = checked(DEFINE, attributes(index).build())?;
    checked(
        DEFINE,
        NvPublic::builder()
            .with_nv_index(number)
            .with_index_name_algorithm(HashingAlgorithm::Sha256)
            .with_index_attributes(attributes)
            .with_data_area_size(index.size())
            .build(),
    )
}

fn attributes(index: Index) -> NvIndexAttributesBuilder {
    let common = NvIndexAttributes::builder()
        .with_auth_read(true)
        .with_auth_write(true)
        // A guess at 256 bits needs no counting, and a lockout would stop every vRoT.
        .with_no_da(true);
    let ordinary = common.with_nv_index_type(NvIndexType::Ordinary);
    match index {
        Index::Register(Retention::Volatile) => {
            ordinary.with_orderly(true).with_clear_stclear(true)
        }
        Index::Register(Retention::Durable) => ordinary,
        Index::Counter => common.with_nv_index_type(NvIndexType::Counter),
    }
}

/// Attributes but for `TPMA_NV_WRITTEN`, which the TPM sets (TPM 2.0 Part 2 §13.4, bit 29).
fn unwritten(attributes: NvIndexAttributes) -> u32 {
    attributes.0 & !(1 << 29)
}
