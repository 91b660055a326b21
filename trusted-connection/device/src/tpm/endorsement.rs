//! The endorsement key as its maker had it made, its certificates, and what it opens.

use cert_chain::ek_memory::EkMemory;
use cert_chain::{CredentialBlob, EndorsementKey};
use tpm_wire::Operation;
use zeroize::Zeroizing;

use super::channel::Channel;
use super::error::TpmError;
use super::wire::{Command, Reader};
use super::{
    CC_GET_CAPABILITY, DeviceTpm, ENDORSEMENT, GET_CAPABILITY, OWNER, create_primary, flush,
};

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

/// What every TPM reads at a time (`TPM_PT_NV_BUFFER_MAX` is 512 at least).
const CHUNK: usize = 512;
/// More than any certificate in NV memory has.
const MAX_INDEX: usize = 16 * 1024;

const NV_READ: Operation = Operation("TPM2_NV_Read");
const NV_READ_PUBLIC: Operation = Operation("TPM2_NV_ReadPublic");
const START: Operation = Operation("TPM2_StartAuthSession");
const SECRET: Operation = Operation("TPM2_PolicySecret");
const ACTIVATE: Operation = Operation("TPM2_ActivateCredential");

const CC_ACTIVATE_CREDENTIAL: u32 = 0x0000_0147;
const CC_NV_READ: u32 = 0x0000_014e;
const CC_POLICY_SECRET: u32 = 0x0000_0151;
const CC_NV_READ_PUBLIC: u32 = 0x0000_0169;
const CC_START_AUTH_SESSION: u32 = 0x0000_0176;
const CAP_HANDLES: u32 = 0x0000_0001;
const RH_NULL: u32 = 0x4000_0007;
const POLICY_SESSION: u8 = 0x01;
const ALG_NULL: u16 = 0x0010;
const SHA256: u16 = 0x000b;

impl DeviceTpm {
    /// The endorsement key whose certificate the TPM has.
    pub fn endorsement_key(&mut self) -> Result<CertifiedEk, TpmError> {
        let channel = &mut self.channel;
        let makers = channel.makers_ek()?.ok_or(TpmError::NoEkCertificate)?;
        let made = create_primary(channel, &makers.template)?;
        flush(channel, made.handle)?;
        let chain = channel.ek_chain().unwrap_or_else(|error| {
            tracing::warn!(%error, "an issuer is not shown the TPM's EK certificate chain");
            Vec::new()
        });
        Ok(CertifiedEk {
            key: EndorsementKey::try_from(made.public).map_err(TpmError::EndorsementKey)?,
            certificate: makers.certificate,
            chain,
        })
    }

    /// `TPM2_ActivateCredential` for that key and the identity key: the secret in the credential.
    pub fn activate_credential(
        &mut self,
        credential: &CredentialBlob,
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let ik = self.ik.handle;
        let channel = &mut self.channel;
        let makers = channel.makers_ek()?.ok_or(TpmError::NoEkCertificate)?;
        let ek = create_primary(channel, &makers.template)?;
        let opened = open_credential(channel, ik, ek.handle, credential);
        let flushed = flush(channel, ek.handle);
        let opened = opened?;
        flushed?;
        Ok(opened)
    }
}

fn open_credential(
    channel: &mut Channel,
    ik: u32,
    ek: u32,
    credential: &CredentialBlob,
) -> Result<Zeroizing<Vec<u8>>, TpmError> {
    let session = policy_session(channel)?;
    let opened = satisfy_ek_policy(channel, session).and_then(|()| {
        let command = Command::new(CC_ACTIVATE_CREDENTIAL)
            .authorized(ik)
            .authorized_by(ek, session)
            // Each is a TPM2B already.
            .bytes(checked(&credential.id_object)?)
            .bytes(checked(&credential.encrypted_secret)?);
        let response = Zeroizing::new(channel.run(ACTIVATE, &command, 0)?);
        let secret = Reader::new(&response).sized().map(<[u8]>::to_vec);
        secret.map(Zeroizing::new).ok_or(TpmError::Response {
            operation: ACTIVATE,
        })
    });
    let flushed = flush(channel, session);
    let opened = opened?;
    flushed?;
    Ok(opened)
}

