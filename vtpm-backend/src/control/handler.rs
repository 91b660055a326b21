//! What each request on the control channel does.

use zeroize::Zeroizing;

use super::request::{Blob, ENCRYPTED, Request};
use super::state_export::{Package, StateExport};
use crate::engine::{Engine, EngineError, HashStep, StateKind};

/// A vRoT as the control channel sees it.
pub struct Vrot<'e, E> {
    /// The TPM.
    pub engine: &'e mut E,
    /// The locality of the commands on the data channel.
    pub locality: &'e mut u8,
    /// Packs and unpacks the state that the VMM carries.
    pub state_export: &'e mut dyn StateExport,
}

/// What follows from a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// These bytes, in one write.
    Answer(Vec<u8>),
    /// These bytes; then the VMM is done with the TPM.
    AnswerAndEnd(Vec<u8>),
    /// The descriptor that came along carries the TPM's commands from now on.
    TakeDataFd,
}

/// `TPM_SUCCESS` and others of `TPM_RESULT`.
const SUCCESS: u32 = 0;
const BAD_PARAMETER: u32 = 0x03;
const FAIL: u32 = 0x09;
/// `TPM_BAD_ORDINAL`: there is no such request.
const BAD_ORDINAL: u32 = 0x0a;
/// `TPM_BAD_LOCALITY`
const BAD_LOCALITY: u32 = 0x3d;
/// `TPM_RETRY`, which VMMs take as "there is none": not an error.
const NONE_THERE: u32 = 0x800;

/// The requests that are served: bits 0 to 14, from INIT to GET_INFO, and 16, LOCK_STORAGE. Not 15:
/// commands come without a header of their own.
/// The lower half of 64 bits; the upper must be zero, as some VMMs take it for a result.
const CAPABILITIES: u32 = 0x0001_7fff;

/// Carries out a request.
pub fn handle<E: Engine>(vrot: &mut Vrot<'_, E>, request: Request) -> Reply {
    let engine = &mut *vrot.engine;
    Reply::Answer(match request {
        Request::GetCapability => words([0, CAPABILITIES]),
        Request::Init { delete_volatile } => {
            *vrot.locality = 0;
            let started = engine.power_on();
            // VMMs say so when they brought volatile state: it is used up by now.
            if delete_volatile {
                engine.delete_volatile();
            }
            result(started)
        }
        Request::Shutdown => {
            engine.power_off();
            return Reply::AnswerAndEnd(words([SUCCESS]));
        }
        // Older VMMs wait for the whole reply even when the result is an error.
        Request::GetEstablished => {
            let established = engine.established().unwrap_or(false);
            [words([SUCCESS]), vec![u8::from(established), 0, 0, 0]].concat()
        }
        Request::SetLocality(locality) if locality <= 4 => {
            *vrot.locality = locality;
            words([SUCCESS])
        }
        Request::SetLocality(_) => words([BAD_LOCALITY]),
        Request::HashStart => result(engine.hash(HashStep::Start)),
        Request::HashData(data) => result(engine.hash(HashStep::Data(&data))),
        Request::HashEnd => result(engine.hash(HashStep::End)),
        Request::Cancel => {
            engine.canceller()();
            words([SUCCESS])
        }
        // The server decides afterwards where it is kept.
        Request::StoreVolatile if engine.is_on() => words([SUCCESS]),
        Request::StoreVolatile => result(Err(EngineError::IsOff)),
        Request::ResetEstablished(locality) if locality <= 4 => {
            result(engine.reset_established(locality))
        }
        Request::ResetEstablished(_) => words([BAD_LOCALITY]),
        Request::GetStateBlob {
            kind,
            decrypted,
            offset,
        } => give_state(vrot, kind, decrypted, offset),
        Request::SetStateBlob {
            kind: Some(kind),
            encrypted,
            blob: Blob(blob),
        } => {
            // An empty blob says that there is nothing of this kind.
            if !blob.is_empty() {
                take_state(vrot, kind, blob, encrypted)
            } else if kind == StateKind::Volatile && !engine.is_on() {
                engine.delete_volatile();
                words([SUCCESS])
            } else {
                words([SUCCESS])
            }
        }
        Request::SetStateBlob { kind: None, .. } => words([BAD_PARAMETER]),
        // Comes before the first INIT, too.
        Request::Stop => {
            engine.power_off();
            words([SUCCESS])
        }
        Request::GetConfig => words([SUCCESS, vrot.state_export.keys_in_use()]),
        Request::SetDataFd => return Reply::TakeDataFd,
        Request::SetBufferSize { wanted } => {
            let wanted = (wanted != 0 && !engine.is_on()).then_some(wanted);
            let size = engine.buffer_size(wanted);
            words([SUCCESS, size.current, size.minimum, size.maximum])
        }
        Request::GetInfo { flags, offset } => give_info(engine, flags, offset),
        // The state is always locked: no other process uses it, whatever the VMM does.
        Request::LockStorage => words([SUCCESS]),
        Request::Unknown(code) => {
            tracing::warn!(code, "a request that is none on the control channel");
            words([BAD_ORDINAL])
        }
    })
}

