//! The key in the TPM: made, certified and used with a PIN.
//!
//! Sessions are salted, and the PIN is only ever a part of the key of their HMACs, or (when it is set) a
//! parameter that they encrypt: it does not cross the way to the TPM in the clear, and what crosses cannot be
//! used to guess it.

use attestation::quote::{QuoteError, canonical_signature, fixed_signature};
use attestation::{KeyStatement, confirmation_key_qualifying_data};
use cert_chain::public_area::PublicAreaError;
use cert_chain::{ConfirmationKey, Digest32, PublicArea, TpmName, template};
use tss_context::{TpmAddress, create_primary, kind, public_of, retrying, unhashed};
use tss_esapi::attributes::SessionAttributesBuilder;
use tss_esapi::constants::response_code::Tss2ResponseCodeKind;
use tss_esapi::constants::{PropertyTag, SessionType};
use tss_esapi::handles::{KeyHandle, SessionHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{
    Auth, Data, Digest, DigestList, Private, Public, Signature, SignatureScheme,
    SymmetricDefinition,
};
use tss_esapi::traits::{Marshall, UnMarshall};
use tss_esapi::{Context, Error};

use crate::key_file::KeyFile;
use crate::pin::Pin;

/// A connection to the TPM, for one enrolment or one try of a PIN: what the stack keeps ends with it.
pub struct ConfirmTpm(Context);

/// Why the TPM did not do its part.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// There is no TPM.
    #[error(
        "the TPM {tpm} cannot be opened: give a device such as /dev/tpmrm0, which this user may use (usually by \
         group tss), or swtpm:host=HOST,port=PORT"
    )]
    Open {
        /// Where it should be.
        tpm: TpmAddress,
        /// Why.
        #[source]
        source: Error,
    },
    /// The TPM refused.
    #[error("the TPM refused {operation}")]
    Tpm {
        /// What it was asked for.
        operation: &'static str,
        /// What it said.
        #[source]
        source: Error,
    },
    /// The PIN is wrong.
    #[error("wrong PIN: {left} tries remain until the TPM is locked")]
    WrongPin {
        /// How many tries remain.
        left: u32,
    },
    /// Too many wrong PINs.
    #[error(
        "the TPM is locked after wrong PINs: it takes one back every {interval_s} s, or its owner unlocks it \
         (tpm2_dictionarylockout --clear-lockout --auth PASSWORD)"
    )]
    Locked {
        /// After how many seconds it allows one more.
        interval_s: u32,
    },
    /// Another TPM, or one that was cleared, or somebody between.
    #[error(
        "the storage key is {found}, and the key was made under {expected}: the TPM is another one or was \
         cleared (enrol anew), or something sits on the way to it"
    )]
    OtherTpm {
        /// The one that the key was made under.
        expected: TpmName,
        /// The present one.
        found: TpmName,
    },
    /// Anybody with the TPM may take wrong PINs back.
    #[error(
        "the TPM's lockout hierarchy has no password: whoever has this machine takes wrong PINs back and guesses \
         on. Set one, and keep it elsewhere: tpm2_changeauth -c lockout PASSWORD"
    )]
    NoLockoutPassword,
    /// The TPM allows too many wrong PINs, or none.
    #[error(
        "the TPM allows {most} wrong PINs and takes one back every {interval_s} s: 1 to {MOST_TRIES}, and at least \
         {LEAST_INTERVAL_S} s, are needed. Set them: tpm2_dictionarylockout --setup-parameters --max-tries 5 \
         --recovery-time 600 --lockout-recovery-time 86400 --auth PASSWORD"
    )]
    FreeGuesses {
        /// How many it allows.
        most: u32,
        /// After how many seconds it allows one more.
        interval_s: u32,
    },
    /// What the TPM made cannot be read.
    #[error("what the TPM made cannot be read")]
    PublicArea(#[from] PublicAreaError),
    /// What the TPM signed cannot be used.
    #[error("the TPM's signature cannot be used")]
    Signature(#[source] QuoteError),
}

/// Wrong PINs in a row, and seconds for each further one: in a year, about a twentieth of the PINs of six digits
/// is tried.
const MOST_TRIES: u32 = 100;
const LEAST_INTERVAL_S: u32 = 600;
/// `lockoutAuthSet` in `TPMA_PERMANENT` (TPM 2.0 Library, Part 2, §8.6).
const LOCKOUT_AUTH_SET: u32 = 1 << 2;

impl ConfirmTpm {
    /// Opens a device such as `/dev/tpmrm0`, or a software TPM: `swtpm:host=HOST,port=PORT`.
    pub fn open(tpm: &TpmAddress) -> Result<Self, KeyError> {
        tpm.context().map(Self).map_err(|source| KeyError::Open {
            tpm: tpm.clone(),
            source,
        })
    }

    /// Whether the TPM counts wrong PINs, and whoever has the machine cannot change that.
    pub fn check_lockout(&mut self) -> Result<(), KeyError> {
        if self.property(PropertyTag::Permanent) & LOCKOUT_AUTH_SET == 0 {
            return Err(KeyError::NoLockoutPassword);
        }
        let most = self.property(PropertyTag::MaxAuthFail);
        let interval_s = self.property(PropertyTag::LockoutInterval);
        match (1..=MOST_TRIES).contains(&most) && interval_s >= LEAST_INTERVAL_S {
            true => Ok(()),
            false => Err(KeyError::FreeGuesses { most, interval_s }),
        }
    }

    /// Makes a key that this PIN opens, and has the device's identity key certify it.
    pub fn enrol(&mut self, pin: &Pin) -> Result<KeyFile, KeyError> {
        const CREATE: &str = "TPM2_Create";
        const CERTIFY: &str = "TPM2_Certify";
        let (parent, parent_name) = self.parent()?;
        let session = self.session(parent, SessionType::Hmac)?;
        let public = Public::unmarshall(&template::confirmation_key()).map_err(refused(CREATE))?;
        let created = retrying(|| {
            let (public, auth) = (public.clone(), auth(pin)?);
            self.0.execute_with_session(Some(session), |context| {
                context.create(parent, public, Some(auth), None, None, None)
            })
        })
        .map_err(refused(CREATE))?;
        let private = created.out_private.value().to_vec();
        let key = self.load(parent, created.out_private, created.out_public)?;
        // A TPM without a resource manager has three places.
        self.flush(parent)?;
        let (ik, identity_key) = self.primary(Hierarchy::Endorsement, &template::device_key())?;
        let said = confirmation_key_qualifying_data().as_bytes().to_vec();
        let (attest, signature) = retrying(|| {
            let data = Data::try_from(said.clone())?;
            self.0.tr_set_auth(key.into(), auth(pin)?)?;
            let sessions = (Some(session), Some(AuthSession::Password), None);
            self.0.execute_with_sessions(sessions, |context| {
                context.certify(key.into(), ik, data, SignatureScheme::Null)
            })
        })
        .map_err(refused(CERTIFY))?;
        let public = public_of(&mut self.0, key).map_err(refused("TPM2_ReadPublic"))?;
        for handle in [key, ik] {
            self.flush(handle)?;
        }
        self.end(session)?;
        let signature = signature.marshall().map_err(refused(CERTIFY))?;
        let statement = KeyStatement {
            public: public.into(),
            attest: attest.marshall().map_err(refused(CERTIFY))?.into(),
            signature: canonical_signature(&signature)
                .map_err(KeyError::Signature)?
                .into(),
        };
        Ok(KeyFile::new(private, statement, parent_name, identity_key))
    }

    /// Signs a SHA-256 value: two scalars of 32 bytes, as COSE has them (RFC 9053 §2.1).
    pub fn sign(
        &mut self,
        file: &KeyFile,
        pin: &Pin,
        digest: &Digest32,
    ) -> Result<[u8; 64], KeyError> {
        const LOAD: &str = "TPM2_Load";
        let (parent, found) = self.parent()?;
        if found != file.parent {
            self.flush(parent)?;
            return Err(KeyError::OtherTpm {
                expected: file.parent.clone(),
                found,
            });
        }
        let public = Public::unmarshall(&file.statement.public).map_err(refused(LOAD))?;
        let private = Private::try_from(file.private.to_vec()).map_err(refused(LOAD))?;
        let session = self.session(parent, SessionType::Policy)?;
        let key = self.load(parent, private, public)?;
        let signed = retrying(|| self.sign_in(session, key, pin, digest));
        for handle in [key, parent] {
            self.flush(handle)?;
        }
        self.end(session)?;
        match signed {
            Ok(signature) => fixed(&signature),
            Err(error) => Err(self.explained(error)),
        }
    }

    fn sign_in(
        &mut self,
        session: AuthSession,
        key: KeyHandle,
        pin: &Pin,
        digest: &Digest32,
    ) -> Result<Signature, Error> {
        let policy = PolicySession::try_from(session)?;
        self.0.policy_restart(policy)?;
        self.0.policy_auth_value(policy)?;
        let mut branches = DigestList::new();
        for branch in ConfirmationKey::policy_branches() {
            branches.add(Digest::try_from(branch.as_bytes().to_vec())?)?;
        }
        self.0.policy_or(policy, branches)?;
        self.0.tr_set_auth(key.into(), auth(pin)?)?;
        let digest = Digest::try_from(digest.as_bytes().to_vec())?;
        let unhashed = unhashed()?;
        self.0.execute_with_session(Some(session), |context| {
            context.sign(key, digest, SignatureScheme::Null, unhashed)
        })
    }

    fn explained(&mut self, error: Error) -> KeyError {
        match kind(&error) {
            Some(Tss2ResponseCodeKind::AuthFail | Tss2ResponseCodeKind::BadAuth) => {
                let most = self.property(PropertyTag::MaxAuthFail);
                let left = most.saturating_sub(self.property(PropertyTag::LockoutCounter));
                match left {
                    0 => self.locked(),
                    left => KeyError::WrongPin { left },
                }
            }
            Some(Tss2ResponseCodeKind::Lockout) => self.locked(),
            _ => refused("TPM2_Sign")(error),
        }
    }

    fn locked(&mut self) -> KeyError {
        KeyError::Locked {
            interval_s: self.property(PropertyTag::LockoutInterval),
        }
    }

    /// Zero if the TPM does not tell, which is the careful answer for tries.
    fn property(&mut self, property: PropertyTag) -> u32 {
        self.0
            .execute_without_session(|context| context.get_tpm_property(property))
            .ok()
            .flatten()
            .unwrap_or_default()
    }

    /// The storage root key, which everybody makes from the same template.
    fn parent(&mut self) -> Result<(KeyHandle, TpmName), KeyError> {
        let (handle, area) = self.primary(Hierarchy::Owner, &template::storage_root_key())?;
        Ok((handle, PublicArea::parse(&area)?.name()))
    }

    fn primary(
        &mut self,
        hierarchy: Hierarchy,
        template: &[u8],
    ) -> Result<(KeyHandle, Vec<u8>), KeyError> {
        const OPERATION: &str = "TPM2_CreatePrimary";
        let created =
            create_primary(&mut self.0, hierarchy, template).map_err(refused(OPERATION))?;
        // The one that the stack salts sessions to. TPM2_ReadPublic may be answered by another.
        let area = created.out_public.marshall().map_err(refused(OPERATION))?;
        Ok((created.key_handle, area))
    }

    fn load(
        &mut self,
        parent: KeyHandle,
        private: Private,
        public: Public,
    ) -> Result<KeyHandle, KeyError> {
        retrying(|| {
            let (private, public) = (private.clone(), public.clone());
            self.0
                .execute_with_session(Some(AuthSession::Password), |context| {
                    context.load(parent, private, public)
                })
        })
        .map_err(refused("TPM2_Load"))
    }

    /// A session whose salt only the TPM with this storage key can know, and which encrypts the first
    /// parameter of each command.
    fn session(&mut self, parent: KeyHandle, kind: SessionType) -> Result<AuthSession, KeyError> {
        const OPERATION: &str = "TPM2_StartAuthSession";
        let session = self
            .0
            .execute_without_session(|context| {
                context.start_auth_session(
                    Some(parent),
                    None,
                    None,
                    kind,
                    SymmetricDefinition::AES_128_CFB,
                    HashingAlgorithm::Sha256,
                )
            })
            .map_err(refused(OPERATION))?
            .ok_or_else(|| {
                let none = tss_esapi::WrapperErrorKind::WrongValueFromTpm;
                refused(OPERATION)(Error::WrapperError(none))
            })?;
        let (attributes, mask) = SessionAttributesBuilder::new()
            .with_continue_session(true)
            .with_decrypt(true)
            .build();
        self.0
            .tr_sess_set_attributes(session, attributes, mask)
            .map_err(refused(OPERATION))?;
        Ok(session)
    }

    fn flush(&mut self, key: KeyHandle) -> Result<(), KeyError> {
        self.0
            .flush_context(key.into())
            .map_err(refused("TPM2_FlushContext"))
    }

    fn end(&mut self, session: AuthSession) -> Result<(), KeyError> {
        self.0
            .flush_context(SessionHandle::from(session).into())
            .map_err(refused("TPM2_FlushContext"))
    }
}

impl std::fmt::Debug for ConfirmTpm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ConfirmTpm")
    }
}

/// A PIN as the stack takes it, which zeroes it. One that is too long becomes one that no key has.
fn auth(pin: &Pin) -> Result<Auth, Error> {
    // Not zeros: a TPM takes those at the end away, and none is the PIN of a key that has none (Part 1 §19.6.4).
    Auth::try_from(pin.bytes().unwrap_or(&[0xff; 32]).to_vec())
}

/// The signature, whatever zeros the TPM leaves out.
fn fixed(signature: &Signature) -> Result<[u8; 64], KeyError> {
    let signature = signature.marshall().map_err(refused("TPM2_Sign"))?;
    canonical_signature(&signature)
        .and_then(|signature| fixed_signature(&signature))
        .map_err(KeyError::Signature)
}

fn refused(operation: &'static str) -> impl Fn(Error) -> KeyError {
    move |source| KeyError::Tpm { operation, source }
}