/// A TPM2B that is one.
fn checked(sized: &[u8]) -> Result<&[u8], TpmError> {
    let mut reader = Reader::new(sized);
    if reader.sized().is_some() && reader.rest().is_empty() {
        Ok(sized)
    } else {
        Err(TpmError::Credential)
    }
}

/// A policy session without salt: the policy is no secret, and what it protects is.
fn policy_session(channel: &mut Channel) -> Result<u32, TpmError> {
    let command = Command::new(CC_START_AUTH_SESSION)
        .handle(RH_NULL)
        .handle(RH_NULL)
        // The TPM wants a nonce, and no HMAC depends on this one.
        .sized(&[0; 16])
        .sized(&[])
        .u8(POLICY_SESSION)
        .u16(ALG_NULL)
        .u16(SHA256);
    let response = channel.run(START, &command, 1)?;
    Reader::new(&response)
        .u32()
        .ok_or(TpmError::Response { operation: START })
}

/// PolicyA of the EK templates (TCG EK Credential Profile 2.5 §B.6.2).
fn satisfy_ek_policy(channel: &mut Channel, session: u32) -> Result<(), TpmError> {
    let command = Command::new(CC_POLICY_SECRET)
        .authorized(ENDORSEMENT)
        .handle(session)
        .sized(&[])
        .sized(&[])
        .sized(&[])
        .u32(0);
    channel.run(SECRET, &command, 0).map(drop)
}

impl EkMemory for Channel {
    type Error = TpmError;

    fn indices_from(&mut self, first: u32, count: u32) -> Result<Vec<u32>, TpmError> {
        let command = Command::new(CC_GET_CAPABILITY)
            .u32(CAP_HANDLES)
            .u32(first)
            .u32(count);
        let response = self.run(GET_CAPABILITY, &command, 0)?;
        let mut reader = Reader::new(&response);
        let mut read = || {
            let _more = reader.u8()?;
            (reader.u32()? == CAP_HANDLES).then_some(())?;
            let found = reader.u32().filter(|found| *found <= count)?;
            (0..found).map(|_| reader.u32()).collect::<Option<Vec<_>>>()
        };
        read().ok_or(TpmError::Response {
            operation: GET_CAPABILITY,
        })
    }

    fn read_index(&mut self, index: u32) -> Result<Vec<u8>, TpmError> {
        let size = index_size(self, index)?;
        read_by(self, OWNER, index, size).or_else(|_| read_by(self, index, index, size))
    }
}

fn index_size(channel: &mut Channel, index: u32) -> Result<usize, TpmError> {
    let command = Command::new(CC_NV_READ_PUBLIC).handle(index);
    let response = channel.run(NV_READ_PUBLIC, &command, 0)?;
    // TPMS_NV_PUBLIC ends with the size of the data.
    let area = Reader::new(&response).sized();
    let size = area.and_then(|area| area.last_chunk::<2>());
    size.map(|size| usize::from(u16::from_be_bytes(*size)))
        .filter(|size| *size <= MAX_INDEX)
        .ok_or(TpmError::Response {
            operation: NV_READ_PUBLIC,
        })
}

fn read_by(
    channel: &mut Channel,
    authority: u32,
    index: u32,
    size: usize,
) -> Result<Vec<u8>, TpmError> {
    let mut contents = Vec::new();
    while contents.len() < size {
        let length = (size - contents.len()).min(CHUNK);
        let [length, offset] =
            [length, contents.len()].map(|number| u16::try_from(number).unwrap_or(u16::MAX));
        let command = Command::new(CC_NV_READ)
            .authorized(authority)
            .handle(index)
            .u16(length)
            .u16(offset);
        let response = channel.run(NV_READ, &command, 0)?;
        let chunk = Reader::new(&response)
            .sized()
            .filter(|chunk| chunk.len() == usize::from(length));
        contents.extend(chunk.ok_or(TpmError::Response { operation: NV_READ })?);
    }
    Ok(contents)
}