/// Of a description, in one reply: what swtpm's clients have room for.
const INFO_CHUNK: usize = 3 * 1024;

/// A piece of the TPM's description of itself, a C string.
fn give_info<E: Engine>(engine: &E, flags: u64, offset: u32) -> Vec<u8> {
    let mut info = match engine.info(flags) {
        Ok(info) => info.into_bytes(),
        Err(error) => return words([error.result()]),
    };
    let rest = usize::try_from(offset)
        .ok()
        .filter(|offset| *offset < info.len());
    info.push(0);
    let rest = rest.and_then(|offset| info.get(offset..));
    match (rest, u32::try_from(info.len())) {
        (Some(rest), Ok(total)) => {
            let chunk = rest.get(..INFO_CHUNK).unwrap_or(rest);
            let length = u32::try_from(chunk.len()).unwrap_or(total);
            [words([SUCCESS, total, length]), chunk.to_vec()].concat()
        }
        _ => words([BAD_PARAMETER]),
    }
}

/// The whole blob in one reply: VMMs do not ask for the rest.
fn give_state<E: Engine>(
    vrot: &mut Vrot<'_, E>,
    kind: Option<StateKind>,
    decrypted: bool,
    offset: u32,
) -> Vec<u8> {
    let engine = &mut *vrot.engine;
    // A number that names no part of the state: there is no such blob.
    let Some(kind) = kind else {
        return words([NONE_THERE, 0, 0, 0]);
    };
    let state = match engine.state(kind) {
        Ok(Some(state)) => state,
        Ok(None) => return words([NONE_THERE, 0, 0, 0]),
        Err(error) => return words([error.result(), 0, 0, 0]),
    };
    let packed = permanent(engine)
        .map_err(EngineError::result)
        .and_then(|permanent| {
            let packed = vrot.state_export.pack(kind, state, &permanent, decrypted);
            packed.map_err(|error| {
                tracing::error!(%error, ?kind, "the VMM gets no state");
                error.result()
            })
        });
    let (flags, state) = match packed {
        Ok(Package::Portable(blob)) => {
            let flags = if blob.is_encrypted { ENCRYPTED } else { 0 };
            (flags, blob.bytes)
        }
        Ok(Package::Sealed(state)) => {
            // The permanent state stays here, and is to be the one that this goes with.
            engine.give_away();
            (ENCRYPTED, Zeroizing::new(state))
        }
        Err(code) => return words([code, 0, 0, 0]),
    };
    let rest = usize::try_from(offset)
        .ok()
        .and_then(|offset| state.get(offset..));
    match (rest, u32::try_from(state.len())) {
        (Some(rest), Ok(total)) => {
            let length = u32::try_from(rest.len()).unwrap_or(total);
            [words([SUCCESS, flags, total, length]), rest.to_vec()].concat()
        }
        _ => words([FAIL, 0, 0, 0]),
    }
}

fn take_state<E: Engine>(
    vrot: &mut Vrot<'_, E>,
    kind: StateKind,
    carried: Vec<u8>,
    encrypted: bool,
) -> Vec<u8> {
    if vrot.engine.is_on() {
        return result(Err(EngineError::IsOn));
    }
    match vrot.state_export.unpack(kind, carried, encrypted) {
        Ok(Some(state)) => result(vrot.engine.set_state(kind, &state)),
        Ok(None) => words([SUCCESS]),
        Err(error) => {
            tracing::error!(%error, ?kind, "the state that the VMM brought is refused");
            words([error.result()])
        }
    }
}

fn permanent(engine: &mut impl Engine) -> Result<Zeroizing<Vec<u8>>, EngineError> {
    let state = engine.state(StateKind::Permanent)?;
    Ok(Zeroizing::new(state.unwrap_or_default()))
}

fn result(outcome: Result<(), EngineError>) -> Vec<u8> {
    match outcome {
        Ok(()) => words([SUCCESS]),
        Err(error) => {
            tracing::warn!(%error, "a request on the control channel failed");
            words([error.result()])
        }
    }
}

