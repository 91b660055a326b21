//! The hardware root over ESYS (TCG TSS 2.0 Enhanced System API).
//!
//! **Why the host IK has `userWithAuth` and `adminWithPolicy` both clear.** `userWithAuth` clear:
//! signing and quoting, the USER role, need the policy (TPM 2.0 Part 1 §19.2). The ADMIN role
//! covers `TPM2_ActivateCredential`, being the object of `TPM2_Certify` and
//! `TPM2_ObjectChangeAuth`. With `adminWithPolicy` set it would need a policy that contains
//! `TPM2_PolicyCommandCode`, so every operator would have to sign a second approval, for
//! enrolment only. With it clear, ADMIN is satisfied by the authorization value, which is empty.
//! That gives no signature: it lets a host with unapproved PCRs open a credential, which
//! proves residence and not state, and a primary key has no parent under which its authorization
//! could be changed. The sealed root secret needs no ADMIN role, so there it is set.
//!
//! **Sessions.** Secrets travel only through sessions that are salted to the storage root key
//! and encrypt parameters, so a listener on the TPM's bus learns nothing (TPM 2.0 Part 1 §19.6,
//! §21). That the salt goes to the right key follows from the SRK's name, which the anchor
//! compares with the recorded one before anything else, and which the host IK certifies before
//! the host issues anything ([`crate::srk_statement`]).
//!
//! **An interposer on the bus can change commands and answers.** In a session an answer has an HMAC,
//! which the stack verifies. Answers without one are checked here, or a changed one has no effect:
//!
//! | Command | Why a changed answer does no harm |
//! |---|---|
//! | `TPM2_Hash` | the digest is computed here as well |
//! | `TPM2_Sign`, `TPM2_Quote`, `TPM2_Certify` | in a session, and the signature is verified with the host IK |
//! | `TPM2_ReadPublic`, `TPM2_CreatePrimary` | names: the SRK's is recorded and certified, the IK's is in its certificate, the EK's in its own |
//! | `TPM2_NV_Read`, `TPM2_NV_Write` of a register | in a session for the index's authorization value, that of a write without the stack |
//! | `TPM2_PCR_Read` | audited where an operator acts on the values; to choose an approval it is a guess, which the TPM checks |
//! | `TPM2_StartAuthSession`, `TPM2_LoadExternal`, `TPM2_VerifySignature` | without the right one the next command fails |
//!
//! An error has no HMAC (Part 1 §18.8), so an interposer can always make a command fail, and a
//! register look as after a TPM reset.

mod convert;
mod endorsement;
mod keys;
mod nv;
mod prepared;
mod register_writer;
mod root;
mod session;

use attestation::quote::{VerifiedQuote, canonical_signature};
use cert_chain::{
    AttestationKey, CredentialBlob, Digest32, HashAlgorithm, PcrSelection, PcrValues, TpmName,
};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use tpm_wire::Operation;
use tss_esapi::constants::CapabilityType;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    CapabilityData, Data, DigestList, MaxBuffer, PcrSelectionList, Private, Public, SensitiveData,
    SignatureScheme,
};
use tss_esapi::traits::{Marshall, UnMarshall};
use zeroize::Zeroizing;

use crate::config::Tcti;
use crate::error::HardwareError;
use crate::hardware::{Authorization, CertifiedEk, HardwareRoot, SealedBlob, SignedQuote};
use crate::nv::NvMemory;
use crate::srk_statement::SrkStatement;

use convert::{checked, pcr_list};
use keys::CAPABILITY;
use root::EsysRoot;
use session::{CERTIFY, Protect};

/// What one `TPM2_Hash` takes (`TPM_PT_INPUT_BUFFER` of every known TPM).
const MAX_MESSAGE: usize = cert_chain::profile::MAX_TBS;

const QUOTE: Operation = Operation("TPM2_Quote");
const SIGN: Operation = Operation("TPM2_Sign");
const HASH: Operation = Operation("TPM2_Hash");
const CREATE: Operation = Operation("TPM2_Create");
const LOAD: Operation = Operation("TPM2_Load");
/// More than any TPM has.
const MAX_BANKS: u32 = 16;
const PCR_READ: Operation = Operation("TPM2_PCR_Read");

/// Opens a connection.
pub(crate) fn connect(tpm: &Tcti) -> Result<Box<dyn HardwareRoot>, HardwareError> {
    Ok(Box::new(EsysRoot::connect(tpm)?))
}

impl HardwareRoot for EsysRoot {
    fn nv_memory(&mut self) -> Result<&mut dyn NvMemory, HardwareError> {
        Ok(self)
    }

    fn active_banks(&mut self) -> Result<Vec<HashAlgorithm>, HardwareError> {
        let (found, _) = checked(
            CAPABILITY,
            self.context
                .get_capability(CapabilityType::AssignedPcr, 0, MAX_BANKS),
        )?;
        match found {
            CapabilityData::AssignedPcr(allocated) => {
                Ok(convert::banks_with(&allocated, PcrSelection::of_firmware()))
            }
            _ => Err(HardwareError::Response {
                operation: CAPABILITY,
                what: "something else than PCR banks",
            }),
        }
    }

