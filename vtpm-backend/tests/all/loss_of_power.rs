//! A TPM loses power in an orderly way whatever ends it: its guest is not locked out by that.

use anyhow::{Context, Result, bail, ensure};
use backend_link::frame::{receive, send};
use backend_link::message::{FromBackend, ToBackend};
use nix::sys::signal::Signal;

use crate::support::managed::{Backend, open};
use crate::support::{
    Emulator, INIT, SHUTDOWN, STARTUP, STOP, Vmm, code, command, with_password, words,
};

const OWNER: u32 = 0x4000_0001;
const INDEX: u32 = 0x0150_0000;
const STORE_VOLATILE: u32 = 10;
const GET_STATE_BLOB: u32 = 12;
const SET_STATE_BLOB: u32 = 13;
const STARTUP_STATE: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 1];
const SHUTDOWN_STATE: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x45, 0, 1];

#[test]
fn no_reset_stop_or_orderly_end_counts_as_a_failed_authorization() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut emulator = Emulator::ours(folder.path())?;
    let mut vmm = emulator.attach_and_init()?;
    vmm.execute(&STARTUP)?;
    define_protected(&mut vmm)?;
    for round in 0..2 {
        for way in ["reset", "stop", "shutdown", "SIGTERM", "SIGINT", "new VMM"] {
            use_protected(&mut vmm)?;
            match way {
                "reset" => {}
                "stop" => assert_eq!(vmm.control(&words(&[STOP]), 4)?, [0; 4]),
                "shutdown" => {
                    assert_eq!(vmm.control(&words(&[SHUTDOWN]), 4)?, [0; 4]);
                    vmm = emulator.attach()?;
                }
                "new VMM" => {
                    drop(vmm);
                    vmm = emulator.attach()?;
                }
                signal => {
                    let signal = signal.parse::<Signal>()?;
                    ensure!(emulator.end(signal)?.success(), "{signal}");
                    emulator = Emulator::ours(folder.path())?;
                    vmm = emulator.attach()?;
                }
            }
            assert_eq!(vmm.control(&words(&[INIT, 0]), 4)?, [0; 4], "{way}");
            assert_eq!(code(&vmm.execute(&STARTUP)?), 0, "{way}");
            assert_eq!(failed_authorizations(&mut vmm)?, 0, "{way}, round {round}");
        }
    }
    // What is measured here is measured: a process that is killed loses power.
    use_protected(&mut vmm)?;
    drop(emulator);
    let mut emulator = Emulator::ours(folder.path())?;
    let mut vmm = emulator.attach_and_init()?;
    vmm.execute(&STARTUP)?;
    assert_eq!(failed_authorizations(&mut vmm)?, 1);
    Ok(())
}

#[test]
fn a_manager_that_stops_a_vrot_has_a_state_without_a_failed_authorization() -> Result<()> {
    for way in ["stopped", "paused and stopped", "SIGTERM"] {
        // With its lock, as every vRoT has one: to end must not depend on giving it up.
        let folder = tempfile::tempdir()?;
        let mut backend = Backend::start_locking(Some(&folder.path().join("lock")))?;
        let mut manager = backend.opened(5, None)?;
        let mut vmm = backend.vmm()?;
        vmm.execute(&STARTUP)?;
        define_protected(&mut vmm)?;
        use_protected(&mut vmm)?;
        match way {
            "stopped" => send(&mut manager, &ToBackend::Stop)?,
            // What was handed over is for nobody.
            "paused and stopped" => {
                send(&mut manager, &ToBackend::Suspend)?;
                send(&mut manager, &ToBackend::Hold { held: false })?;
                send(&mut manager, &ToBackend::Stop)?;
            }
            _ => nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(backend.process.id().try_into()?),
                Signal::SIGTERM,
            )?,
        }
        let mut state = None;
        loop {
            match receive(&mut manager)? {
                FromBackend::StateChanged { sealed, .. } => state = Some(sealed),
                FromBackend::Stopped => break,
                _ => {}
            }
        }
        ensure!(backend.process.wait()?.success(), "{way}");
        let backend = Backend::start()?;
        let mut manager = backend.connect()?;
        let state = state.context("a state")?.to_vec();
        send(&mut manager, &ToBackend::Open(open(5, Some(state))?))?;
        let mut vmm = backend.vmm()?;
        vmm.execute(&STARTUP)?;
        assert_eq!(failed_authorizations(&mut vmm)?, 0, "{way}");
    }
    Ok(())
}

