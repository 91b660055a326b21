//! The control channel as QEMU uses it, and as nobody should.

mod support;

use std::io::{Read, Write};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use support::{Emulator, INIT, SHUTDOWN, STARTUP, STOP, Vmm, command, with_password, words};

const GET_CAPABILITY: u32 = 1;
const GET_ESTABLISHED: u32 = 4;
const SET_LOCALITY: u32 = 5;
const GET_STATE_BLOB: u32 = 12;
const SET_STATE_BLOB: u32 = 13;
const SET_BUFFER_SIZE: u32 = 17;
const OWNER: u32 = 0x4000_0001;

#[test]
fn qemu_s_order_of_requests_is_served() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut emulator = Emulator::ours(folder.path())?;
    let mut vmm = emulator.attach()?;
    // TPM2_ReadClock before CMD_INIT: a probe, answered in one piece with TPM_RC_FAILURE.
    let probe = vmm.execute(&command(0x181, &[]))?;
    assert_eq!(probe, [0x80, 1, 0, 0, 0, 10, 0, 0, 1, 1]);
    let capabilities = vmm.control(&words(&[GET_CAPABILITY]), 8)?;
    assert_eq!(capabilities.get(..4), Some(&[0; 4][..]));
    for start in ["boot", "system_reset", "system_reset"] {
        for (request, length) in [
            (words(&[STOP]), 4),
            (words(&[SET_BUFFER_SIZE, 0]), 16),
            (words(&[STOP]), 4),
            (words(&[SET_BUFFER_SIZE, 3968]), 16),
            (words(&[INIT, 0]), 4),
            (words(&[GET_ESTABLISHED]), 8),
            (words(&[SET_LOCALITY, 0]), 4),
        ] {
            let answer = vmm.control(&request, length)?;
            assert_eq!(answer.get(..4), Some(&[0; 4][..]), "{start}: {request:?}");
        }
        assert_eq!(code(&vmm.execute(&STARTUP)?), 0, "{start}");
    }
    assert_eq!(vmm.control(&words(&[SHUTDOWN]), 4)?, [0; 4]);
    ensure!(emulator.is_alive()?, "the next VMM finds nobody");
    emulator.attach_and_init()?;
    Ok(())
}

#[test]
fn a_vm_moves_with_its_tpm() -> Result<()> {
    let (here, there) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let mut source_emulator = Emulator::ours(here.path())?;
    let mut source = source_emulator.attach_and_init()?;
    source.execute(&STARTUP)?;
    let define = with_password(0x12a, &[OWNER], INDEX);
    assert_eq!(code(&source.execute(&define)?), 0, "TPM2_NV_DefineSpace");
    let extend = [&[0, 0, 0, 1, 0, 0x0b][..], &[7; 32]].concat();
    source.execute(&with_password(0x182, &[16], &extend))?;
    let questions = [
        command(0x169, &words(&[0x0150_0000])),
        command(0x17e, &[0, 0, 0, 1, 0, 0x0b, 3, 0, 0, 1]),
    ];
    let answers = questions
        .each_ref()
        .map(|question| source.execute(question));

    let mut target_emulator = Emulator::ours(there.path())?;
    let mut target = target_emulator.attach()?;
    for kind in [1, 2] {
        let state = state_blob(&mut source, kind)?;
        let length = u32::try_from(state.len())?;
        let request = [words(&[SET_STATE_BLOB, 0, kind, length]), state].concat();
        assert_eq!(target.control(&request, 4)?, [0; 4], "part {kind}");
    }
    assert_eq!(target.control(&words(&[INIT, 1]), 4)?, [0; 4]);
    // In the middle: no TPM2_Startup.
    for (question, answer) in questions.iter().zip(answers) {
        assert_eq!(target.execute(question)?, answer?);
    }
    Ok(())
}

#[test]
fn a_request_may_come_in_pieces_and_two_may_come_at_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut emulator = Emulator::ours(folder.path())?;
    let mut vmm = emulator.attach()?;
    for byte in words(&[INIT, 0]) {
        vmm.control.write_all(&[byte])?;
    }
    assert_eq!(vmm.answer(4)?, [0; 4]);
    let both = [words(&[GET_ESTABLISHED]), words(&[STOP])].concat();
    assert_eq!(vmm.control(&both, 12)?, [0; 12]);
    Ok(())
}

