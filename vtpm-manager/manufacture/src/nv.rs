//! Indices that everybody in the guest may read, and only the manager may write.

use cert_chain::layout::{MAX_INDEX, NvIndex};
use tpm_wire::{Operation, ResponseCode};
use tpm2_protocol::basic::{TpmHandle, TpmUint16};
use tpm2_protocol::data::{Tpm2bDigest, TpmAlgId, TpmaNv, TpmsNvPublic};

use super::authority::NvAuthority;
use super::command::Tpm;
use super::error::ManufactureError;
use super::policy::{Branch, PublicationPolicy};
use super::session::WriterSession;

/// Readable with any of three authorizations; written under the policy only; never deleted.
fn published() -> TpmaNv {
    TpmaNv::POLICYWRITE | TpmaNv::PPREAD | TpmaNv::OWNERREAD | TpmaNv::AUTHREAD | permanent()
}

/// Its authorization value is all that matters about it. Never written, so its name, which
/// would change with that, stays in the policies of the others.
fn writer() -> TpmaNv {
    TpmaNv::AUTHWRITE | TpmaNv::AUTHREAD | permanent()
}

/// Of the platform; with an authorization value that is either public or too long to guess; and
/// to be deleted under its policy only. That of [`NvIndex::WRITER`] cannot be satisfied: it is
/// empty and so lacks the command code that `TPM2_NV_UndefineSpaceSpecial` demands (TPM 2.0
/// Part 3 §31.5).
fn permanent() -> TpmaNv {
    TpmaNv::PLATFORMCREATE | TpmaNv::NO_DA | TpmaNv::POLICY_DELETE
}

/// Longest chunk of one `TPM2_NV_Read` or `TPM2_NV_Write` (`TPM_PT_NV_BUFFER_MAX` of libtpms).
pub(super) const MAX_CHUNK: usize = 1024;
/// Begins no structure in DER.
const NO_CERTIFICATE: [u8; 4] = [0xff; 4];
/// The smallest size that every TPM accepts.
const WRITER_SIZE: usize = 1;

/// Defines the index whose authorization value lets the others be written.
pub(super) fn define_writer(
    tpm: &mut Tpm<'_>,
    authority: &NvAuthority,
) -> Result<(), ManufactureError> {
    tpm.define(
        Some(authority),
        public(NvIndex::WRITER, writer(), &[], WRITER_SIZE)?,
    )
}

/// Defines an index of exactly the content's size, writes it and reads it back.
pub(super) fn publish(
    tpm: &mut Tpm<'_>,
    authority: &NvAuthority,
    index: NvIndex,
    content: &[u8],
) -> Result<(), ManufactureError> {
    reserve(tpm, index, content.len())?;
    write(tpm, authority, index, content)
}

/// Defines an index without content: reading it before its first write fails with
/// `TPM_RC_NV_UNINITIALIZED`.
pub(super) fn reserve(
    tpm: &mut Tpm<'_>,
    index: NvIndex,
    length: usize,
) -> Result<(), ManufactureError> {
    if length > MAX_INDEX {
        return Err(ManufactureError::TooLong {
            index,
            length,
            room: MAX_INDEX,
        });
    }
    let policy = policy()?;
    tpm.define(None, public(index, published(), &policy.digest(), length)?)
}

/// Makes sure that an index has this length and no content. That takes the platform's empty
/// authorization, as it is before a guest's firmware runs.
pub(super) fn empty(
    tpm: &mut Tpm<'_>,
    authority: &NvAuthority,
    index: NvIndex,
    length: usize,
) -> Result<(), ManufactureError> {
    match tpm.reserved(index) {
        Ok(reserved) if reserved == Some(length) => return Ok(()),
        Ok(_) => remove(tpm, authority, index)?,
        Err(ManufactureError::Tpm { code, .. })
            if code.without_position() == ResponseCode::HANDLE => {}
        Err(error) => return Err(error),
    }
    reserve(tpm, index, length)
}

/// Replaces the content of an index, which keeps its size. A shorter content is followed by
/// zeros, as makers of TPMs fill up their certificate indices.
pub(super) fn replace(
    tpm: &mut Tpm<'_>,
    authority: &NvAuthority,
    index: NvIndex,
    content: &[u8],
) -> Result<(), ManufactureError> {
    let room = tpm.size_of(index)?;
    let mut padded = content.to_vec();
    if padded.len() > room {
        return Err(ManufactureError::TooLong {
            index,
            length: content.len(),
            room,
        });
    }
    padded.resize(room, 0);
    write(tpm, authority, index, &padded)
}

