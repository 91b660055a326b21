//! The hardware root over ESYS (TCG TSS 2.0 Enhanced System API).
//!
//! **Why the host IK has `userWithAuth` and `adminWithPolicy` both clear.** `userWithAuth` clear:
//! signing and quoting, the USER role, need the policy (TPM 2.0 Part 1 §19.2). The ADMIN role
//! covers `TPM2_ActivateCredential`, being the object of `TPM2_Certify` and
//! `TPM2_ObjectChangeAuth`. With `adminWithPolicy` set it would need a policy that contains
//! `TPM2_PolicyCommandCode`, so every operator would have to sign a second approval, for
//! enrolment only. With it clear, ADMIN is satisfied by the authorization value, which is empty.
//! That gives nobody a signature: it lets a host with unapproved PCRs open a credential, which
//! proves residence and not state, and a primary key has no parent under which its authorization
//! could be changed. The sealed root secret needs no ADMIN role, so there it is set.
//!
//! **Sessions.** Secrets travel only through sessions that are salted to the storage root key
//! and encrypt parameters, so a listener on the TPM's bus learns nothing (TPM 2.0 Part 1 §19.6,
//! §21). That the salt goes to the right key follows from the SRK's name, which the anchor
//! compares with the recorded one before anything else.

mod convert;
mod keys;
mod nv;
mod session;

use std::collections::HashMap;
use std::str::FromStr;

use cert_chain::policy::{PcrSelection, PcrValues};
use cert_chain::{AttestationKey, CredentialBlob, Digest32, TpmName};
use tss_esapi::Context;
use tss_esapi::handles::{KeyHandle, NvIndexHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{Data, MaxBuffer, Private, Public, SensitiveData, SignatureScheme};
use tss_esapi::tcti_ldr::{DeviceConfig, NetworkTPMConfig, TctiNameConf};
use tss_esapi::traits::{Marshall, UnMarshall};
use tss_esapi::tss2_esys::TPMT_TK_VERIFIED;
use zeroize::Zeroizing;

use super::bridge::Bridge;
use super::config::Tcti;
use super::error::{HardwareError, Operation};
use super::hardware::{Authorization, CertifiedEk, HardwareRoot, SealedBlob, SignedQuote};
use super::rollback_index::NvMemory;

use convert::{checked, pcr_list};
use session::Protect;

/// A TPM behind an ESYS context.
struct EsysRoot {
    /// Dropped before the bridge: it flushes what it left in the TPM.
    context: Context,
    srk: Option<KeyHandle>,
    ik: Option<KeyHandle>,
    /// Tickets for signatures that the TPM verified, by signature. They hold until the owner
    /// hierarchy is cleared.
    tickets: HashMap<Digest32, TPMT_TK_VERIFIED>,
    /// Handles of the rollback registers' indices, by number.
    nv_indices: HashMap<u32, NvIndexHandle>,
    /// The session in which they are read and written.
    index_session: Option<AuthSession>,
    /// Never read: the connection lasts as long as it.
    _bridge: Option<Bridge>,
}

/// What one `TPM2_Hash` takes (`TPM_PT_INPUT_BUFFER` of every known TPM).
const MAX_MESSAGE: usize = cert_chain::profile::MAX_TBS;

const CONNECT: Operation = Operation("connecting to the TPM");
const QUOTE: Operation = Operation("TPM2_Quote");
const SIGN: Operation = Operation("TPM2_Sign");
const HASH: Operation = Operation("TPM2_Hash");
const CREATE: Operation = Operation("TPM2_Create");
const LOAD: Operation = Operation("TPM2_Load");
const PCR_READ: Operation = Operation("TPM2_PCR_Read");

/// Opens a connection.
pub(super) fn connect(tpm: &Tcti) -> Result<Box<dyn HardwareRoot>, HardwareError> {
    let mut bridge = None;
    let name = match tpm {
        Tcti::Device(path) => {
            DeviceConfig::from_str(&path.to_string_lossy()).map(TctiNameConf::Device)
        }
        Tcti::SwtpmTcp { host, port } => {
            NetworkTPMConfig::from_str(&format!("host={host},port={port}")).map(TctiNameConf::Swtpm)
        }
        Tcti::SwtpmPath(path) => {
            let opened = Bridge::open(path).map_err(|source| HardwareError::Bridge {
                operation: CONNECT,
                source,
            })?;
            let address = opened.address();
            bridge = Some(opened);
            NetworkTPMConfig::from_str(&format!("host={},port={}", address.ip(), address.port()))
                .map(TctiNameConf::Swtpm)
        }
    };
    let name = checked(CONNECT, name)?;
    let context = checked(CONNECT, Context::new(name))?;
    Ok(Box::new(EsysRoot {
        context,
        srk: None,
        ik: None,
        tickets: HashMap::new(),
        nv_indices: HashMap::new(),
        index_session: None,
        _bridge: bridge,
    }))
}

impl HardwareRoot for EsysRoot {
    fn nv_memory(&mut self) -> Result<&mut dyn NvMemory, HardwareError> {
        Ok(self)
    }

    fn pcr_values(&mut self, pcrs: PcrSelection) -> Result<PcrValues, HardwareError> {
        let mut wanted: Vec<u8> = pcrs.iter().collect();
        let mut values = PcrValues::new();
        // A TPM returns as many at a time as it likes, at most eight (Part 3 §22.4).
        while !wanted.is_empty() {
            let list = pcr_list(PCR_READ, wanted.iter().copied())?;
            let (_, selected, digests) = checked(PCR_READ, self.context.pcr_read(list))?;
            let read = convert::read_values(&selected, &digests)?;
            let before = wanted.len();
            wanted.retain(|pcr| !read.contains_key(pcr));
            if wanted.len() == before {
                // The TPM has no SHA-256 bank, or does not have the PCR.
                return Err(HardwareError::Response {
                    operation: PCR_READ,
                    what: "no value of the SHA-256 bank",
                });
            }
            values.extend(read);
        }
        Ok(values)
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
        pcrs: PcrSelection,
        authorization: &Authorization<'_>,
    ) -> Result<SignedQuote, HardwareError> {
        let ik = self.ik()?;
        let data = checked(QUOTE, Data::try_from(qualifying_data.as_bytes().to_vec()))?;
        let list = pcr_list(QUOTE, pcrs.iter())?;
        let (attest, signature) = self.with_policy(Protect::Nothing, authorization, |context| {
            checked(QUOTE, context.quote(ik, data, SignatureScheme::Null, list))
        })?;
        Ok(SignedQuote {
            attest: checked(QUOTE, attest.marshall())?,
            signature: checked(QUOTE, signature.marshall())?,
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
        let signature = self.with_policy(Protect::Nothing, authorization, |context| {
            checked(
                SIGN,
                context.sign(ik, digest, SignatureScheme::Null, ticket),
            )
        })?;
        convert::ecdsa_der(SIGN, &signature)
    }
}