#[test]
fn a_second_vmm_is_turned_away_and_the_first_goes_on() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut emulator = Emulator::ours(folder.path())?;
    let mut first = emulator.attach_and_init()?;
    let mut second = emulator.connect()?;
    // It may be told so by an end of the stream or by an error.
    let _ = second.write_all(&words(&[GET_CAPABILITY]));
    ensure!(matches!(second.read(&mut [0; 8]), Ok(0) | Err(_)));
    assert_eq!(code(&first.execute(&STARTUP)?), 0);
    // Once the first one is gone there is room.
    drop(first);
    emulator.attach_and_init()?;
    Ok(())
}

#[test]
fn a_restarted_vmm_brings_a_new_data_descriptor() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut emulator = Emulator::ours(folder.path())?;
    let Vmm { control, data } = emulator.attach_and_init()?;
    let mut again = Vmm::over(control)?;
    drop(data);
    assert_eq!(code(&again.execute(&STARTUP)?), 0);
    Ok(())
}

#[test]
fn what_a_guest_wrote_is_there_after_a_crash() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut emulator = Emulator::ours(folder.path())?;
    let mut vmm = emulator.attach_and_init()?;
    vmm.execute(&STARTUP)?;
    assert_eq!(
        code(&vmm.execute(&with_password(0x12a, &[OWNER], INDEX))?),
        0
    );
    let read_public = command(0x169, &words(&[0x0150_0000]));
    let expected = vmm.execute(&read_public)?;
    // SIGKILL
    drop(emulator);
    let mut emulator = Emulator::ours(folder.path())?;
    let mut vmm = emulator.attach_and_init()?;
    vmm.execute(&STARTUP)?;
    assert_eq!(vmm.execute(&read_public)?, expected);
    Ok(())
}

#[test]
fn nonsense_ends_its_connection_and_not_the_tpm() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut emulator = Emulator::ours(folder.path())?;
    // A blob, and measured data, of four gigabytes.
    for request in [
        words(&[SET_STATE_BLOB, 0, 1, u32::MAX]),
        words(&[7, u32::MAX]),
    ] {
        let mut control = emulator.connect()?;
        control.write_all(&request)?;
        assert_eq!(control.read(&mut [0; 4])?, 0, "{request:?}");
    }
    // A command with an impossible size.
    for size in [0, 9, 5000, u32::MAX] {
        let mut vmm = emulator.attach_and_init()?;
        let header = [&[0x80, 1][..], &words(&[size, 0x17b])].concat();
        vmm.data.write_all(&header)?;
        let mut answer = Vec::new();
        vmm.data.read_to_end(&mut answer)?;
        assert_ne!(code(&answer), 0, "size {size}");
    }
    let mut vmm = emulator.attach_and_init()?;
    assert_eq!(code(&vmm.execute(&STARTUP)?), 0);
    Ok(())
}

#[test]
fn half_a_request_is_not_waited_for_for_ever() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut emulator = Emulator::ours(folder.path())?;
    let mut control = emulator.connect()?;
    control.set_read_timeout(Some(Duration::from_secs(30)))?;
    control.write_all(&[0, 0])?;
    assert_eq!(control.read(&mut [0; 4])?, 0, "the end of the stream");
    emulator.attach_and_init()?;
    Ok(())
}

/// TPM2B_AUTH, TPM2B_NV_PUBLIC: eight bytes at 0x01500000 for the owner.
const INDEX: &[u8] = &[
    0, 0, 0, 14, 0x01, 0x50, 0, 0, 0, 0x0b, 0x02, 0x02, 0, 0x02, 0, 0, 0, 8,
];

fn state_blob(vmm: &mut Vmm, kind: u32) -> Result<Vec<u8>> {
    let head = vmm.control(&words(&[GET_STATE_BLOB, 1, kind, 0]), 16)?;
    assert_eq!(head.get(..4), Some(&[0; 4][..]), "part {kind}");
    assert_eq!(head.get(8..12), head.get(12..), "it comes whole");
    let length = head.last_chunk().copied().map(u32::from_be_bytes);
    vmm.answer(usize::try_from(length.context("a length")?)?)
}

fn code(response: &[u8]) -> u32 {
    let code = response.get(6..10).and_then(|code| code.try_into().ok());
    code.map_or(u32::MAX, u32::from_be_bytes)
}