    fn pcr_values(
        &mut self,
        bank: HashAlgorithm,
        pcrs: PcrSelection,
    ) -> Result<PcrValues, HardwareError> {
        self.read_pcrs(bank, pcrs, |root, list| {
            checked(PCR_READ, root.context.pcr_read(list))
        })
    }

    fn audited_pcr_values(
        &mut self,
        bank: HashAlgorithm,
        pcrs: PcrSelection,
    ) -> Result<PcrValues, HardwareError> {
        self.read_pcrs(bank, pcrs, |root, list| {
            root.with_hmac_session(Protect::Audited, |context| {
                checked(PCR_READ, context.pcr_read(list))
            })
        })
    }

    fn storage_root_key(&mut self, recorded: Option<&TpmName>) -> Result<TpmName, HardwareError> {
        if let Some(recorded) = recorded
            && let Some(new) = self.would_be_srk()?
            && new != *recorded
        {
            return Ok(new);
        }
        let srk = self.srk()?;
        Ok(self.read_public(srk)?.name())
    }

    fn endorsement_key(&mut self) -> Result<CertifiedEk, HardwareError> {
        self.certified_ek()
    }

    fn identity_key(&mut self, policy: &Digest32) -> Result<AttestationKey, HardwareError> {
        self.find_or_make_ik(policy)
    }

    fn seal(&mut self, secret: &[u8], policy: &Digest32) -> Result<SealedBlob, HardwareError> {
        let srk = self.srk()?;
        let public = convert::sealed_object(policy)?;
        let secret = checked(CREATE, SensitiveData::try_from(secret.to_vec()))?;
        let created = self.with_hmac_session(Protect::Request, |context| {
            checked(
                CREATE,
                context.create(srk, public, None, Some(secret), None, None),
            )
        })?;
        Ok(SealedBlob {
            public: checked(CREATE, created.out_public.marshall())?,
            private: created.out_private.value().to_vec(),
        })
    }

    fn unseal(
        &mut self,
        blob: &SealedBlob,
        authorization: &Authorization<'_>,
    ) -> Result<Zeroizing<Vec<u8>>, HardwareError> {
        let srk = self.srk()?;
        let public = checked(LOAD, Public::unmarshall(&blob.public))?;
        let private = checked(LOAD, Private::try_from(blob.private.clone()))?;
        let object = self.with_hmac_session(Protect::Request, |context| {
            checked(LOAD, context.load(srk, private, public))
        })?;
        let result = self.with_policy(Protect::Response, authorization, |context| {
            checked(Operation::UNSEAL, context.unseal(object.into()))
        });
        let secret = self.then_flush(object.into(), result)?;
        Ok(Zeroizing::new(secret.value().to_vec()))
    }

    fn activate_credential(
        &mut self,
        credential: &CredentialBlob,
    ) -> Result<Zeroizing<Vec<u8>>, HardwareError> {
        let ik = self.ik()?;
        self.activate(ik, credential)
    }

    fn quote(
        &mut self,
        qualifying_data: &Digest32,
        bank: HashAlgorithm,
        pcrs: PcrSelection,
        authorization: &Authorization<'_>,
    ) -> Result<SignedQuote, HardwareError> {
        self.with_policy_session(Protect::Nothing, authorization, |root, session| {
            root.quote_in(session, qualifying_data, bank, pcrs)
        })
    }

    fn prepare_quote(&mut self, authorization: &Authorization<'_>) -> Result<(), HardwareError> {
        self.prepare_session(authorization)
    }

    fn quote_as_prepared(
        &mut self,
        qualifying_data: &Digest32,
        pcrs: PcrSelection,
    ) -> Result<Option<SignedQuote>, HardwareError> {
        self.in_prepared_session(|root, session, bank| {
            root.quote_in(session, qualifying_data, bank, pcrs)
        })
    }

    fn certify_storage_root_key(
        &mut self,
        nonce: &Digest32,
        authorization: &Authorization<'_>,
    ) -> Result<SrkStatement, HardwareError> {
        let (srk, ik) = (self.srk()?, self.ik()?);
        let data = checked(CERTIFY, Data::try_from(nonce.as_bytes().to_vec()))?;
        let (attest, signature) = self.certify_with_policy(srk, ik, data, authorization)?;
        Ok(SrkStatement {
            attest: checked(CERTIFY, attest.marshall())?,
            signature: convert::ecdsa_der(CERTIFY, &signature)?,
        })
    }

