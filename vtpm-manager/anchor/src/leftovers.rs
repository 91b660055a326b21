//! Sessions and objects that a killed manager left in a TPM without a resource manager, which has
//! three slots of each.
//!
//! The kernel's resource manager (`/dev/tpmrm0`) flushes them when its client ends. A software TPM
//! on a socket has no resource manager.

use std::io;

use tpm_wire::{NO_SESSIONS, Response, frame};

/// Flushes all sessions and transient objects. `exchange` sends a command and brings the response.
/// Only for a TPM that has no other user.
pub(super) fn flush(mut exchange: impl FnMut(&[u8]) -> io::Result<Vec<u8>>) -> io::Result<()> {
    for kind in [LOADED_SESSIONS, SAVED_SESSIONS, TRANSIENT_OBJECTS] {
        for handle in handles(&exchange(&get_handles(kind))?) {
            tracing::debug!(
                handle = format_args!("0x{handle:08x}"),
                "flushing what was left"
            );
            exchange(&flush_context(handle))?;
        }
    }
    Ok(())
}

/// The first handle of each kind (TPM 2.0 Part 2 §7.3).
const LOADED_SESSIONS: u32 = 0x0200_0000;
const SAVED_SESSIONS: u32 = 0x0300_0000;
const TRANSIENT_OBJECTS: u32 = 0x8000_0000;
/// More than any software TPM has slots.
const MOST: u32 = 64;
/// More-data flag, capability and number of handles, at the beginning of a response's body.
const BEFORE_HANDLES: usize = 1 + 4 + 4;

/// `TPM2_GetCapability(TPM_CAP_HANDLES)`
fn get_handles(first: u32) -> Vec<u8> {
    const CODE: u32 = 0x17a;
    const HANDLES: u32 = 1;
    command(CODE, &[HANDLES, first, MOST])
}

/// `TPM2_FlushContext`
fn flush_context(handle: u32) -> Vec<u8> {
    const CODE: u32 = 0x165;
    command(CODE, &[handle])
}

fn command(code: u32, words: &[u32]) -> Vec<u8> {
    let words: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    frame(NO_SESSIONS, code, &words)
}

/// The handles in a response; none in one that says that the TPM is not started.
fn handles(response: &[u8]) -> Vec<u32> {
    let response = Response::parse(response).filter(|response| response.code().is_success());
    let list = response.and_then(|response| response.body().get(BEFORE_HANDLES..));
    let (handles, _) = list.unwrap_or_default().as_chunks::<4>();
    handles.iter().copied().map(u32::from_be_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tpm_that_is_not_started_has_nothing_to_flush() -> io::Result<()> {
        let mut commands = 0;
        flush(|_| {
            commands += 1;
            Ok(vec![0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0])
        })?;
        assert_eq!(commands, 3);
        Ok(())
    }
}
