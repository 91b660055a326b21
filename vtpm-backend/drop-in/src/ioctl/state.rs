//! Parts of a TPM's state, from the control channel to files and back.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use swtpm_state::{MAX_STATE, StateKind};

use super::channel::Channel;
use super::is_plain_or_absent;

/// `PTM_STATE_FLAG_DECRYPTED`, `PTM_STATE_FLAG_ENCRYPTED`
const DECRYPTED: u32 = 1;
const ENCRYPTED: u32 = 2;

/// Takes a part of the state from the TPM. There may be nothing of it.
pub(super) fn load(channel: &mut Channel, kind: StateKind) -> Result<Vec<u8>> {
    let mut blob = Vec::new();
    loop {
        let offset = u32::try_from(blob.len())?;
        let words = [DECRYPTED, kind as u32, offset];
        let body: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        channel.send(12, &body)?;
        let head = channel.receive(16)?;
        let mut words = head.chunks_exact(4).map(|word| {
            let word = word.try_into().map(u32::from_be_bytes);
            word.unwrap_or(u32::MAX)
        });
        let mut word = || words.next().unwrap_or(u32::MAX);
        let (result, _flags, total, length) = (word(), word(), word(), word());
        ensure!(
            result == 0 || result == NONE_THERE,
            "TPM result from PTM_GET_STATEBLOB: 0x{result:x}"
        );
        let (total, length) = (usize::try_from(total)?, usize::try_from(length)?);
        ensure!(
            total <= MAX_STATE && blob.len() + length <= total,
            "the TPM gives a state of {total} bytes in pieces that make no whole"
        );
        blob.extend(channel.receive(length)?);
        if blob.len() == total || length == 0 {
            return Ok(blob);
        }
    }
}

/// `TPM_RETRY`: there is no such part.
const NONE_THERE: u32 = 0x800;

/// Gives a part of the state to the TPM.
pub(super) fn save(channel: &mut Channel, kind: StateKind, blob: &[u8]) -> Result<()> {
    // swtpm sets this flag in a state's header as well.
    const ENCRYPTED_IN_HEADER: u16 = 1;
    let flags = blob.get(4..6).and_then(|flags| flags.try_into().ok());
    let is_encrypted = flags.map(u16::from_be_bytes).unwrap_or_default() & ENCRYPTED_IN_HEADER != 0;
    let flags = if is_encrypted { ENCRYPTED } else { 0 };
    let length = u32::try_from(blob.len())?;
    let words = [flags, kind as u32, length];
    let head: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    channel.order("PTM_SET_STATEBLOB", 13, &[&head, blob].concat())
}

/// Reads a file with a part of the state.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let shown = path.display();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(O_NONBLOCK)
        .open(path)
        .with_context(|| format!("{shown} cannot be opened"))?;
    let mut blob = Vec::new();
    let limit = u64::try_from(MAX_STATE + 1)?;
    file.take(limit)
        .read_to_end(&mut blob)
        .with_context(|| format!("{shown} cannot be read"))?;
    ensure!(
        blob.len() <= MAX_STATE,
        "{shown} has more than {MAX_STATE} bytes: it is no state of a TPM"
    );
    Ok(blob)
}

/// Writes one, for this user alone: there may be keys in it.
pub(super) fn write(path: &Path, blob: &[u8]) -> Result<()> {
    let shown = path.display();
    ensure!(
        is_plain_or_absent(path),
        "{shown} is no plain file: the state is not written there"
    );
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(O_NOFOLLOW)
        .open(path)
        .and_then(|mut file| file.write_all(blob))
        .with_context(|| format!("{shown} cannot be written"))
}
