//! The control channel as QEMU uses it, and as nobody should.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::support::{
    Emulator, INIT, SHUTDOWN, STARTUP, STOP, Vmm, code, command, with_password, words,
};

const GET_CAPABILITY: u32 = 1;
const GET_ESTABLISHED: u32 = 4;
const SET_LOCALITY: u32 = 5;
const STORE_VOLATILE: u32 = 10;
const RESET_ESTABLISHED: u32 = 11;
const GET_STATE_BLOB: u32 = 12;
const SET_STATE_BLOB: u32 = 13;
const GET_CONFIG: u32 = 15;
const SET_BUFFER_SIZE: u32 = 17;
const GET_INFO: u32 = 18;
const LOCK_STORAGE: u32 = 19;
const OWNER: u32 = 0x4000_0001;
/// How long a backend waits for the rest of a request.
const COMPLETION: Duration = Duration::from_millis(500);

#[test]
fn qemu_s_order_of_requests_is_served() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut emulator = Emulator::ours(folder.path())?;
    let mut vmm = emulator.attach()?;
    // TPM2_ReadClock before CMD_INIT: a probe of QEMU's, of whose answer it reads once.
    // TPM_RC_FAILURE.
    vmm.data.write_all(&command(0x181, &[]))?;
    let probe = read_once(&mut vmm.data)?;
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
fn every_reply_comes_in_one_piece() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut emulator = Emulator::ours(folder.path())?;
    let mut vmm = emulator.attach_and_init()?;
    vmm.data.write_all(&STARTUP)?;
    assert_eq!(read_once(&mut vmm.data)?.len(), 10);
    for (request, length) in [
        (words(&[GET_CAPABILITY]), 8),
        (words(&[INIT, 0]), 4),
        (words(&[GET_ESTABLISHED]), 8),
        (words(&[SET_BUFFER_SIZE, 0]), 16),
        (words(&[SET_LOCALITY, 0]), 4),
        (words(&[GET_CONFIG]), 8),
        (words(&[LOCK_STORAGE, 3]), 4),
        (words(&[GET_INFO, 0, 0, 0, 0]), 12 + 3),
        (words(&[GET_STATE_BLOB, 0, 3, 0]), 16),
        (words(&[0x1234]), 4),
    ] {
        vmm.control.write_all(&request)?;
        assert_eq!(read_once(&mut vmm.control)?.len(), length, "{request:?}");
    }
    for kind in [1, 2] {
        vmm.control
            .write_all(&words(&[GET_STATE_BLOB, 0, kind, 0]))?;
        let blob = read_once(&mut vmm.control)?;
        let length = blob.get(12..16).context("a length")?;
        let length = usize::try_from(u32::from_be_bytes(length.try_into()?))?;
        assert_eq!(blob.len(), 16 + length, "part {kind}");
    }
    Ok(())
}

#[test]
fn a_locality_of_one_byte_or_of_four_never_costs_the_next_request() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut emulator = Emulator::ours(folder.path())?;
    let mut vmm = emulator.attach_and_init()?;
    let next = words(&[GET_ESTABLISHED]);
    for (code, locality) in [(SET_LOCALITY, 0), (RESET_ESTABLISHED, 3)] {
        let request = [words(&[code]), vec![locality]].concat();
        for padding in [&[][..], &[0; 3], &[0x5a, 0x7f, 0]] {
            let case = format!("request {code}, padding {padding:?}");
            // All of it at once.
            let all = [&request[..], padding, &next].concat();
            assert_eq!(vmm.control(&all, 12)?, [0; 12], "{case}");
            // Each part when the last one was answered.
            assert_eq!(vmm.control(&request, 4)?, [0; 4], "{case}");
            vmm.control.write_all(padding)?;
            assert_eq!(vmm.control(&next, 8)?, [0; 8], "{case}");
            // Byte by byte.
            for byte in &all {
                vmm.control.write_all(&[*byte])?;
            }
            assert_eq!(vmm.answer(12)?, [0; 12], "{case}");
        }
    }
    // One that is not QEMU owes no padding: it may take its time.
    assert_eq!(vmm.control(&words(&[SET_LOCALITY, 0]), 4)?, [0; 4]);
    std::thread::sleep(2 * COMPLETION);
    assert_eq!(vmm.control(&next, 8)?, [0; 8]);
    Ok(())
}