    fn sign(
        &mut self,
        message: &[u8],
        authorization: &Authorization<'_>,
    ) -> Result<Vec<u8>, HardwareError> {
        if message.len() > MAX_MESSAGE {
            return Err(HardwareError::TooLong {
                length: message.len(),
                limit: MAX_MESSAGE,
            });
        }
        let ik = self.ik()?;
        let buffer = checked(HASH, MaxBuffer::try_from(message.to_vec()))?;
        // Not the NULL hierarchy: a ticket from there lets a restricted key sign nothing.
        let (digest, ticket) = checked(
            HASH,
            self.context
                .hash(buffer, HashingAlgorithm::Sha256, Hierarchy::Owner),
        )?;
        // That answer has no HMAC, and its ticket is good for whatever was hashed: without this
        // check, an interposer who changes the message on its way has a statement of theirs signed.
        if digest.value() != Digest32::of(message).as_bytes() {
            return Err(HardwareError::Altered { operation: HASH });
        }
        let signature = self.with_policy(Protect::Nothing, authorization, |context| {
            checked(
                SIGN,
                context.sign(ik, digest, SignatureScheme::Null, ticket),
            )
        })?;
        let signature = convert::ecdsa_der(SIGN, &signature)?;
        let key = self.ik_public()?.public_area().public_key_bytes();
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key)
            .verify(message, &signature)
            .map_err(|_| HardwareError::Altered { operation: SIGN })?;
        Ok(signature)
    }
}

impl EsysRoot {
    /// A quote in a session that satisfies the host IK's policy.
    fn quote_in(
        &mut self,
        session: AuthSession,
        qualifying_data: &Digest32,
        bank: HashAlgorithm,
        pcrs: PcrSelection,
    ) -> Result<SignedQuote, HardwareError> {
        let ik = self.ik()?;
        let data = checked(QUOTE, Data::try_from(qualifying_data.as_bytes().to_vec()))?;
        let list = pcr_list(QUOTE, bank, pcrs.iter())?;
        let quoted = (self.context).execute_with_session(Some(session), |context| {
            context.quote(ik, data, SignatureScheme::Null, list)
        });
        let (attest, signature) = checked(QUOTE, quoted)?;
        let attest = checked(QUOTE, attest.marshall())?;
        let signature = checked(QUOTE, signature.marshall())?;
        // What is wrong is not handed to a guest, who could make nothing of it.
        let digest = self
            .quoted_digest(&attest, &signature, qualifying_data, (bank, pcrs))
            .ok_or(HardwareError::Altered { operation: QUOTE })?;
        Ok(SignedQuote {
            attest,
            signature,
            pcrs: self.quoted_values(bank, pcrs, &digest)?,
        })
    }

    fn read_pcrs(
        &mut self,
        bank: HashAlgorithm,
        pcrs: PcrSelection,
        mut read: impl FnMut(
            &mut Self,
            PcrSelectionList,
        ) -> Result<(u32, PcrSelectionList, DigestList), HardwareError>,
    ) -> Result<PcrValues, HardwareError> {
        let mut wanted = pcrs;
        let mut values = PcrValues::new(bank);
        // A TPM returns as many at a time as it likes, at most eight (Part 3 §22.4).
        while !wanted.is_empty() {
            let list = pcr_list(PCR_READ, bank, wanted.iter())?;
            let (_, selected, digests) = read(self, list)?;
            convert::read_values(&selected, &digests, &mut values)?;
            let missing = wanted.filter(|pcr| values.get(pcr).is_none());
            if missing == wanted {
                return Err(HardwareError::NoPcr {
                    bank,
                    pcrs: missing,
                });
            }
            wanted = missing;
        }
        Ok(values)
    }

    /// The digest of the PCRs in a quote, if it is the one that was asked for.
    fn quoted_digest(
        &self,
        attest: &[u8],
        signature: &[u8],
        qualifying_data: &Digest32,
        quoted: (HashAlgorithm, PcrSelection),
    ) -> Option<Digest32> {
        let ik = self.ik_public().ok()?;
        let signature = canonical_signature(signature).ok()?;
        let verified = VerifiedQuote::verify(attest, &signature, ik).ok()?;
        let is_ours = verified.qualifying_data() == qualifying_data.as_bytes()
            && (verified.bank(), verified.selection()) == quoted;
        is_ours.then(|| *verified.pcr_digest())
    }

    /// The values that have this digest. They are read where they are not those of the last quote:
    /// after the boot they hardly ever change.
    fn quoted_values(
        &mut self,
        bank: HashAlgorithm,
        pcrs: PcrSelection,
        digest: &Digest32,
    ) -> Result<PcrValues, HardwareError> {
        let is_quoted = |values: &PcrValues| values.digest() == *digest;
        let known = self.quoted.take().filter(is_quoted);
        let values = match known {
            Some(known) => known,
            None => Some(self.pcr_values(bank, pcrs)?)
                .filter(is_quoted)
                .ok_or(HardwareError::PcrsChange)?,
        };
        self.quoted = Some(values.clone());
        Ok(values)
    }
}
