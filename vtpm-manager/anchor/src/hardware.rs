//! What the trust anchor needs from a physical TPM: one narrow, blocking interface.

use cert_chain::hexadecimal;
use cert_chain::operator::{Approval, PolicyKeyPublic};
use cert_chain::{
    AttestationKey, CredentialBlob, Digest32, EndorsementKey, HashAlgorithm, PcrSelection,
    PcrValues, TpmName,
};
use serde::{Deserialize, Serialize};
use tpm_wire::Operation;
use zeroize::Zeroizing;

use super::error::HardwareError;
pub use super::nv::{Defined, Index, NvMemory};
pub use super::srk_statement::SrkStatement;

/// A physical TPM with our keys in it.
///
/// Implemented over ESYS, the Enhanced System API of the TCG's software stack. An implementation
/// does not retry: the caller does, by [`HardwareError::disposition`].
pub trait HardwareRoot: Send {
    /// NV memory, for the rollback registers.
    fn nv_memory(&mut self) -> Result<&mut dyn NvMemory, HardwareError> {
        Err(HardwareError::Response {
            operation: Operation("NV memory"),
            what: "none",
        })
    }

    /// The active PCR banks: those that have all of the firmware's PCRs. Banks of other algorithms
    /// than [`HashAlgorithm`] knows are left out.
    fn active_banks(&mut self) -> Result<Vec<HashAlgorithm>, HardwareError>;

    /// Values of PCRs in one bank. Nothing shows that the TPM said so: good for a guess that the
    /// TPM checks.
    fn pcr_values(
        &mut self,
        bank: HashAlgorithm,
        pcrs: PcrSelection,
    ) -> Result<PcrValues, HardwareError>;

    /// The same, in a session that shows it: for people to act on.
    fn audited_pcr_values(
        &mut self,
        bank: HashAlgorithm,
        pcrs: PcrSelection,
    ) -> Result<PcrValues, HardwareError>;

    /// Has the host IK certify the storage root key.
    fn certify_storage_root_key(
        &mut self,
        nonce: &Digest32,
        authorization: &Authorization<'_>,
    ) -> Result<SrkStatement, HardwareError>;

    /// The storage root key: the one that is there, if it is acceptable, or else a new one. A
    /// new one that is not the `recorded` one is named, but not kept: the TPM was cleared or
    /// replaced, and finding that out changes nothing.
    fn storage_root_key(&mut self, recorded: Option<&TpmName>) -> Result<TpmName, HardwareError>;

    /// The endorsement key with the certificate that the maker put into NV memory.
    fn endorsement_key(&mut self) -> Result<CertifiedEk, HardwareError>;

    /// The host IK that can be used under `policy` only: the one that is there or a new one.
    fn identity_key(&mut self, policy: &Digest32) -> Result<AttestationKey, HardwareError>;

    /// Seals a secret under the storage root key and `policy`.
    fn seal(&mut self, secret: &[u8], policy: &Digest32) -> Result<SealedBlob, HardwareError>;

    /// Opens what [`HardwareRoot::seal`] sealed.
    fn unseal(
        &mut self,
        blob: &SealedBlob,
        authorization: &Authorization<'_>,
    ) -> Result<Zeroizing<Vec<u8>>, HardwareError>;

    /// Opens a credential made for the endorsement key and the host IK.
    fn activate_credential(
        &mut self,
        credential: &CredentialBlob,
    ) -> Result<Zeroizing<Vec<u8>>, HardwareError>;

    /// A quote by the host IK over PCRs of one bank.
    fn quote(
        &mut self,
        qualifying_data: &Digest32,
        bank: HashAlgorithm,
        pcrs: PcrSelection,
        authorization: &Authorization<'_>,
    ) -> Result<SignedQuote, HardwareError>;

    /// Does ahead what the next quote needs besides the signature. Whoever calls this has nothing more
    /// urgent for the TPM. A root that can prepare nothing does nothing.
    fn prepare_quote(&mut self, _: &Authorization<'_>) -> Result<(), HardwareError> {
        Ok(())
    }

    /// A quote, as [`HardwareRoot::quote`] makes it, by what was prepared; `None` if nothing was, or
    /// nothing that holds any more.
    fn quote_as_prepared(
        &mut self,
        _qualifying_data: &Digest32,
        _pcrs: PcrSelection,
    ) -> Result<Option<SignedQuote>, HardwareError> {
        Ok(None)
    }

    /// Signs a message with the host IK; an ECDSA signature in DER (RFC 3279 §2.2.3).
    fn sign(
        &mut self,
        message: &[u8],
        authorization: &Authorization<'_>,
    ) -> Result<Vec<u8>, HardwareError>;
}

/// What satisfies the policy of host IK and root secret.
#[derive(Clone, Copy, Debug)]
pub struct Authorization<'a> {
    /// The operator's key.
    pub policy_key: &'a PolicyKeyPublic,
    /// The approval that fits the PCRs.
    pub approval: &'a Approval,
}

/// An endorsement key and its certificate. Neither is verified.
#[derive(Clone, Debug)]
pub struct CertifiedEk {
    /// The key, made anew from its template.
    pub key: EndorsementKey,
    /// The certificate in DER, as NV memory has it.
    pub certificate: Vec<u8>,
    /// Certificates above it, likewise; usually none.
    pub chain: Vec<u8>,
}

/// What a host shows of its keys.
#[derive(Clone, Debug)]
pub struct HostPublic {
    /// The endorsement key's certificate in DER, as NV memory has it.
    pub ek_certificate: Vec<u8>,
    /// Certificates above it, one after the other, as NV memory has them; usually none.
    pub ek_chain: Vec<u8>,
    /// The endorsement key.
    pub ek_public: EndorsementKey,
    /// The host's identity key.
    pub ik_public: AttestationKey,
    /// Name of the storage root key.
    pub srk_name: TpmName,
    /// The key that approves this host's PCR values.
    pub policy_key: PolicyKeyPublic,
}

/// A quote as the TPM made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedQuote {
    /// Marshalled `TPMS_ATTEST`.
    pub attest: Vec<u8>,
    /// Marshalled `TPMT_SIGNATURE`.
    pub signature: Vec<u8>,
    /// The PCRs that were quoted.
    pub pcrs: PcrValues,
}

/// A sealed object outside its TPM: the contents of `TPM2B_PUBLIC` and `TPM2B_PRIVATE`, without
/// their lengths. Worthless to every other TPM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedBlob {
    /// `TPMT_PUBLIC` of the sealed object.
    #[serde(with = "hexadecimal")]
    pub public: Vec<u8>,
    /// Its private part, encrypted by the TPM.
    #[serde(with = "hexadecimal")]
    pub private: Vec<u8>,
}
