//! Volatile state has one use, asked for in so many words: nothing else brings it back.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::support::{
    Emulator, INIT, SHUTDOWN, STARTUP, STOP, Vmm, code, command, extend, pcr, with_password, words,
};

const STORE_VOLATILE: u32 = 10;
const GET_STATE_BLOB: u32 = 12;
const SET_STATE_BLOB: u32 = 13;
const PERMANENT: u32 = 1;
const VOLATILE: u32 = 2;
/// `TPM_RC_INITIALIZE`: started already, or not yet.
const INITIALIZE: u32 = 0x100;
const OWNER: u32 = 0x4000_0001;
const COUNTER: u32 = 0x0150_0011;

#[test]
fn a_reset_after_a_look_at_the_volatile_state_is_a_reset() -> Result<()> {
    type Look = fn(&mut Vmm) -> Result<()>;
    let looks: [(&str, Look); 3] = [
        ("read", |vmm| {
            state(vmm, PERMANENT)?;
            state(vmm, VOLATILE).map(drop)
        }),
        ("stored", store),
        ("stored and read", |vmm| {
            store(vmm)?;
            state(vmm, VOLATILE).map(drop)
        }),
    ];
    for (case, look) in looks {
        for before_init in [&[STOP][..], &[STOP, STOP], &[]] {
            for flags in [0, 1] {
                let folder = tempfile::tempdir()?;
                let mut emulator = Emulator::ours(folder.path())?;
                let mut vmm = started(&mut emulator)?;
                define_counter(&mut vmm)?;
                count(&mut vmm)?;
                extend(&mut vmm)?;
                look(&mut vmm)?;
                extend(&mut vmm)?;
                let counted = (0..9).try_fold(0, |_, _| count(&mut vmm))?;
                for request in before_init {
                    succeed(&mut vmm, &words(&[*request]))?;
                }
                succeed(&mut vmm, &words(&[INIT, flags]))?;
                assert_eq!(code(&vmm.execute(&STARTUP)?), 0, "{case}: no reset");
                assert_eq!(pcr(&mut vmm)?, [0; 32], "{case}");
                ensure!(count(&mut vmm)? > counted, "{case}: the counter went back");
            }
        }
    }
    Ok(())
}

#[test]
fn a_stored_volatile_state_is_gone_once_the_tpm_goes_on() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // Anything that the TPM does: a command, a measurement of the processor.
    let steps: [&[&[u8]]; 2] = [&[], &[&words(&[6]), &words(&[8])]];
    for requests in steps {
        let mut emulator = Emulator::ours(folder.path())?;
        let mut vmm = started(&mut emulator)?;
        extend(&mut vmm)?;
        store(&mut vmm)?;
        if requests.is_empty() {
            vmm.execute(&command(0x17b, &[0, 8]))?;
        }
        for request in requests {
            succeed(&mut vmm, request)?;
        }
        // SIGKILL
        drop(emulator);
        let mut emulator = Emulator::ours(folder.path())?;
        let mut vmm = emulator.attach_and_init()?;
        assert_eq!(code(&vmm.execute(&STARTUP)?), 0, "after {requests:?}");
    }
    Ok(())
}

#[test]
fn a_stored_volatile_state_is_for_the_next_vmm_as_on_swtpm_and_for_no_other() -> Result<()> {
    // swtpm ends with its VMM, and another one takes up what it stored.
    type Start = fn(&Path) -> Result<Emulator>;
    let emulators: [(Start, bool); 2] = [(Emulator::ours, false), (Emulator::swtpm, true)];
    for (emulator, ends) in emulators {
        let folder = tempfile::tempdir()?;
        let mut first = emulator(folder.path())?;
        let mut vmm = started(&mut first)?;
        extend(&mut vmm)?;
        let extended = pcr(&mut vmm)?;
        store(&mut vmm)?;
        succeed(&mut vmm, &words(&[SHUTDOWN]))?;
        drop(vmm);
        if ends {
            first.ends()?;
            first = emulator(folder.path())?;
        }
        let mut vmm = first.attach_and_init()?;
        assert_eq!(pcr(&mut vmm)?, extended);
    }
    // A VMM that stays, and switches its TPM off and on, is none.
    let folder = tempfile::tempdir()?;
    let mut ours = Emulator::ours(folder.path())?;
    let mut vmm = started(&mut ours)?;
    extend(&mut vmm)?;
    store(&mut vmm)?;
    succeed(&mut vmm, &words(&[STOP]))?;
    succeed(&mut vmm, &words(&[INIT, 0]))?;
    succeed(&mut vmm, &words(&[SHUTDOWN]))?;
    drop(vmm);
    let mut vmm = ours.attach_and_init()?;
    assert_eq!(code(&vmm.execute(&STARTUP)?), 0);
    Ok(())
}

