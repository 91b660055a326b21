//! Storage root key, endorsement key and host IK.

use cert_chain::{
    AttestationKey, CredentialBlob, Digest32, EndorsementKey, ObjectAttributes, PublicArea, TpmName,
};
use tss_esapi::abstraction::nv;
use tss_esapi::constants::{CapabilityType, SessionType};
use tss_esapi::handles::{
    AuthHandle, KeyHandle, NvIndexHandle, NvIndexTpmHandle, ObjectHandle, PersistentTpmHandle,
    TpmHandle,
};
use tss_esapi::interface_types::dynamic_handles::Persistent;
use tss_esapi::interface_types::resource_handles::{Hierarchy, NvAuth, Provision};
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{CapabilityData, Digest, EncryptedSecret, IdObject, Nonce, Public};
use tss_esapi::traits::{Marshall, UnMarshall};
use zeroize::Zeroizing;

use super::convert::checked;
use super::session::Protect;
use super::{EsysRoot, HardwareError, Operation};
use crate::anchor::config::{IK_HANDLE, SRK_HANDLE};
use crate::anchor::hardware::CertifiedEk;
use crate::anchor::template::{
    self, EccTemplate, Purpose, RESIDENT, endorsement_key_p256, endorsement_key_rsa,
};

const CREATE_PRIMARY: Operation = Operation("TPM2_CreatePrimary");
const EVICT: Operation = Operation("TPM2_EvictControl");
const READ_PUBLIC: Operation = Operation("TPM2_ReadPublic");
const CAPABILITY: Operation = Operation("TPM2_GetCapability");
const NV_READ: Operation = Operation("TPM2_NV_Read");
const ACTIVATE: Operation = Operation("TPM2_ActivateCredential");
/// [`EsysRoot::find_or_make_ik`] comes first.
const NO_IK: HardwareError = HardwareError::Response {
    operation: READ_PUBLIC,
    what: "no host IK",
};
const SECRET: Operation = Operation("TPM2_PolicySecret");

/// NV indices of EK certificates (TCG EK Credential Profile 2.5 §2.2.1.4), the shorter key first:
/// on hardware it is also the much quicker one.
const EK_PLACES: [EkPlace; 2] = [
    EkPlace {
        certificate: 0x01c0_000a,
        template: endorsement_key_p256,
    },
    EkPlace {
        certificate: 0x01c0_0002,
        template: endorsement_key_rsa,
    },
];

/// Where an endorsement key's certificate is, and how the key is made.
#[derive(Clone, Copy)]
struct EkPlace {
    certificate: u32,
    template: fn() -> Vec<u8>,
}

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

    pub(super) fn certified_ek(&mut self) -> Result<CertifiedEk, HardwareError> {
        let place = self.ek_place()?;
        let certificate = self.read_index(place.certificate)?;
        let template = (place.template)();
        let (handle, public) = self.create_primary(Hierarchy::Endorsement, &template)?;
        self.flush(handle.into())?;
        let key = EndorsementKey::try_from(public_area(&public)?).map_err(|_| {
            HardwareError::Response {
                operation: CREATE_PRIMARY,
                what: "an endorsement key",
            }
        })?;
        Ok(CertifiedEk { key, certificate })
    }

    /// `TPM2_ActivateCredential` with the EK whose certificate we show.
    pub(super) fn activate(
        &mut self,
        ik: KeyHandle,
        credential: &CredentialBlob,
    ) -> Result<Zeroizing<Vec<u8>>, HardwareError> {
        let blob = checked(
            ACTIVATE,
            IdObject::try_from(without_length(&credential.id_object)?.to_vec()),
        )?;
        let secret = checked(
            ACTIVATE,
            EncryptedSecret::try_from(without_length(&credential.encrypted_secret)?.to_vec()),
        )?;
        let template = (self.ek_place()?.template)();
        let (ek, _) = self.create_primary(Hierarchy::Endorsement, &template)?;
        let opened = self.with_session(SessionType::Hmac, Protect::Response, |root, for_ik| {
            root.with_session(SessionType::Policy, Protect::Nothing, |root, for_ek| {
                root.satisfy_ek_policy(for_ek)?;
                root.context
                    .execute_with_sessions((Some(for_ik), Some(for_ek), None), |context| {
                        checked(ACTIVATE, context.activate_credential(ik, ek, blob, secret))
                    })
            })
        });
        let opened = self.then_flush(ek.into(), opened)?;
        Ok(Zeroizing::new(opened.value().to_vec()))
    }

    /// PolicyA of the EK templates (TCG EK Credential Profile 2.5 §B.6.2).
    fn satisfy_ek_policy(&mut self, session: AuthSession) -> Result<(), HardwareError> {
        let session = checked(SECRET, PolicySession::try_from(session))?;
        let secret = self
            .context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.policy_secret(
                    session,
                    AuthHandle::Endorsement,
                    Nonce::default(),
                    Digest::default(),
                    Nonce::default(),
                    None,
                )
            });
        checked(SECRET, secret).map(drop)
    }

    /// The first EK that has a certificate.
    fn ek_place(&mut self) -> Result<EkPlace, HardwareError> {
        for place in EK_PLACES {
            if self.exists(place.certificate)? {
                return Ok(place);
            }
        }
        Err(HardwareError::NoEkCertificate)
    }

    fn read_index(&mut self, index: u32) -> Result<Vec<u8>, HardwareError> {
        let handle = checked(NV_READ, NvIndexTpmHandle::new(index))?;
        let password = Some(AuthSession::Password);
        // Makers allow the owner, the index's own (empty) authorization, or both.
        let by_owner = self.context.execute_with_session(password, |context| {
            nv::read_full(context, NvAuth::Owner, handle)
        });
        if let Ok(contents) = by_owner {
            return Ok(contents);
        }
        let object = checked(
            NV_READ,
            self.context.tr_from_tpm_public(TpmHandle::NvIndex(handle)),
        )?;
        let by_index = self.context.execute_with_session(password, |context| {
            nv::read_full(
                context,
                NvAuth::NvIndex(NvIndexHandle::from(object)),
                handle,
            )
        });
        checked(NV_READ, by_index)
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
    fn exists(&mut self, handle: u32) -> Result<bool, HardwareError> {
        let (found, _) = checked(
            CAPABILITY,
            self.context
                .get_capability(CapabilityType::Handles, handle, 1),
        )?;
        let CapabilityData::Handles(handles) = found else {
            return Err(HardwareError::Response {
                operation: CAPABILITY,
                what: "something else than handles",
            });
        };
        Ok(handles.iter().any(|&found| u32::from(found) == handle))
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

    fn create_primary(
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

fn public_area(public: &Public) -> Result<PublicArea, HardwareError> {
    let bytes = checked(READ_PUBLIC, public.marshall())?;
    PublicArea::parse(&bytes).map_err(|_| HardwareError::Response {
        operation: READ_PUBLIC,
        what: "a public area",
    })
}

/// The content of a TPM2B.
fn without_length(sized: &[u8]) -> Result<&[u8], HardwareError> {
    sized
        .split_first_chunk()
        .filter(|(length, content)| usize::from(u16::from_be_bytes(**length)) == content.len())
        .map(|(_, content)| content)
        .ok_or(HardwareError::Response {
            operation: ACTIVATE,
            what: "nothing yet: the challenge is malformed and",
        })
}
