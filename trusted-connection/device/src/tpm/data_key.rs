//! The key with which a device signs data: made by its TPM from the template of such keys, and certified by
//! the identity key for data and nothing else.
//!
//! It is a primary key of the endorsement hierarchy, as the identity key: the same TPM makes the same one
//! whenever it is asked, also after `TPM2_Clear`, and nothing is kept on the disk.

use attestation::quote::{canonical_signature, fixed_signature};
use attestation::{KeyStatement, data_key_qualifying_data};
use cert_chain::{DataKey, Digest32, template};
use tpm_wire::Operation;

use super::channel::Channel;
use super::error::TpmError;
use super::wire::{Command, Reader};
use super::{DeviceTpm, NULL, Primary, create_primary, flush};

/// The key, loaded.
pub(super) struct LoadedDataKey {
    pub(super) handle: u32,
    public: DataKey,
    statement: KeyStatement,
}

const CERTIFY: Operation = Operation("TPM2_Certify");
const SIGN: Operation = Operation("TPM2_Sign");

const CC_CERTIFY: u32 = 0x0000_0148;
const CC_SIGN: u32 = 0x0000_015d;
/// `TPM_ST_HASHCHECK`: a ticket that says nothing, of the null hierarchy.
const HASHCHECK: u16 = 0x8024;
const RH_NULL: u32 = 0x4000_0007;

impl DeviceTpm {
    /// The device's key for data, which stays loaded from now on.
    pub fn data_key(&mut self) -> Result<&DataKey, TpmError> {
        Ok(&self.loaded_data_key()?.public)
    }

    /// What the identity key says about it.
    pub fn data_key_statement(&mut self) -> Result<KeyStatement, TpmError> {
        Ok(self.loaded_data_key()?.statement.clone())
    }

    /// Signs a SHA-256 value with it: two scalars of 32 bytes, as COSE has them (RFC 9053 §2.1).
    pub fn sign_data(&mut self, hash: &Digest32) -> Result<[u8; 64], TpmError> {
        let key = self.loaded_data_key()?.handle;
        let command = Command::new(CC_SIGN)
            .authorized(key)
            .sized(hash.as_bytes())
            .u16(NULL)
            // The TPM did not make the hash itself, and need not have: the key is not restricted.
            .u16(HASHCHECK)
            .u32(RH_NULL)
            .sized(&[]);
        let response = self.channel.run(SIGN, &command, 0)?;
        canonical_signature(&response)
            .and_then(|signature| fixed_signature(&signature))
            .map_err(TpmError::Signature)
    }

    fn loaded_data_key(&mut self) -> Result<&LoadedDataKey, TpmError> {
        let loaded = match self.data_key.take() {
            Some(loaded) => loaded,
            None => {
                let made = create_primary(&mut self.channel, &template::data_key())?;
                let handle = made.handle;
                match self.certified(made) {
                    Ok(loaded) => loaded,
                    Err(error) => {
                        flush(&mut self.channel, handle)?;
                        return Err(error);
                    }
                }
            }
        };
        Ok(self.data_key.insert(loaded))
    }

    fn certified(&mut self, made: Primary) -> Result<LoadedDataKey, TpmError> {
        let statement = certify(&mut self.channel, &made, self.ik.handle)?;
        Ok(LoadedDataKey {
            handle: made.handle,
            public: statement.verify(&self.key).map_err(TpmError::DataKey)?,
            statement,
        })
    }
}

fn certify(channel: &mut Channel, key: &Primary, ik: u32) -> Result<KeyStatement, TpmError> {
    let command = Command::new(CC_CERTIFY)
        .authorized(key.handle)
        .authorized(ik)
        .sized(data_key_qualifying_data().as_bytes())
        .u16(NULL);
    let response = channel.run(CERTIFY, &command, 0)?;
    let mut reader = Reader::new(&response);
    let malformed = TpmError::Response { operation: CERTIFY };
    let attest = reader.sized().ok_or(malformed)?;
    let signature = canonical_signature(reader.rest()).map_err(TpmError::Signature)?;
    Ok(KeyStatement {
        public: key.public.as_bytes().to_vec().into(),
        attest: attest.to_vec().into(),
        signature: signature.into(),
    })
}