#[test]
fn a_brought_volatile_state_that_was_not_used_is_not_for_the_next_vmm() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut emulator = Emulator::ours(folder.path())?;
    let mut vmm = started(&mut emulator)?;
    extend(&mut vmm)?;
    let extended = pcr(&mut vmm)?;
    let brought = [state(&mut vmm, PERMANENT)?, state(&mut vmm, VOLATILE)?];
    succeed(&mut vmm, &words(&[STOP]))?;
    bring(&mut vmm, &brought)?;
    // It ends half-way. The next one begins as every VMM does.
    drop(vmm);
    let mut vmm = emulator.attach()?;
    succeed(&mut vmm, &words(&[STOP]))?;
    succeed(&mut vmm, &words(&[INIT, 0]))?;
    assert_eq!(code(&vmm.execute(&STARTUP)?), 0);
    // Tools use a connection for each request, and switch on what they brought.
    succeed(&mut vmm, &words(&[STOP]))?;
    bring(&mut vmm, &brought)?;
    drop(vmm);
    let mut vmm = emulator.attach_and_init()?;
    assert_eq!(pcr(&mut vmm)?, extended);
    Ok(())
}

#[test]
fn a_volatile_state_of_another_permanent_state_is_not_taken_up() -> Result<()> {
    let (here, there) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let mut other = Emulator::ours(there.path())?;
    let brought = state(&mut started(&mut other)?, PERMANENT)?;
    let mut emulator = Emulator::ours(here.path())?;
    let mut vmm = started(&mut emulator)?;
    extend(&mut vmm)?;
    store(&mut vmm)?;
    drop(emulator);
    // What was stored is there, and then a VM comes with a permanent state alone.
    let mut emulator = Emulator::ours(here.path())?;
    let mut vmm = emulator.attach()?;
    bring(&mut vmm, &[brought])?;
    succeed(&mut vmm, &words(&[INIT, 0]))?;
    assert_eq!(code(&vmm.execute(&STARTUP)?), 0);
    assert_eq!(pcr(&mut vmm)?, [0; 32]);
    Ok(())
}

#[test]
fn a_tpm_that_nobody_started_is_stored_and_brought_back_as_swtpm_does() -> Result<()> {
    for emulator in [Emulator::ours, Emulator::swtpm] {
        // Before CMD_INIT there is nothing to store.
        let folder = tempfile::tempdir()?;
        let mut first = emulator(folder.path())?;
        let mut vmm = first.attach()?;
        assert_ne!(vmm.control(&words(&[STORE_VOLATILE]), 4)?, [0; 4]);
        // Before TPM2_Startup there is: a VM may be saved while it is paused at its first
        // instruction.
        succeed(&mut vmm, &words(&[INIT, 0]))?;
        let brought = [state(&mut vmm, PERMANENT)?, state(&mut vmm, VOLATILE)?];
        store(&mut vmm)?;
        drop((vmm, first));
        let mut same = emulator(folder.path())?;
        let mut vmm = same.attach_and_init()?;
        starts_once(&mut vmm)?;

        let folder = tempfile::tempdir()?;
        let mut other = emulator(folder.path())?;
        let mut vmm = other.attach()?;
        bring(&mut vmm, &brought)?;
        succeed(&mut vmm, &words(&[INIT, 1]))?;
        starts_once(&mut vmm)?;
    }
    // Before CMD_INIT swtpm gives no state; here the permanent one is there.
    let (here, there) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let mut ours = Emulator::ours(here.path())?;
    define_counter(&mut started(&mut ours)?)?;
    drop(ours);
    let mut ours = Emulator::ours(here.path())?;
    let mut vmm = ours.attach()?;
    let none = vmm.control(&words(&[GET_STATE_BLOB, 1, VOLATILE, 0]), 16)?;
    assert_eq!(none, words(&[0x800, 0, 0, 0]));
    let brought = state(&mut vmm, PERMANENT)?;
    let mut other = Emulator::ours(there.path())?;
    let mut vmm = other.attach()?;
    bring(&mut vmm, &[brought])?;
    succeed(&mut vmm, &words(&[INIT, 1]))?;
    starts_once(&mut vmm)?;
    count(&mut vmm)?;
    Ok(())
}