#[test]
fn a_vmm_gets_the_description_of_its_tpm_in_pieces() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut emulator = Emulator::ours(folder.path())?;
    let mut vmm = emulator.attach()?;
    let mut piece = |offset: u32| -> Result<(u32, Vec<u8>)> {
        vmm.control
            .write_all(&words(&[GET_INFO, 0, 7, offset, 0]))?;
        let reply = read_once(&mut vmm.control)?;
        let word = |at: usize| reply.get(at..).and_then(<[u8]>::first_chunk).copied();
        let words = [word(0), word(4), word(8)].map(|word| word.map(u32::from_be_bytes));
        let text = reply.get(12..).unwrap_or_default().to_vec();
        let length = u32::try_from(text.len())?;
        ensure!(words[0] == Some(0) && words[2] == Some(length), "{words:?}");
        Ok((words[1].context("a total")?, text))
    };
    let (total, whole) = piece(0)?;
    assert_eq!(usize::try_from(total)?, whole.len());
    let (same, rest) = piece(20)?;
    assert_eq!((same, Some(&rest[..])), (total, whole.get(20..)));
    let text = String::from_utf8(whole)?;
    for part in ["TPMSpecification", "TPMAttributes", "RSAKeySizes"] {
        ensure!(text.contains(part), "{text}");
    }
    Ok(())
}

#[test]
fn descriptors_that_nobody_wants_are_closed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut emulator = Emulator::ours(folder.path())?;
    let open = |emulator: &Emulator| -> Result<usize> {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", emulator.id()));
        Ok(descriptors
            .context("only root sees into a backend")?
            .count())
    };
    // Counted before anything was to be closed: that happens beside the answers.
    let first = emulator.attach_and_init()?;
    let before = open(&emulator)?;
    drop(first);
    let mut vmm = emulator.attach_and_init()?;
    let (_ours, theirs) = UnixStream::pair()?;
    // What is sent along with a request, and with one byte of one; up to the kernel's limit.
    for count in [2, 6, 253] {
        for request in [words(&[GET_ESTABLISHED]), vec![0]] {
            let descriptors = vec![theirs.as_raw_fd(); count];
            sendmsg::<()>(
                vmm.control.as_raw_fd(),
                &[IoSlice::new(&request)],
                &[ControlMessage::ScmRights(&descriptors)],
                MsgFlags::empty(),
                None,
            )?;
            let rest = words(&[GET_ESTABLISHED]);
            let rest = rest.get(request.len()..).unwrap_or_default();
            assert_eq!(vmm.control(rest, 8)?, [0; 8]);
        }
    }
    let come_to = |emulator: &Emulator, expected: usize| -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let open = open(emulator)?;
            if open == expected {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{open} are open, not {expected}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    // The last one is kept for a CMD_SET_DATAFD.
    come_to(&emulator, before + 1)?;
    drop(vmm);
    let _vmm = emulator.attach_and_init()?;
    come_to(&emulator, before)
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
fn tools_at_the_data_socket_have_their_turns() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("data.sock");
    let mut emulator = Emulator::ours_with_data(folder.path(), &socket)?;
    // It listens for VMMs last.
    drop(emulator.connect()?);
    let connect = || -> Result<UnixStream> {
        let stream = UnixStream::connect(&socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(stream)
    };
    let get_random = command(0x17b, &[0, 8]);
    let mut first = connect()?;
    let mut others = Vec::new();
    for _ in 0..20 {
        let mut other = connect()?;
        other.write_all(&get_random)?;
        others.push(other);
    }
    // Nobody comes between.
    for _ in 0..5 {
        first.write_all(&get_random)?;
        assert_eq!(read_once(&mut first)?.len(), 20);
        let other = others.first_mut().context("the second")?;
        other.set_nonblocking(true)?;
        ensure!(other.read(&mut [0; 20]).is_err(), "it is not its turn");
        other.set_nonblocking(false)?;
    }
    drop(first);
    for (number, mut other) in others.into_iter().enumerate() {
        // Some leave without an answer.
        if number % 3 != 1 {
            assert_eq!(read_once(&mut other)?.len(), 20, "{number}");
        }
    }
    Ok(())
}

#[test]
fn whoever_sets_a_locality_and_goes_keeps_nobody_away() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut emulator = Emulator::ours(folder.path())?;
    let mut tool = emulator.connect()?;
    tool.write_all(&words(&[GET_CAPABILITY]))?;
    assert_eq!(read_once(&mut tool)?.len(), 8);
    let mut next = emulator.connect()?;
    next.write_all(&words(&[GET_CAPABILITY]))?;
    next.set_read_timeout(Some(Duration::from_millis(300)))?;
    let waits = next.read(&mut [0; 8]).map_err(|error| error.kind());
    assert_eq!(
        waits,
        Err(ErrorKind::WouldBlock),
        "neither served nor sent away"
    );
    next.set_read_timeout(Some(Duration::from_secs(60)))?;
    drop(tool);
    assert_eq!(read_once(&mut next)?.len(), 8);
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
    let Vmm {
        mut control,
        mut data,
    } = emulator.attach_and_init()?;
    control.write_all(&[0, 0])?;
    assert_eq!(control.read(&mut [0; 4])?, 0, "the end of the stream");
    // Its data channel goes with it: nobody is beside the next one.
    assert_eq!(data.read(&mut [0; 4])?, 0, "the end of the stream");
    ensure!(data.write_all(&STARTUP).is_err(), "nobody is there");
    let mut next = emulator.attach_and_init()?;
    assert_eq!(code(&next.execute(&STARTUP)?), 0);
    Ok(())
}