/// Replaces an index by one of exactly the content's size. That takes the platform's empty
/// authorization, as it is before a guest's firmware runs.
pub(super) fn republish(
    tpm: &mut Tpm<'_>,
    authority: &NvAuthority,
    index: NvIndex,
    content: &[u8],
) -> Result<(), ManufactureError> {
    match tpm.size_of(index) {
        Ok(room) if room == content.len() => return write(tpm, authority, index, content),
        Ok(_) => remove(tpm, authority, index)?,
        // It was removed, and then the manager ended.
        Err(ManufactureError::Tpm { code, .. })
            if code.without_position() == ResponseCode::HANDLE => {}
        Err(error) => return Err(error),
    }
    publish(tpm, authority, index, content)
}

fn remove(
    tpm: &mut Tpm<'_>,
    authority: &NvAuthority,
    index: NvIndex,
) -> Result<(), ManufactureError> {
    let mut session = WriterSession::open(tpm, authority)?;
    let policy = policy()?;
    let removed = tpm
        .satisfy(session.handle(), authority, &policy, Branch::Remove)
        .and_then(|()| tpm.undefine(index, session.bound()));
    let closed = session.close(tpm);
    removed?;
    closed
}

/// Reads a whole index.
pub(super) fn read(tpm: &mut Tpm<'_>, index: NvIndex) -> Result<Vec<u8>, ManufactureError> {
    let size = tpm.size_of(index)?;
    let mut content = Vec::with_capacity(size);
    while content.len() < size {
        let length = (size - content.len()).min(MAX_CHUNK);
        let chunk = tpm.read(index, content.len(), length)?;
        if chunk.is_empty() {
            return Err(ManufactureError::ReadBack { index });
        }
        content.extend_from_slice(&chunk);
    }
    Ok(content)
}

fn write(
    tpm: &mut Tpm<'_>,
    authority: &NvAuthority,
    index: NvIndex,
    content: &[u8],
) -> Result<(), ManufactureError> {
    let mut session = WriterSession::open(tpm, authority)?;
    let written =
        write_in(tpm, &mut session, authority, index, content).and_then(|()| read(tpm, index));
    let closed = session.close(tpm);
    let written = written?;
    closed?;
    if written == content {
        Ok(())
    } else {
        Err(ManufactureError::ReadBack { index })
    }
}

/// Writes the beginning last: should the power fail in between, what is there is no certificate, and
/// no mixture of two.
fn write_in(
    tpm: &mut Tpm<'_>,
    session: &mut WriterSession,
    authority: &NvAuthority,
    index: NvIndex,
    content: &[u8],
) -> Result<(), ManufactureError> {
    let policy = policy()?;
    let mut chunks: Vec<(usize, &[u8])> = (0..)
        .step_by(MAX_CHUNK)
        .zip(content.chunks(MAX_CHUNK))
        .collect();
    if chunks.len() > 1 {
        chunks.push((0, &NO_CERTIFICATE));
    }
    for (offset, chunk) in chunks.into_iter().rev() {
        tpm.satisfy(session.handle(), authority, &policy, Branch::Write)?;
        tpm.write(index, offset, chunk, session.bound())?;
    }
    Ok(())
}

fn public(
    index: NvIndex,
    attributes: TpmaNv,
    policy: &[u8],
    size: usize,
) -> Result<TpmsNvPublic, ManufactureError> {
    let operation = Operation("TPM2_NV_DefineSpace");
    let malformed = || ManufactureError::Response { operation };
    Ok(TpmsNvPublic {
        nv_index: TpmHandle::new(index.handle()),
        name_alg: TpmAlgId::Sha256,
        attributes,
        auth_policy: Tpm2bDigest::try_from(policy).map_err(|_| malformed())?,
        data_size: u16::try_from(size)
            .map(TpmUint16::from)
            .map_err(|_| malformed())?,
    })
}

fn policy() -> Result<PublicationPolicy, ManufactureError> {
    let writer = public(NvIndex::WRITER, writer(), &[], WRITER_SIZE)?;
    PublicationPolicy::of(&writer)
}