#[test]
fn a_guest_that_sleeps_goes_on_and_one_that_was_reset_does_not() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut emulator = Emulator::ours(folder.path())?;
    let mut vmm = emulator.attach_and_init()?;
    vmm.execute(&STARTUP)?;
    let extend = [&[0, 0, 0, 1, 0, 0x0b][..], &[7; 32]].concat();
    vmm.execute(&with_password(0x182, &[0], &extend))?;
    let pcr_read = command(0x17e, &[0, 0, 0, 1, 0, 0x0b, 3, 1, 0, 0]);
    let extended = pcr(&vmm.execute(&pcr_read)?)?;
    // As QEMU does it when a guest wakes up; something else may use the TPM while it sleeps.
    for between in [None, Some(command(0x17b, &[0, 8]))] {
        assert_eq!(code(&vmm.execute(&SHUTDOWN_STATE)?), 0);
        if let Some(command) = between {
            assert_eq!(code(&vmm.execute(&command)?), 0);
        }
        assert_eq!(vmm.control(&words(&[STOP]), 4)?, [0; 4]);
        assert_eq!(vmm.control(&words(&[INIT, 0]), 4)?, [0; 4]);
        assert_eq!(code(&vmm.execute(&STARTUP_STATE)?), 0);
        assert_eq!(pcr(&vmm.execute(&pcr_read)?)?, extended);
    }
    // A reset is one: there is nothing to resume.
    assert_eq!(vmm.control(&words(&[INIT, 0]), 4)?, [0; 4]);
    assert_ne!(code(&vmm.execute(&STARTUP_STATE)?), 0);
    assert_eq!(code(&vmm.execute(&STARTUP)?), 0);
    assert_ne!(pcr(&vmm.execute(&pcr_read)?)?, extended);
    Ok(())
}

#[test]
fn a_tpm_that_nobody_started_is_switched_off_as_it_is() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut emulator = Emulator::ours(folder.path())?;
    let mut vmm = emulator.attach()?;
    for request in [words(&[STOP]), words(&[INIT, 0]), words(&[INIT, 0])] {
        assert_eq!(vmm.control(&request, 4)?, [0; 4]);
    }
    assert_eq!(code(&vmm.execute(&command(0x17b, &[0, 8]))?), 0x100);
    assert_eq!(vmm.control(&words(&[STOP]), 4)?, [0; 4]);
    assert_eq!(vmm.control(&words(&[INIT, 0]), 4)?, [0; 4]);
    assert_eq!(code(&vmm.execute(&STARTUP)?), 0);
    Ok(())
}

/// Whoever has the volatile state goes on from there, beside the permanent state as it is.
#[test]
fn a_tpm_whose_volatile_state_is_stored_keeps_its_permanent_state() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut emulator = Emulator::ours(folder.path())?;
    let mut vmm = emulator.attach_and_init()?;
    vmm.execute(&STARTUP)?;
    define_protected(&mut vmm)?;
    use_protected(&mut vmm)?;
    assert_eq!(vmm.control(&words(&[STORE_VOLATILE]), 4)?, [0; 4]);
    let permanent = folder.path().join("ours/tpm2-00.permall");
    let before = std::fs::read(&permanent)?;
    for request in [STOP, SHUTDOWN] {
        assert_eq!(vmm.control(&words(&[request]), 4)?, [0; 4]);
        ensure!(std::fs::read(&permanent)? == before, "after {request}");
    }
    ensure!(emulator.end(Signal::SIGTERM)?.success());
    ensure!(std::fs::read(&permanent)? == before, "after the end");
    Ok(())
}

