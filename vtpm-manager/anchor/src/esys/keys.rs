//! Storage root key and host IK.

use cert_chain::template::{self, EccTemplate, Purpose, RESIDENT};
use cert_chain::{AttestationKey, Digest32, ObjectAttributes, PublicArea, TpmName};
use tpm_wire::Operation;
use tss_esapi::constants::CapabilityType;
use tss_esapi::handles::{KeyHandle, ObjectHandle, PersistentTpmHandle, TpmHandle};
use tss_esapi::interface_types::dynamic_handles::Persistent;
use tss_esapi::interface_types::resource_handles::{Hierarchy, Provision};
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{CapabilityData, Public};
use tss_esapi::traits::{Marshall, UnMarshall};

use super::convert::checked;
use super::root::EsysRoot;
use crate::config::{IK_HANDLE, SRK_HANDLE};
use crate::error::HardwareError;

pub(super) const CREATE_PRIMARY: Operation = Operation("TPM2_CreatePrimary");
const EVICT: Operation = Operation("TPM2_EvictControl");
const READ_PUBLIC: Operation = Operation("TPM2_ReadPublic");
pub(super) const CAPABILITY: Operation = Operation("TPM2_GetCapability");
/// [`EsysRoot::find_or_make_ik`] comes first.
const NO_IK: HardwareError = HardwareError::Response {
    operation: READ_PUBLIC,
    what: "no host IK",
};

impl EsysRoot {
    /// The storage root key's handle; the key is made if there is none.
    pub(super) fn srk(&mut self) -> Result<KeyHandle, HardwareError> {
        if let Some(srk) = self.srk {
            return Ok(srk);
        }
        let srk = match self.persistent(SRK_HANDLE)? {
            Some(key) => key,
            None => self.make_persistent(SRK_HANDLE, &template::storage_root_key())?,
        };
        // Of a new key, too: what was asked for may not be what came back.
        let area = self.read_public(srk)?;
        if let Some(reason) = unusable_as_srk(&area) {
            return Err(occupied(SRK_HANDLE, &area, reason));
        }
        self.srk = Some(srk);
        Ok(srk)
    }

    /// Name of the storage root key that [`EsysRoot::srk`] would make; `None` if there is one.
    pub(super) fn would_be_srk(&mut self) -> Result<Option<TpmName>, HardwareError> {
        if self.exists(SRK_HANDLE)? {
            return Ok(None);
        }
        let (key, public) = self.create_primary(Hierarchy::Owner, &template::storage_root_key())?;
        self.flush(key.into())?;
        Ok(Some(public_area(&public)?.name()))
    }

    /// The host IK's handle, once [`EsysRoot::find_or_make_ik`] has checked it.
    pub(super) fn ik(&mut self) -> Result<KeyHandle, HardwareError> {
        self.ik.as_ref().map(|(handle, _)| *handle).ok_or(NO_IK)
    }

    /// The host IK itself, likewise.
    pub(super) fn ik_public(&self) -> Result<&AttestationKey, HardwareError> {
        self.ik.as_ref().map(|(_, key)| key).ok_or(NO_IK)
    }

    pub(super) fn find_or_make_ik(
        &mut self,
        policy: &Digest32,
    ) -> Result<AttestationKey, HardwareError> {
        let key = match self.persistent(IK_HANDLE)? {
            Some(key) => key,
            None => self.make_persistent(IK_HANDLE, &identity_key(policy))?,
        };
        let area = self.read_public(key)?;
        if area.auth_policy() != policy.as_bytes() {
            return Err(occupied(IK_HANDLE, &area, "its policy is another one"));
        }
        if area.attributes().contains(ObjectAttributes::USER_WITH_AUTH) {
            return Err(occupied(
                IK_HANDLE,
                &area,
                "it can be used without its policy (userWithAuth)",
            ));
        }
        let ik = AttestationKey::try_from(area.clone())
            .map_err(|_| occupied(IK_HANDLE, &area, "it is no attestation key"))?;
        self.ik = Some((key, ik.clone()));
        Ok(ik)
    }

    pub(super) fn read_public(&mut self, key: KeyHandle) -> Result<PublicArea, HardwareError> {
        let (public, name, _) = checked(READ_PUBLIC, self.context.read_public(key))?;
        // The stack read the key before: by that public area it salts and authorizes.
        let stacks = checked(READ_PUBLIC, self.context.tr_get_name(key.into()))?;
        let area = public_area(&public)?;
        if [name.value(), stacks.value()] == [area.name().as_bytes(); 2] {
            Ok(area)
        } else {
            Err(HardwareError::Altered {
                operation: READ_PUBLIC,
            })
        }
    }

