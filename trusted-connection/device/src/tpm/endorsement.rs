//! The endorsement key as its maker had it made, its certificates, and what it opens.

use cert_chain::ek_chain::MAX_EK_CHAIN;
use cert_chain::ek_template::{EK_CHAIN, EK_PLACES, EkPlace, MOST_CHAIN_INDICES};
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
        let place = ek_place(channel)?;
        let certificate = read_index(channel, place.certificate)?;
        let template = ek_template(channel, place)?;
        let made = create_primary(channel, &template)?;
        flush(channel, made.handle)?;
        Ok(CertifiedEk {
            key: EndorsementKey::try_from(made.public).map_err(TpmError::EndorsementKey)?,
            certificate,
            chain: ek_chain(channel),
        })
    }

    /// `TPM2_ActivateCredential` for that key and the identity key: the secret in the credential.
    pub fn activate_credential(
        &mut self,
        credential: &CredentialBlob,
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let ik = self.ik.handle;
        let channel = &mut self.channel;
        let place = ek_place(channel)?;
        let template = ek_template(channel, place)?;
        let ek = create_primary(channel, &template)?;
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

/// The first EK that has a certificate.
fn ek_place(channel: &mut Channel) -> Result<EkPlace, TpmError> {
    for place in EK_PLACES {
        if exists(channel, place.certificate)? {
            return Ok(place);
        }
    }
    Err(TpmError::NoEkCertificate)
}

/// The template by which the TPM's maker had the key made: the TCG's, unless NV memory has another one,
/// with what the maker put there to make the key another one.
fn ek_template(channel: &mut Channel, place: EkPlace) -> Result<Vec<u8>, TpmError> {
    let template = if exists(channel, place.template)? {
        read_index(channel, place.template)?
    } else {
        place.default_template.to_bytes()
    };
    if !exists(channel, place.nonce)? {
        return Ok(template);
    }
    let nonce = read_index(channel, place.nonce)?;
    Ok(with_nonce(template, &nonce))
}

/// Puts what the maker chose into the template's `unique` field, which is its end: at the start of the
/// modulus, or of the first coordinate, with zeros behind it.
fn with_nonce(mut template: Vec<u8>, nonce: &[u8]) -> Vec<u8> {
    /// `unique` of an RSA key of 2,048 bits, and of a P-256 key: lengths and zeros.
    const UNIQUE: [(&[u8], usize); 2] = [(&[0x01, 0x00], 256), (&[0x00, 0x20], 2 * 32 + 2)];
    for (length, content) in UNIQUE {
        let Some(start) = template.len().checked_sub(content) else {
            continue;
        };
        let before = template.get(start.saturating_sub(2)..start);
        if before == Some(length)
            && let Some(place) = template.get_mut(start..start + nonce.len())
        {
            place.copy_from_slice(nonce);
            break;
        }
    }
    template
}

/// The certificates that the TPM has for the path from the EK's to the maker's. A TPM whose chain cannot
/// be read may do without.
fn ek_chain(channel: &mut Channel) -> Vec<u8> {
    let mut read = || {
        let mut chain = Vec::new();
        for index in handles_from(channel, EK_CHAIN.0, MOST_CHAIN_INDICES)? {
            if index <= EK_CHAIN.1 {
                chain.extend(read_index(channel, index)?);
            }
        }
        Ok::<_, TpmError>(chain)
    };
    match read() {
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

/// Whether the TPM has this NV index.
pub(super) fn exists(channel: &mut Channel, index: u32) -> Result<bool, TpmError> {
    Ok(handles_from(channel, index, 1)?.contains(&index))
}

/// At most `count` handles of NV indices that exist, from `first` on.
fn handles_from(channel: &mut Channel, first: u32, count: u32) -> Result<Vec<u32>, TpmError> {
    let command = Command::new(CC_GET_CAPABILITY)
        .u32(CAP_HANDLES)
        .u32(first)
        .u32(count);
    let response = channel.run(GET_CAPABILITY, &command, 0)?;
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

/// Makers allow the owner to read, or the index's own (empty) authorization, or both.
fn read_index(channel: &mut Channel, index: u32) -> Result<Vec<u8>, TpmError> {
    let size = index_size(channel, index)?;
    read_by(channel, OWNER, index, size).or_else(|_| read_by(channel, index, index, size))
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use cert_chain::ek_template::EkTemplate;

    use super::*;

    #[test]
    fn a_maker_s_nonce_goes_to_the_start_of_unique_and_nowhere_else() {
        for (template, unique) in [(EkTemplate::L1, 256), (EkTemplate::L2, 2 * 32 + 2)] {
            let bytes = template.to_bytes();
            let start = bytes.len() - unique;
            let changed = with_nonce(bytes.clone(), &[7; 20]);
            assert_eq!(changed.len(), bytes.len());
            assert_eq!(changed.get(start..start + 20).unwrap(), [7; 20]);
            assert_eq!(changed.get(..start), bytes.get(..start));
            assert_eq!(changed.get(start + 20..), bytes.get(start + 20..));
            // More than there is room for.
            assert_eq!(with_nonce(bytes.clone(), &[7; 300]), bytes);
        }
        assert_eq!(with_nonce(vec![1, 2], &[7]), [1, 2]);
    }
}