/// A VM that is saved and goes on, or whose saved state is given up.
#[test]
fn a_tpm_whose_given_away_state_is_not_used_is_shut_down_at_the_next_start() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut emulator = Emulator::ours(folder.path())?;
    let mut vmm = emulator.attach_and_init()?;
    vmm.execute(&STARTUP)?;
    define_protected(&mut vmm)?;
    for (store, off, init) in [
        (true, None, 0),
        (true, Some(STOP), 0),
        (true, Some(SHUTDOWN), 1),
        (false, Some(SHUTDOWN), 0),
    ] {
        use_protected(&mut vmm)?;
        if store {
            assert_eq!(vmm.control(&words(&[STORE_VOLATILE]), 4)?, [0; 4]);
        } else {
            let head = vmm.control(&words(&[GET_STATE_BLOB, 1, 2, 0]), 16)?;
            let length = head.last_chunk().copied().map(u32::from_be_bytes);
            vmm.answer(usize::try_from(length.context("a length")?)?)?;
        }
        if let Some(request) = off {
            assert_eq!(vmm.control(&words(&[request]), 4)?, [0; 4]);
        }
        if off == Some(SHUTDOWN) {
            vmm = emulator.attach()?;
        }
        if init == 1 {
            // Another VM's start: what was stored is deleted first.
            let nothing = words(&[SET_STATE_BLOB, 0, 2, 0]);
            assert_eq!(vmm.control(&nothing, 4)?, [0; 4]);
        }
        assert_eq!(vmm.control(&words(&[INIT, init]), 4)?, [0; 4]);
        assert_eq!(code(&vmm.execute(&STARTUP)?), 0, "{store} {off:?} {init}");
        assert_eq!(
            failed_authorizations(&mut vmm)?,
            0,
            "{store} {off:?} {init}"
        );
    }
    Ok(())
}

/// An index that is protected against dictionary attacks, with an empty password of its own.
fn define_protected(vmm: &mut Vmm) -> Result<()> {
    // TPMA_NV_AUTHWRITE, TPMA_NV_AUTHREAD
    let public = [
        &[0, 0, 0, 14][..],
        &words(&[INDEX]),
        &[0, 0x0b, 0, 0x04, 0, 0x04, 0, 0, 0, 8],
    ]
    .concat();
    let response = vmm.execute(&with_password(0x12a, &[OWNER], &public))?;
    ensure!(code(&response) == 0, "{response:02x?}");
    Ok(())
}

fn use_protected(vmm: &mut Vmm) -> Result<()> {
    let write = [&[0, 8][..], &[7; 8], &[0, 0]].concat();
    let write = with_password(0x137, &[INDEX, INDEX], &write);
    let mut response = vmm.execute(&write)?;
    // TPM_RC_RETRY: the first use since the start is noted in NV memory.
    if code(&response) == 0x922 {
        response = vmm.execute(&write)?;
    }
    ensure!(code(&response) == 0, "{response:02x?}");
    Ok(())
}

/// `TPM_PT_LOCKOUT_COUNTER`
fn failed_authorizations(vmm: &mut Vmm) -> Result<u32> {
    let response = vmm.execute(&command(0x17a, &words(&[6, 0x20e, 1])))?;
    match (code(&response), response.last_chunk()) {
        (0, Some(value)) => Ok(u32::from_be_bytes(*value)),
        _ => bail!("{response:02x?}"),
    }
}

/// The digest at the end of the response to `TPM2_PCR_Read`.
fn pcr(response: &[u8]) -> Result<[u8; 32]> {
    response.last_chunk().copied().context("a digest")
}
