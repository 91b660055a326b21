//! Whatever a guest can put into its TPM, the TPM can be started with it again.

use anyhow::{Context, Result, ensure};
use backend_link::frame::{MAX_FRAME, receive, send};
use backend_link::message::{FromBackend, ToBackend};
use nix::sys::signal::Signal;
use vtpm_backend::control::MAX_BLOB;
use vtpm_backend::engine::{Engine, Libtpms, StateKind};

use crate::support::managed::Backend;
use crate::support::{Emulator, INIT, STARTUP, STOP, Vmm, code, command, with_password, words};

const OWNER: u32 = 0x4000_0001;
const FIRST: u32 = 0x0150_0000;
const GET_STATE_BLOB: u32 = 12;
const SET_STATE_BLOB: u32 = 13;
/// `TPM_RC_NV_SPACE`
const NO_SPACE: u32 = 0x14b;

#[test]
fn the_fullest_tpm_starts_again() -> Result<()> {
    let mut engine = Libtpms::new()?;
    engine.power_on()?;
    engine.execute(&STARTUP, 0);
    // Small indices with long policies and passwords take the most room in a state.
    let mut execute = |command: &[u8]| Ok(engine.execute(command, 0));
    let count = fill(&mut execute, 0, 8)?;
    let permanent = engine.state(StateKind::Permanent)?.context("a state")?;
    ensure!(permanent.len() > 160_000, "{} bytes", permanent.len());
    // Sealed, with a volatile state beside it.
    ensure!(2 * permanent.len() < MAX_BLOB.min(MAX_FRAME));
    for _ in 0..2 {
        engine.power_on()?;
        assert_eq!(code(&engine.execute(&STARTUP, 0)), 0);
    }
    drop(engine);
    let mut engine = Libtpms::new()?;
    engine.set_state(StateKind::Permanent, &permanent)?;
    engine.power_on()?;
    assert_eq!(code(&engine.execute(&STARTUP, 0)), 0);
    let last = command(0x169, &words(&[FIRST + count - 1]));
    assert_eq!(code(&engine.execute(&last, 0)), 0, "TPM2_NV_ReadPublic");
    // Its volatile state as well.
    let parts = [StateKind::Permanent, StateKind::Volatile].map(|kind| (kind, engine.state(kind)));
    engine.power_off();
    for (kind, part) in parts {
        engine.set_state(kind, &part?.context("a state")?)?;
    }
    engine.power_on()?;
    assert_eq!(code(&engine.execute(&last, 0)), 0, "resumed");
    Ok(())
}

#[test]
fn a_full_tpm_is_reset_restarted_and_moved() -> Result<()> {
    let (here, there) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let mut emulator = Emulator::ours(here.path())?;
    let mut vmm = emulator.attach_and_init()?;
    vmm.execute(&STARTUP)?;
    let last = command(0x169, &words(&[FIRST + fill_quickly(&mut vmm)? - 1]));
    for request in [&[INIT, 0][..], &[STOP], &[INIT, 0]] {
        assert_eq!(vmm.control(&words(request), 4)?, [0; 4], "{request:?}");
    }
    vmm.execute(&STARTUP)?;
    assert_eq!(code(&vmm.execute(&last)?), 0, "reset");
    ensure!(emulator.end(Signal::SIGTERM)?.success());
    let mut emulator = Emulator::ours(here.path())?;
    let mut vmm = emulator.attach_and_init()?;
    vmm.execute(&STARTUP)?;
    assert_eq!(code(&vmm.execute(&last)?), 0, "restarted");
    let mut target_emulator = Emulator::ours(there.path())?;
    let mut target = target_emulator.attach()?;
    for kind in [1, 2] {
        let head = vmm.control(&words(&[GET_STATE_BLOB, 1, kind, 0]), 16)?;
        let length = head.last_chunk().copied().map(u32::from_be_bytes);
        let length = length.context("a length")?;
        ensure!(kind == 2 || length > 140_000, "{length} bytes");
        let state = vmm.answer(usize::try_from(length)?)?;
        let request = [words(&[SET_STATE_BLOB, 0, kind, length]), state].concat();
        assert_eq!(target.control(&request, 4)?, [0; 4], "part {kind}");
    }
    assert_eq!(target.control(&words(&[INIT, 1]), 4)?, [0; 4]);
    assert_eq!(code(&target.execute(&last)?), 0, "moved");
    Ok(())
}

#[test]
fn a_manager_keeps_the_state_of_a_full_tpm() -> Result<()> {
    let backend = Backend::start()?;
    let mut manager = backend.opened(60_000, None)?;
    let states = std::thread::spawn(move || -> Result<_> {
        let mut newest = Vec::new();
        loop {
            match receive(&mut manager)? {
                FromBackend::StateChanged { sequence, sealed } => {
                    newest = sealed.into();
                    send(&mut manager, &ToBackend::Persisted { sequence })?;
                }
                FromBackend::Attachment {
                    attached: false, ..
                } => return Ok(newest),
                _ => {}
            }
        }
    });
    let mut vmm = backend.vmm()?;
    vmm.execute(&STARTUP)?;
    let last = command(0x169, &words(&[FIRST + fill_quickly(&mut vmm)? - 1]));
    drop(vmm);
    let state = states
        .join()
        .map_err(|_| anyhow::anyhow!("the manager"))??;
    ensure!(state.len() > 140_000, "{} bytes", state.len());
    let backend = Backend::start()?;
    let _manager = backend.opened(5, Some(state))?;
    let mut vmm = backend.vmm()?;
    for _ in 0..2 {
        assert_eq!(vmm.control(&words(&[INIT, 0]), 4)?, [0; 4]);
        vmm.execute(&STARTUP)?;
        assert_eq!(code(&vmm.execute(&last)?), 0);
    }
    Ok(())
}

fn fill_quickly(vmm: &mut Vmm) -> Result<u32> {
    let mut execute = |command: &[u8]| vmm.execute(command);
    let count = fill(&mut execute, 0, 2048)?;
    fill(&mut execute, count, 64)
}

/// Defines indices of this size, from this number on, until there is room for no more: how many
/// there are then.
fn fill(execute: &mut impl FnMut(&[u8]) -> Result<Vec<u8>>, from: u32, size: u16) -> Result<u32> {
    let password = [&[0, 64][..], &[0x5a; 64]].concat();
    for count in from.. {
        // SHA-512, TPMA_NV_OWNERWRITE, TPMA_NV_OWNERREAD, TPMA_NV_NO_DA
        let public = [
            &words(&[FIRST + count])[..],
            &[0, 0x0d, 0x02, 0x02, 0, 0x02, 0, 64],
            &[0xa5; 64],
            &size.to_be_bytes(),
        ]
        .concat();
        let length = u16::try_from(public.len())?.to_be_bytes();
        let area = [&password[..], &length, &public].concat();
        match code(&execute(&with_password(0x12a, &[OWNER], &area))?) {
            0 => {}
            NO_SPACE => return Ok(count),
            other => anyhow::bail!("index {count}: 0x{other:x}"),
        }
    }
    Ok(u32::MAX)
}
