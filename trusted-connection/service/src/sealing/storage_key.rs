//! The key of the TPM's storage hierarchy under which objects are kept.

use cert_chain::{ObjectAttributes, PublicArea, TpmName, template};
use tss_context::{create_primary, kind};
use tss_esapi::Context;
use tss_esapi::constants::CapabilityType;
use tss_esapi::constants::response_code::Tss2ResponseCodeKind;
use tss_esapi::handles::{KeyHandle, PersistentTpmHandle, TpmHandle};
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::structures::CapabilityData;

use super::SealError;
use crate::attester::tss::{self, refused};

/// A storage key that is loaded.
pub(super) struct StorageKey {
    pub(super) handle: KeyHandle,
    pub(super) name: TpmName,
    /// It has a place of its own in the TPM; otherwise that has to be given back.
    is_persistent: bool,
}

/// Where software keeps the storage root key (TCG TPM v2.0 Provisioning Guidance §7.8).
const SRK_HANDLE: u32 = 0x8100_0001;

impl StorageKey {
    /// The one that is kept, or else the one that is made anew from the template that everybody uses.
    pub(super) fn any(context: &mut Context) -> Result<Self, SealError> {
        match Self::kept(context)? {
            Some(key) => Ok(key),
            None => Self::made(context),
        }
    }

    /// The one with this name.
    pub(super) fn named(context: &mut Context, name: &TpmName) -> Result<Self, SealError> {
        let kept = Self::kept(context)?;
        let kept = match kept {
            Some(key) if key.name == *name => return Ok(key),
            kept => kept.map(|key| key.name),
        };
        match (Self::made(context), kept) {
            (Ok(key), _) if key.name == *name => Ok(key),
            (Ok(key), kept) => {
                let found = key.name.clone();
                key.release(context)?;
                let kept = kept.map(|kept| format!(" and, at 0x{SRK_HANDLE:08x}, {kept}"));
                Err(SealError::OtherTpm {
                    sealed: name.clone(),
                    found: format!("{found}{}", kept.unwrap_or_default()),
                })
            }
            (Err(_), Some(kept)) => Err(SealError::OtherTpm {
                sealed: name.clone(),
                found: kept.to_string(),
            }),
            (Err(error), None) => Err(error),
        }
    }

    /// Gives its place in the TPM back, if it has none of its own.
    pub(super) fn release(self, context: &mut Context) -> Result<(), SealError> {
        if !self.is_persistent {
            context
                .flush_context(self.handle.into())
                .map_err(refused("TPM2_FlushContext"))?;
        }
        Ok(())
    }

    /// The key where software keeps it, if it is one that cannot leave the TPM.
    fn kept(context: &mut Context) -> Result<Option<Self>, SealError> {
        const OPERATION: &str = "TPM2_ReadPublic";
        let place = PersistentTpmHandle::new(SRK_HANDLE).map_err(refused(OPERATION))?;
        let place = TpmHandle::Persistent(place);
        let (found, _) = context
            .execute_without_session(|context| {
                context.get_capability(CapabilityType::Handles, SRK_HANDLE, 1)
            })
            .map_err(refused("TPM2_GetCapability"))?;
        match found {
            CapabilityData::Handles(found) if found.contains(&place) => {}
            _ => return Ok(None),
        }
        let handle = context
            .execute_without_session(|context| context.tr_from_tpm_public(place))
            .map(KeyHandle::from)
            .map_err(refused(OPERATION))?;
        let area = tss::public_of(context, handle)?;
        // A key of a kind that we do not know is not used.
        let Ok(area) = PublicArea::parse(&area) else {
            return Ok(None);
        };
        let has = |attributes| area.attributes().contains(attributes);
        let is_storage_key = has(template::RESIDENT)
            && has(ObjectAttributes::RESTRICTED.with(ObjectAttributes::DECRYPT))
            && has(ObjectAttributes::USER_WITH_AUTH)
            && !has(ObjectAttributes::SIGN);
        Ok(is_storage_key.then(|| Self {
            handle,
            name: area.name(),
            is_persistent: true,
        }))
    }

    fn made(context: &mut Context) -> Result<Self, SealError> {
        const OPERATION: &str = "TPM2_CreatePrimary";
        let template = template::storage_root_key();
        let created = create_primary(context, Hierarchy::Owner, &template);
        let created = created.map_err(|error| match kind(&error) {
            Some(Tss2ResponseCodeKind::BadAuth | Tss2ResponseCodeKind::AuthFail) => {
                SealError::OwnedHierarchy(refused(OPERATION)(error))
            }
            _ => refused(OPERATION)(error).into(),
        })?;
        let area = tss::public_of(context, created.key_handle)?;
        let area = PublicArea::parse(&area).map_err(SealError::StorageKey)?;
        Ok(Self {
            handle: created.key_handle,
            name: area.name(),
            is_persistent: false,
        })
    }
}
