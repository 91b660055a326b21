//! The key with which this VM signs data: made by its vRoT from a template of its own, and certified by the
//! vIK for data and nothing else.
//!
//! It is a primary key of the endorsement hierarchy, so the same vRoT makes the same key whenever it is asked,
//! and nothing is kept in the TPM.

use attestation::certification::CertificationError;
use attestation::{KeyStatement, data_key_qualifying_data};
use cert_chain::attestation_key::AttestationKeyError;
use cert_chain::public_area::PublicAreaError;
use cert_chain::{AttestationKey, DataKey, Digest32, PublicArea, template};
use tss_context::create_primary;
use tss_esapi::Context;
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::resource_handles::Hierarchy;

use crate::attester::esys::VIK;
use crate::attester::tss::{self, refused};
use crate::attester::{AttesterError, TpmAddress, signing};
use crate::data_counter::{self, CounterError};

/// The key, used over a connection to the TPM of its own.
pub struct TpmDataKey {
    context: Context,
    key: KeyHandle,
    public: DataKey,
    statement: KeyStatement,
}

/// Why the VM has no key for data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataKeyError {
    /// The TPM.
    #[error(transparent)]
    Tpm(#[from] AttesterError),
    /// The vIK cannot be read.
    #[error("the vRoT's identity key cannot be read")]
    Malformed(#[source] PublicAreaError),
    /// The key at the vIK's handle is none.
    #[error("the vRoT's identity key is no attestation key")]
    IdentityKey(#[source] AttestationKeyError),
    /// What the TPM made and certified is no key for data.
    #[error("what the vRoT made is no key for data")]
    NotForData(#[from] CertificationError),
}

impl TpmDataKey {
    /// Has the TPM make and certify the key.
    pub fn make(tpm: &TpmAddress) -> Result<Self, DataKeyError> {
        let mut context = tss::open(tpm)?;
        let vik = tss::load(&mut context, VIK)?;
        let template = template::data_key();
        let created = create_primary(&mut context, Hierarchy::Endorsement, &template);
        let key = created.map_err(refused("TPM2_CreatePrimary"))?.key_handle;
        let public = tss::public_of(&mut context, key)?;
        let domain = data_key_qualifying_data();
        let (attest, signature) = signing::certify(&mut context, key, vik, domain.as_bytes())?;
        let statement = KeyStatement {
            public: public.into(),
            attest: attest.into(),
            signature: signature.into(),
        };
        let vik = tss::public_of(&mut context, vik)?;
        let vik = PublicArea::parse(&vik).map_err(DataKeyError::Malformed)?;
        let vik = AttestationKey::try_from(vik).map_err(DataKeyError::IdentityKey)?;
        Ok(Self {
            public: statement.verify(&vik)?,
            context,
            key,
            statement,
        })
    }

    /// The key.
    pub fn public(&self) -> &DataKey {
        &self.public
    }

    /// What the vIK says about it.
    pub fn statement(&self) -> &KeyStatement {
        &self.statement
    }

    /// A number for what is signed next, which no other signature of this VM has or will have.
    pub fn next_number(&mut self) -> Result<u64, CounterError> {
        data_counter::next(&mut self.context)
    }

    /// Signs a SHA-256 value: two scalars of 32 bytes, as COSE has them (RFC 9053 §2.1).
    pub fn sign(&mut self, hash: &Digest32) -> Result<[u8; 64], DataKeyError> {
        let signature = signing::sign(&mut self.context, self.key, hash)?;
        Ok(signature.to_bytes().into())
    }
}

impl std::fmt::Debug for TpmDataKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TpmDataKey")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}