#[test]
fn a_volatile_state_that_was_stored_outlives_its_process_and_is_used_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let pcr_read = command(0x17e, &[0, 0, 0, 1, 0, 0x0b, 3, 0, 0, 1]);
    let mut emulator = Emulator::ours(folder.path())?;
    let mut vmm = emulator.attach_and_init()?;
    vmm.execute(&STARTUP)?;
    let extend = [&[0, 0, 0, 1, 0, 0x0b][..], &[7; 32]].concat();
    vmm.execute(&with_password(0x182, &[16], &extend))?;
    let extended = vmm.execute(&pcr_read)?;
    assert_eq!(vmm.control(&words(&[STORE_VOLATILE]), 4)?, [0; 4]);
    // SIGKILL
    drop(emulator);
    let mut emulator = Emulator::ours(folder.path())?;
    let mut vmm = emulator.attach_and_init()?;
    // In the middle: no TPM2_Startup.
    assert_eq!(vmm.execute(&pcr_read)?, extended);
    drop(emulator);
    let mut emulator = Emulator::ours(folder.path())?;
    let mut vmm = emulator.attach_and_init()?;
    assert_eq!(code(&vmm.execute(&STARTUP)?), 0, "it was used up");
    assert_eq!(vmm.control(&words(&[STORE_VOLATILE]), 4)?, [0; 4]);
    // Or not at all.
    drop(emulator);
    let mut emulator = Emulator::ours(folder.path())?;
    let mut vmm = emulator.attach()?;
    let delete = words(&[INIT, 1]);
    assert_eq!(vmm.control(&delete, 4)?, [0; 4]);
    drop(emulator);
    let mut emulator = Emulator::ours(folder.path())?;
    let mut vmm = emulator.attach_and_init()?;
    assert_eq!(code(&vmm.execute(&STARTUP)?), 0);
    Ok(())
}

#[test]
fn a_state_that_could_not_be_written_is_written_once_it_can_be() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut emulator = Emulator::ours(folder.path())?;
    let mut vmm = emulator.attach_and_init()?;
    vmm.execute(&STARTUP)?;
    // A folder that nothing can be renamed over.
    let permanent = folder.path().join("ours/tpm2-00.permall");
    std::fs::remove_file(&permanent)?;
    std::fs::create_dir_all(permanent.join("in the way"))?;
    let define = with_password(0x12a, &[OWNER], INDEX);
    assert_eq!(code(&vmm.execute(&define)?), 0);
    let stored = vmm.control(&words(&[STORE_VOLATILE]), 4)?;
    assert_eq!(stored, words(&[9]), "TPM_FAIL: it is not there");
    let read_public = command(0x169, &words(&[0x0150_0000]));
    let expected = vmm.execute(&read_public)?;
    assert_eq!(code(&expected), 0);
    std::fs::remove_dir_all(&permanent)?;
    // Nobody says anything: time passes.
    let deadline = Instant::now() + Duration::from_secs(60);
    while !permanent.is_file() {
        ensure!(Instant::now() < deadline, "it is not written");
        std::thread::sleep(Duration::from_millis(20));
    }
    // SIGKILL
    drop(emulator);
    let mut emulator = Emulator::ours(folder.path())?;
    let mut vmm = emulator.attach()?;
    assert_eq!(vmm.control(&words(&[INIT, 1]), 4)?, [0; 4]);
    vmm.execute(&STARTUP)?;
    assert_eq!(vmm.execute(&read_public)?, expected);
    // And what is tried at once: at the next command, and when the VMM stops.
    for (index, request) in [(1, None), (2, Some(STOP)), (3, Some(SHUTDOWN))] {
        std::fs::remove_file(&permanent)?;
        std::fs::create_dir_all(permanent.join("in the way"))?;
        let mut area = INDEX.to_vec();
        *area.get_mut(7).context("the index")? = index;
        assert_eq!(
            code(&vmm.execute(&with_password(0x12a, &[OWNER], &area))?),
            0
        );
        std::fs::remove_dir_all(&permanent)?;
        match request {
            None => vmm.execute(&read_public).map(drop)?,
            Some(request) => assert_eq!(vmm.control(&words(&[request]), 4)?, [0; 4]),
        }
        ensure!(permanent.is_file(), "after {request:?}");
        if request == Some(STOP) {
            assert_eq!(vmm.control(&words(&[INIT, 0]), 4)?, [0; 4]);
            vmm.execute(&STARTUP)?;
        }
    }
    Ok(())
}

/// What one read brings, as VMMs do it.
fn read_once(stream: &mut UnixStream) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 512 * 1024];
    let length = stream.read(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
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