fn words<const N: usize>(words: [u32; N]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use swtpm_state::{BlobKeys, write_blob};

    use crate::control::SwtpmExport;
    use crate::engine::fake::FakeEngine;

    fn after(engine: &mut FakeEngine, request: Request) -> Reply {
        let mut locality = 0;
        handle(
            &mut Vrot {
                engine,
                locality: &mut locality,
                state_export: &mut SwtpmExport::default(),
            },
            request,
        )
    }

    fn answer(engine: &mut FakeEngine, request: Request) -> Vec<u8> {
        match after(engine, request) {
            Reply::Answer(answer) | Reply::AnswerAndEnd(answer) => answer,
            Reply::TakeDataFd => Vec::new(),
        }
    }

    #[test]
    fn every_capability_that_vmms_demand_is_there() {
        let answer = answer(&mut FakeEngine::default(), Request::GetCapability);
        assert_eq!(answer.get(..4), Some([0; 4].as_slice()), "upper half");
        assert_eq!(CAPABILITIES & 0x348f, 0x348f);
    }

    #[test]
    fn a_description_comes_in_pieces_that_make_a_whole() {
        let mut engine = FakeEngine {
            info: "x".repeat(2 * INFO_CHUNK),
            ..FakeEngine::default()
        };
        let total = u32::try_from(2 * INFO_CHUNK + 1).unwrap_or(0);
        let mut whole = Vec::new();
        while u32::try_from(whole.len()).is_ok_and(|offset| offset < total - 1) {
            let offset = u32::try_from(whole.len()).unwrap_or(0);
            let piece = answer(&mut engine, Request::GetInfo { flags: 1, offset });
            let (head, text) = piece.split_at_checked(12).unwrap_or_default();
            let length = u32::try_from(text.len()).unwrap_or(0);
            assert_eq!(head, words([SUCCESS, total, length]));
            assert!(!text.is_empty() && text.len() <= INFO_CHUNK);
            whole.extend_from_slice(text);
        }
        // The end of the string came with the last piece, or has none of its own.
        assert_eq!(
            whole.strip_suffix(&[0]).unwrap_or(&whole),
            engine.info.as_bytes()
        );
        for offset in [total - 1, total, u32::MAX] {
            let refused = answer(&mut engine, Request::GetInfo { flags: 1, offset });
            assert_eq!(refused, words([BAD_PARAMETER]));
        }
    }

    #[test]
    fn a_tpm_can_be_stopped_before_it_was_started_and_started_twice() {
        let mut engine = FakeEngine::default();
        assert_eq!(answer(&mut engine, Request::Stop), [0; 4]);
        let init = Request::Init {
            delete_volatile: false,
        };
        assert_eq!(answer(&mut engine, init.clone()), [0; 4]);
        assert_eq!(answer(&mut engine, init), [0; 4]);
    }

    #[test]
    fn replies_with_a_body_have_their_whole_length_even_in_failure() {
        let mut engine = FakeEngine::default();
        assert_eq!(answer(&mut engine, Request::GetEstablished).len(), 8);
        let blob = Request::GetStateBlob {
            kind: Some(StateKind::SaveState),
            decrypted: true,
            offset: 0,
        };
        assert_eq!(
            answer(&mut engine, blob),
            [words([NONE_THERE]), vec![0; 12]].concat()
        );
        let unknown = Request::GetStateBlob {
            kind: None,
            decrypted: true,
            offset: 0,
        };
        assert_eq!(answer(&mut engine, unknown).len(), 16);
        let size = Request::SetBufferSize { wanted: 0 };
        assert_eq!(answer(&mut engine, size).len(), 16);
    }

    #[test]
    fn a_blob_comes_whole_and_goes_back_in() {
        let mut engine = FakeEngine {
            permanent: Some(vec![1, 2, 3]),
            ..FakeEngine::default()
        };
        let get = Request::GetStateBlob {
            kind: Some(StateKind::Permanent),
            decrypted: true,
            offset: 0,
        };
        let blob = |state| write_blob(state, BlobKeys::default(), true).map(|blob| blob.bytes);
        let expected = blob(&[1, 2, 3]).map(|blob| {
            let length = u32::try_from(blob.len()).unwrap_or(0);
            [words([SUCCESS, 0, length, length]), blob.to_vec()].concat()
        });
        assert_eq!(Ok(answer(&mut engine, get)), expected);
        let set = Request::SetStateBlob {
            kind: Some(StateKind::Permanent),
            encrypted: false,
            blob: Blob(blob(&[4]).map(|blob| blob.to_vec()).unwrap_or_default()),
        };
        let raw = Request::SetStateBlob {
            kind: Some(StateKind::Permanent),
            encrypted: false,
            blob: Blob(vec![4]),
        };
        assert_eq!(
            answer(&mut engine, raw),
            words([BAD_PARAMETER]),
            "without a header"
        );
        assert_eq!(answer(&mut engine, set.clone()), [0; 4]);
        assert_eq!(engine.permanent, Some(vec![4]));
        engine.on = true;
        assert_eq!(answer(&mut engine, set), words([BAD_ORDINAL]));
    }

    #[test]
    fn impossible_localities_and_requests_are_refused() {
        let mut engine = FakeEngine::default();
        assert_eq!(
            answer(&mut engine, Request::SetLocality(5)),
            words([BAD_LOCALITY])
        );
        assert_eq!(
            answer(&mut engine, Request::Unknown(99)),
            words([BAD_ORDINAL])
        );
    }
}
