//! The TPM's part: an object with the key of a file, and the policy that opens it.

use cert_chain::operator::{Approval, PolicyKeyPublic, Purpose, RequiredPcrs, SealedData};
use cert_chain::pcr::is_unextended;
use cert_chain::policy::pcr_policy_digest;
use cert_chain::{Digest32, HashAlgorithm, PcrSelection, PcrValues, TpmName};
use tss_context::{kind, retrying};
use tss_esapi::attributes::{ObjectAttributesBuilder, SessionAttributesBuilder};
use tss_esapi::constants::SessionType;
use tss_esapi::constants::response_code::Tss2ResponseCodeKind;
use tss_esapi::handles::{KeyHandle, SessionHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{
    Digest, EccParameter, EccSignature, KeyedHashScheme, Name, Nonce, Private, Public,
    PublicBuilder, PublicKeyedHashParameters, SensitiveData, Signature, SymmetricDefinition,
    VerifiedTicket,
};
use tss_esapi::traits::{Marshall, UnMarshall};
use tss_esapi::{Context, Error, WrapperErrorKind};
use zeroize::Zeroizing;

use super::SealError;
use super::header::{Header, SealedTo};
use super::storage_key::StorageKey;
use super::stream::ContentKey;
use crate::attester::tss::{self, refused};
use crate::attester::{AttesterError, TpmAddress, pcrs};

/// The VM's TPM, for sealing.
pub struct SealingTpm {
    context: Context,
}

/// An object that the TPM made.
#[derive(Clone, Debug)]
pub struct SealedObject {
    /// Name of the key above it.
    pub parent: TpmName,
    /// `TPMT_PUBLIC`.
    pub public: Vec<u8>,
    /// What a `TPM2B_PRIVATE` contains.
    pub private: Vec<u8>,
}

/// Something that extends PCRs after the boot does so now and then.
const ATTEMPTS: usize = 8;

impl SealingTpm {
    /// Opens the TPM.
    pub fn open(tpm: &TpmAddress) -> Result<Self, AttesterError> {
        Ok(Self {
            context: tss::open(tpm)?,
        })
    }

    /// What these PCRs hold now, in `bank` or the first bank that has them. PCRs into which no boot was
    /// measured, or that no boot determines, are refused.
    pub fn boot(
        &mut self,
        selection: PcrSelection,
        bank: Option<HashAlgorithm>,
    ) -> Result<PcrValues, SealError> {
        RequiredPcrs::new(selection.iter())?;
        let mut banks = pcrs::banks(&mut self.context, selection)?;
        banks.retain(|found| bank.is_none_or(|only| only == *found));
        let mut measured = Err(SealError::Tpm(AttesterError::Bank));
        for bank in banks {
            let values = pcrs::read(&mut self.context, bank, selection)?;
            // What a running system extends says nothing of a boot that no firmware measured.
            let firmware = pcrs::read(&mut self.context, bank, PcrSelection::of_firmware())?;
            let is_measured = !values.iter().all(|(_, value)| is_unextended(value));
            if is_measured && !firmware.are_unextended() {
                return Ok(values);
            }
            measured = Err(SealError::NothingMeasured {
                pcrs: selection,
                bank,
            });
        }
        measured
    }

    /// Has the TPM keep a key.
    pub fn seal(&mut self, key: &ContentKey, to: &SealedTo) -> Result<SealedObject, SealError> {
        const OPERATION: &str = "TPM2_Create";
        let public = sealed_object(to).map_err(refused(OPERATION))?;
        let secret = SensitiveData::try_from(key.as_bytes()).map_err(refused(OPERATION))?;
        let parent = StorageKey::any(&mut self.context)?;
        let name = parent.name.clone();
        let created = retrying(|| {
            self.context
                .execute_with_session(Some(AuthSession::Password), |context| {
                    let (public, secret) = (public.clone(), Some(secret.clone()));
                    context.create(parent.handle, public, None, secret, None, None)
                })
        });
        parent.release(&mut self.context)?;
        let created = created.map_err(refused(OPERATION))?;
        Ok(SealedObject {
            parent: name,
            public: (created.out_public.marshall()).map_err(refused(OPERATION))?,
            private: created.out_private.value().to_vec(),
        })
    }

    /// Has the TPM give out a key, if this is the vRoT that sealed it and has booted as it must.
    pub fn unseal(
        &mut self,
        header: &Header,
        approvals: &[Approval<SealedData>],
    ) -> Result<ContentKey, SealError> {
        const OPERATION: &str = "TPM2_Load";
        let public = Public::unmarshall(&header.public).map_err(refused(OPERATION))?;
        let private = Private::try_from(header.private.to_vec()).map_err(refused(OPERATION))?;
        // What is looked at before the TPM opens the object is what the object was made for.
        if !is_sealed_to(&public, &header.sealed_to).map_err(refused(OPERATION))? {
            return Err(SealError::Altered { part: 0 });
        }
        let parent = StorageKey::named(&mut self.context, &header.parent)?;
        let loaded = retrying(|| {
            self.context
                .execute_with_session(Some(AuthSession::Password), |context| {
                    context.load(parent.handle, private.clone(), public.clone())
                })
        });
        parent.release(&mut self.context)?;
        let object = loaded.map_err(refused(OPERATION))?;
        let secret = self.unseal_loaded(object, &header.sealed_to, approvals);
        let flushed = self.context.flush_context(object.into());
        let secret = Zeroizing::new(secret?.value().to_vec());
        flushed.map_err(refused("TPM2_FlushContext"))?;
        ContentKey::from_bytes(&secret).ok_or(SealError::Altered { part: 0 })
    }

    fn unseal_loaded(
        &mut self,
        object: KeyHandle,
        to: &SealedTo,
        approvals: &[Approval<SealedData>],
    ) -> Result<SensitiveData, SealError> {
        const OPERATION: &str = "TPM2_Unseal";
        // A PCR that changes between two commands is no reason to give up, unless it is one that counts.
        for _ in 0..ATTEMPTS {
            let unsealed = match to {
                SealedTo::Vrot => {
                    let unsealed = retrying(|| {
                        let session = Some(AuthSession::Password);
                        self.context
                            .execute_with_session(session, |context| context.unseal(object.into()))
                    });
                    return Ok(unsealed.map_err(refused(OPERATION))?);
                }
                SealedTo::Boot(values) => {
                    self.check_boot(values)?;
                    self.unseal_by_policy(object, values, None)
                }
                SealedTo::Approved(key) => {
                    let approval = self.matching(key, approvals)?;
                    let ticket = self.ticket(key, approval)?;
                    self.unseal_by_policy(object, &approval.pcrs, Some((key, approval, ticket)))
                }
            };
            match unsealed {
                Err(error) if has_changed(&error) => {}
                unsealed => return Ok(unsealed.map_err(refused(OPERATION))?),
            }
        }
        Err(SealError::PcrsChange)
    }

    fn unseal_by_policy(
        &mut self,
        object: KeyHandle,
        values: &PcrValues,
        approved: Option<(&PolicyKeyPublic, &Approval<SealedData>, VerifiedTicket)>,
    ) -> Result<SensitiveData, Error> {
        let session = self.context.start_auth_session(
            None,
            None,
            None,
            SessionType::Policy,
            SymmetricDefinition::AES_128_CFB,
            HashingAlgorithm::Sha256,
        )?;
        let Some(session) = session else {
            return Err(Error::WrapperError(WrapperErrorKind::WrongValueFromTpm));
        };
        let unsealed = self.unseal_in(session, object, values, approved);
        let session = SessionHandle::from(session);
        let flushed = self.context.flush_context(session.into());
        let unsealed = unsealed?;
        flushed?;
        Ok(unsealed)
    }

    fn unseal_in(
        &mut self,
        session: AuthSession,
        object: KeyHandle,
        values: &PcrValues,
        approved: Option<(&PolicyKeyPublic, &Approval<SealedData>, VerifiedTicket)>,
    ) -> Result<SensitiveData, Error> {
        // It is flushed here, also after an error.
        let (attributes, mask) = SessionAttributesBuilder::new()
            .with_continue_session(true)
            .build();
        let context = &mut self.context;
        context.tr_sess_set_attributes(session, attributes, mask)?;
        let policy = PolicySession::try_from(session)?;
        // With the digest given the TPM refuses here if the PCRs differ, not only at the use.
        let selection = pcrs::selection(values.bank(), values.pcrs())?;
        context.policy_pcr(policy, digest(&values.digest())?, selection)?;
        if let Some((key, approval, ticket)) = approved {
            context.policy_authorize(
                policy,
                digest(&approval.policy_digest())?,
                Nonce::try_from(SealedData::POLICY_REF.to_vec())?,
                &Name::try_from(key.name().as_bytes().to_vec())?,
                ticket,
            )?;
        }
        context.execute_with_session(Some(session), |context| context.unseal(object.into()))
    }

    /// Whether the PCRs have these values; if not, which differ.
    fn check_boot(&mut self, values: &PcrValues) -> Result<(), SealError> {
        let present = pcrs::read(&mut self.context, values.bank(), values.selection())?;
        let differing = differing(values, &present);
        if differing.is_empty() {
            return Ok(());
        }
        Err(SealError::OtherBoot {
            differing,
            bank: values.bank(),
        })
    }

    /// The approval by this key that is of the present boot.
    fn matching<'a>(
        &mut self,
        key: &PolicyKeyPublic,
        approvals: &'a [Approval<SealedData>],
    ) -> Result<&'a Approval<SealedData>, SealError> {
        let mut nearest: Option<(usize, String)> = None;
        for approval in approvals {
            if !approval.is_signed_by(key) {
                return Err(SealError::OthersApproval {
                    label: approval.label.clone(),
                    key: key.name(),
                });
            }
            let approved = &approval.pcrs;
            let present = pcrs::read(&mut self.context, approved.bank(), approved.selection())?;
            let differing = differing(approved, &present);
            if differing.is_empty() {
                return Ok(approval);
            }
            let count = differing.iter().count();
            if nearest.as_ref().is_none_or(|(least, _)| count < *least) {
                let said = format!("PCRs {differing} differ from `{}`", approval.label);
                nearest = Some((count, said));
            }
        }
        Err(SealError::NotApproved {
            key: key.name(),
            given: approvals.len(),
            nearest: nearest.map(|(_, said)| said),
        })
    }

    /// The TPM's confirmation that the key signed the approval.
    fn ticket(
        &mut self,
        key: &PolicyKeyPublic,
        approval: &Approval<SealedData>,
    ) -> Result<VerifiedTicket, SealError> {
        const OPERATION: &str = "TPM2_VerifySignature";
        let verify = |context: &mut Context| -> Result<VerifiedTicket, Error> {
            let (r, s) = approval.scalars().unwrap_or_default();
            let signature = EccSignature::create(
                HashingAlgorithm::Sha256,
                EccParameter::try_from(r.to_vec())?,
                EccParameter::try_from(s.to_vec())?,
            )?;
            let public = Public::unmarshall(key.as_bytes())?;
            // A ticket from the NULL hierarchy is none (TPM 2.0 Part 3 §20.1).
            let loaded = context.load_external_public(public, Hierarchy::Owner)?;
            let signed = digest(&approval.signed_digest())?;
            let ticket = context.verify_signature(loaded, signed, Signature::EcDsa(signature));
            context.flush_context(loaded.into())?;
            ticket
        };
        let ticket = self.context.execute_without_session(verify);
        Ok(ticket.map_err(refused(OPERATION))?)
    }
}