    /// The object at a persistent handle, if there is one.
    fn persistent(&mut self, handle: u32) -> Result<Option<KeyHandle>, HardwareError> {
        if !self.exists(handle)? {
            return Ok(None);
        }
        let handle = checked(READ_PUBLIC, PersistentTpmHandle::new(handle))?;
        let object = self
            .context
            .tr_from_tpm_public(TpmHandle::Persistent(handle));
        checked(READ_PUBLIC, object).map(|object| Some(object.into()))
    }

    /// Whether an object or index exists. Asked this way because trying to use what is absent
    /// makes the software stack write errors to standard error.
    pub(super) fn exists(&mut self, handle: u32) -> Result<bool, HardwareError> {
        Ok(self.handles_from(handle, 1)?.contains(&handle))
    }

    /// At most `count` handles of objects and indices of one kind that exist, from `first` on.
    pub(super) fn handles_from(
        &mut self,
        first: u32,
        count: u32,
    ) -> Result<Vec<u32>, HardwareError> {
        let (found, _) = checked(
            CAPABILITY,
            self.context
                .get_capability(CapabilityType::Handles, first, count),
        )?;
        let CapabilityData::Handles(handles) = found else {
            return Err(HardwareError::Response {
                operation: CAPABILITY,
                what: "something else than handles",
            });
        };
        Ok(handles.iter().map(|&found| found.into()).collect())
    }

    fn make_persistent(
        &mut self,
        handle: u32,
        template: &[u8],
    ) -> Result<KeyHandle, HardwareError> {
        let persistent = checked(EVICT, PersistentTpmHandle::new(handle))?;
        let (key, _) = self.create_primary(Hierarchy::Owner, template)?;
        let kept = self
            .context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.evict_control(
                    Provision::Owner,
                    key.into(),
                    Persistent::Persistent(persistent),
                )
            });
        self.then_flush(key.into(), checked(EVICT, kept))
            .map(ObjectHandle::into)
    }

    pub(super) fn create_primary(
        &mut self,
        hierarchy: Hierarchy,
        template: &[u8],
    ) -> Result<(KeyHandle, Public), HardwareError> {
        let public = checked(CREATE_PRIMARY, Public::unmarshall(template))?;
        let created = self
            .context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.create_primary(hierarchy, public, None, None, None, None)
            });
        let created = checked(CREATE_PRIMARY, created)?;
        Ok((created.key_handle, created.out_public))
    }
}

/// A restricted signing key that can be used under `policy` only; see the module's text on its
/// attributes. A primary key of the owner hierarchy, so the same key comes back if it is evicted
/// by mistake, and another one after `TPM2_Clear`.
fn identity_key(policy: &Digest32) -> Vec<u8> {
    EccTemplate {
        attributes: RESIDENT
            .with(ObjectAttributes::NO_DA)
            .with(ObjectAttributes::RESTRICTED)
            .with(ObjectAttributes::SIGN),
        auth_policy: policy.as_bytes(),
        purpose: Purpose::Signing,
        unique: [&[0; 32], &[0; 32]],
    }
    .to_bytes()
}

fn unusable_as_srk(area: &PublicArea) -> Option<&'static str> {
    let has = |attribute| area.attributes().contains(attribute);
    if !has(RESIDENT) {
        return Some("it could leave the TPM, or was not made there");
    }
    if !has(ObjectAttributes::RESTRICTED.with(ObjectAttributes::DECRYPT))
        || has(ObjectAttributes::SIGN)
    {
        return Some("it is no storage key");
    }
    if !has(ObjectAttributes::USER_WITH_AUTH) {
        return Some("it cannot be used with an empty authorization value");
    }
    None
}

fn occupied(handle: u32, area: &PublicArea, reason: &'static str) -> HardwareError {
    HardwareError::Occupied {
        handle,
        found: area.name().to_string(),
        reason,
    }
}

pub(super) fn public_area(public: &Public) -> Result<PublicArea, HardwareError> {
    let bytes = checked(READ_PUBLIC, public.marshall())?;
    PublicArea::parse(&bytes).map_err(|_| HardwareError::Response {
        operation: READ_PUBLIC,
        what: "a public area",
    })
}