fn started(emulator: &mut Emulator) -> Result<Vmm> {
    let mut vmm = emulator.attach_and_init()?;
    ensure!(code(&vmm.execute(&STARTUP)?) == 0, "TPM2_Startup");
    Ok(vmm)
}

fn starts_once(vmm: &mut Vmm) -> Result<()> {
    let random = command(0x17b, &[0, 8]);
    assert_eq!(code(&vmm.execute(&random)?), INITIALIZE);
    assert_eq!(code(&vmm.execute(&STARTUP)?), 0);
    assert_eq!(code(&vmm.execute(&STARTUP)?), INITIALIZE);
    Ok(())
}

fn succeed(vmm: &mut Vmm, request: &[u8]) -> Result<()> {
    let answer = vmm.control(request, 4)?;
    ensure!(answer == [0; 4], "{request:02x?}: {answer:02x?}");
    Ok(())
}

fn store(vmm: &mut Vmm) -> Result<()> {
    succeed(vmm, &words(&[STORE_VOLATILE]))
}

/// A part of the state, which there has to be.
fn state(vmm: &mut Vmm, kind: u32) -> Result<Vec<u8>> {
    let head = vmm.control(&words(&[GET_STATE_BLOB, 1, kind, 0]), 16)?;
    ensure!(head.get(..4) == Some(&[0; 4]), "part {kind}: {head:02x?}");
    let length = head.last_chunk().copied().map(u32::from_be_bytes);
    vmm.answer(usize::try_from(length.context("a length")?)?)
}

/// The permanent state, and the volatile one if it is there.
fn bring(vmm: &mut Vmm, parts: &[Vec<u8>]) -> Result<()> {
    for (kind, part) in [PERMANENT, VOLATILE].into_iter().zip(parts) {
        let length = u32::try_from(part.len())?;
        let request = [&words(&[SET_STATE_BLOB, 0, kind, length])[..], part].concat();
        succeed(vmm, &request)?;
    }
    Ok(())
}

/// TPM2_NV_DefineSpace: an orderly counter, whose value is in volatile memory for the most part.
fn define_counter(vmm: &mut Vmm) -> Result<()> {
    const ATTRIBUTES: u32 = 0x0602_0012;
    let public = [
        &[0, 0, 0, 14][..],
        &COUNTER.to_be_bytes(),
        &[0, 0x0b],
        &ATTRIBUTES.to_be_bytes(),
        &[0, 0, 0, 8],
    ]
    .concat();
    ensure!(code(&vmm.execute(&with_password(0x12a, &[OWNER], &public))?) == 0);
    Ok(())
}

/// TPM2_NV_Increment, and what TPM2_NV_Read gives then.
fn count(vmm: &mut Vmm) -> Result<u64> {
    let incremented = vmm.execute(&with_password(0x134, &[OWNER, COUNTER], &[]))?;
    ensure!(code(&incremented) == 0, "{incremented:02x?}");
    let read = with_password(0x14e, &[OWNER, COUNTER], &[0, 8, 0, 0]);
    let response = vmm.execute(&read)?;
    let value = response.get(16..24).context("a value")?;
    Ok(u64::from_be_bytes(value.try_into()?))
}