impl std::fmt::Debug for SealingTpm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealingTpm")
    }
}

/// A sealed data object that stays in this TPM, under this key. Only one that is sealed to nothing more is
/// opened by its (empty) authorization value.
fn sealed_object(to: &SealedTo) -> Result<Public, Error> {
    let policy = match to {
        SealedTo::Vrot => None,
        SealedTo::Boot(values) => Some(pcr_policy_digest(values)),
        SealedTo::Approved(key) => Some(key.policy_digest_for::<SealedData>()),
    };
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_no_da(true)
        .with_user_with_auth(policy.is_none())
        .with_admin_with_policy(policy.is_some())
        .build()?;
    let policy = policy.as_ref().map(digest).transpose()?;
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::KeyedHash)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_auth_policy(policy.unwrap_or_default())
        .with_keyed_hash_parameters(PublicKeyedHashParameters::new(KeyedHashScheme::Null))
        .with_keyed_hash_unique_identifier(Digest::default())
        .build()
}

/// Whether this is the public area of an object that is sealed to that.
fn is_sealed_to(public: &Public, to: &SealedTo) -> Result<bool, Error> {
    let (
        Public::KeyedHash {
            object_attributes,
            auth_policy,
            ..
        },
        Public::KeyedHash {
            object_attributes: attributes,
            auth_policy: policy,
            ..
        },
    ) = (public, &sealed_object(to)?)
    else {
        return Ok(false);
    };
    Ok(object_attributes == attributes && auth_policy == policy)
}

fn digest(digest: &Digest32) -> Result<Digest, Error> {
    Digest::try_from(digest.as_bytes().to_vec())
}

fn differing(wanted: &PcrValues, present: &PcrValues) -> PcrSelection {
    wanted
        .selection()
        .filter(|pcr| wanted.get(pcr) != present.get(pcr))
}

/// Whether a policy was not satisfied because a PCR changed: of those that count, which the next look tells,
/// or of others.
fn has_changed(error: &Error) -> bool {
    matches!(
        kind(error),
        Some(
            Tss2ResponseCodeKind::PcrChanged
                | Tss2ResponseCodeKind::PolicyFail
                | Tss2ResponseCodeKind::Value
        )
    )
}
