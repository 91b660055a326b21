//! The endorsement key as its maker had it made, its certificates, and what it opens.

use cert_chain::ek_chain::MAX_EK_CHAIN;
use cert_chain::ek_template::{EK_CHAIN, EK_PLACES, EkPlace, MOST_CHAIN_INDICES};
use cert_chain::{CredentialBlob, EndorsementKey};
use tpm_wire::Operation;
use tss_esapi::abstraction::nv;
use tss_esapi::constants::SessionType;
use tss_esapi::handles::{AuthHandle, KeyHandle, NvIndexHandle, NvIndexTpmHandle, TpmHandle};
use tss_esapi::interface_types::resource_handles::{Hierarchy, NvAuth};
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{
    Digest, EccParameter, EccPoint, EncryptedSecret, IdObject, Nonce, Public, PublicKeyRsa,
};
use tss_esapi::traits::{Marshall, UnMarshall};
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
        let place = self.ek_place()?;
        let certificate = self.read_index(place.certificate)?;
        let template = self.ek_template(place)?;
        let (handle, public) = self.create_primary(Hierarchy::Endorsement, &template)?;
        self.flush(handle.into())?;
        let key = EndorsementKey::try_from(public_area(&public)?).map_err(|_| {
            HardwareError::Response {
                operation: CREATE_PRIMARY,
                what: "an endorsement key",
            }
        })?;
        Ok(CertifiedEk {
            key,
            certificate,
            chain: self.ek_chain(),
        })
    }

    /// The template by which the TPM's maker had the key made: the TCG's, unless NV memory has
    /// another one, with what the maker put there to make the key another one (TCG EK Credential
    /// Profile 2.5 §2.2.1.4).
    fn ek_template(&mut self, place: EkPlace) -> Result<Vec<u8>, HardwareError> {
        let mut template = place.default_template.to_bytes();
        if self.exists(place.template)? {
            template = self.read_index(place.template)?;
        }
        if !self.exists(place.nonce)? {
            return Ok(template);
        }
        let nonce = self.read_index(place.nonce)?;
        let public = checked(CREATE_PRIMARY, Public::unmarshall(&template))?;
        checked(CREATE_PRIMARY, with_nonce(public, &nonce)?.marshall())
    }

    /// The certificates that the TPM has for the path from the EK's to the maker's, as they stand
    /// in NV memory. A TPM whose chain cannot be read may do without.
    fn ek_chain(&mut self) -> Vec<u8> {
        let read = |root: &mut Self| {
            let mut chain = Vec::new();
            for index in root.handles_from(EK_CHAIN.0, MOST_CHAIN_INDICES)? {
                if index <= EK_CHAIN.1 {
                    chain.extend(root.read_index(index)?);
                }
            }
            Ok::<_, HardwareError>(chain)
        };
        match read(self) {
            Ok(chain) if chain.len() <= MAX_EK_CHAIN => chain,
            Ok(chain) => {
                tracing::warn!(
                    bytes = chain.len(),
                    "the TPM's EK certificate chain is too long to be sent to an issuer"
                );
                Vec::new()
            }
            Err(error) => {
                tracing::warn!(%error, "the TPM's EK certificate chain cannot be read");
                Vec::new()
            }
        }
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
        let place = self.ek_place()?;
        let template = self.ek_template(place)?;
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
}

/// Puts what the maker chose into the template's `unique` field, where it makes another key: at the
/// start of the modulus, or of the first coordinate, with zeros behind it.
fn with_nonce(template: Public, nonce: &[u8]) -> Result<Public, HardwareError> {
    let filled = |length: usize| {
        let mut filled = nonce.to_vec();
        filled.resize(length.max(nonce.len()), 0);
        filled
    };
    Ok(match template {
        Public::Rsa {
            object_attributes,
            name_hashing_algorithm,
            auth_policy,
            parameters,
            ..
        } => {
            let length = usize::from(u16::from(parameters.key_bits())) / 8;
            Public::Rsa {
                object_attributes,
                name_hashing_algorithm,
                auth_policy,
                parameters,
                unique: checked(CREATE_PRIMARY, PublicKeyRsa::try_from(filled(length)))?,
            }
        }
        Public::Ecc {
            object_attributes,
            name_hashing_algorithm,
            auth_policy,
            parameters,
            ..
        } => Public::Ecc {
            object_attributes,
            name_hashing_algorithm,
            auth_policy,
            parameters,
            unique: EccPoint::new(
                checked(CREATE_PRIMARY, EccParameter::try_from(filled(COORDINATE)))?,
                checked(CREATE_PRIMARY, EccParameter::try_from(vec![0; COORDINATE]))?,
            ),
        },
        other => other,
    })
}

/// Bytes of a coordinate on P-256.
const COORDINATE: usize = 32;

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
