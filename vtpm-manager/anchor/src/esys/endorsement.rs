//! The endorsement key as its maker had it made, its certificates, and what it opens.

use cert_chain::ek_memory::EkMemory;
use cert_chain::{CredentialBlob, EndorsementKey};
use tpm_wire::Operation;
use tss_esapi::abstraction::nv;
use tss_esapi::constants::SessionType;
use tss_esapi::handles::{AuthHandle, KeyHandle, NvIndexHandle, NvIndexTpmHandle, TpmHandle};
use tss_esapi::interface_types::resource_handles::{Hierarchy, NvAuth};
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{Digest, EncryptedSecret, IdObject, Nonce};
use zeroize::Zeroizing;

use super::convert::checked;
use super::keys::{CREATE_PRIMARY, public_area};
use super::root::EsysRoot;
use super::session::Protect;
use crate::error::HardwareError;
use crate::hardware::CertifiedEk;

const NV_READ: Operation = Operation("TPM2_NV_Read");
const ACTIVATE: Operation = Operation("TPM2_ActivateCredential");
const SECRET: Operation = Operation("TPM2_PolicySecret");

impl EsysRoot {
    pub(super) fn certified_ek(&mut self) -> Result<CertifiedEk, HardwareError> {
        let makers = self.makers_ek()?.ok_or(HardwareError::NoEkCertificate)?;
        let (handle, public) = self.create_primary(Hierarchy::Endorsement, &makers.template)?;
        self.flush(handle.into())?;
        let key = EndorsementKey::try_from(public_area(&public)?).map_err(|_| {
            HardwareError::Response {
                operation: CREATE_PRIMARY,
                what: "an endorsement key",
            }
        })?;
        let chain = self.ek_chain().unwrap_or_else(|error| {
            tracing::warn!(%error, "an issuer is not shown the TPM's EK certificate chain");
            Vec::new()
        });
        Ok(CertifiedEk {
            key,
            certificate: makers.certificate,
            chain,
        })
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
        let makers = self.makers_ek()?.ok_or(HardwareError::NoEkCertificate)?;
        let (ek, _) = self.create_primary(Hierarchy::Endorsement, &makers.template)?;
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
}

impl EkMemory for EsysRoot {
    type Error = HardwareError;

    fn indices_from(&mut self, first: u32, count: u32) -> Result<Vec<u32>, HardwareError> {
        self.handles_from(first, count)
    }

    fn read_index(&mut self, index: u32) -> Result<Vec<u8>, HardwareError> {
        let handle = checked(NV_READ, NvIndexTpmHandle::new(index))?;
        let password = Some(AuthSession::Password);
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
