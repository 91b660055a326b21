//! A backend and its manager: state is durable before the guest is answered, or the vRoT says
//! that it is degraded.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use backend_link::StateKey;
use backend_link::frame::{receive, send};
use backend_link::message::{FromBackend, Open, ToBackend};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use tpm_wire::host_commands::HOST_EVIDENCE_REQUEST;
use vtpm_backend::sockets::WRITE_DEADLINE;

use crate::support::managed::{
    Backend, OWNER, PATIENCE, VROT, connect_to, create_rsa_key, define, define_index,
    define_index_of, define_twenty, has_twenty, open, pushed, start_in, status,
    status_after_states, told_attachment, told_status, write_until,
};
use crate::support::{STARTUP, Vmm, command, with_password, words};

/// A manager goes, and its backend sees it at once. Closing alone would not do: another test that
/// starts a program has a copy of every descriptor for a moment, between its fork and its exec.
fn goes(manager: UnixStream) -> Result<()> {
    Ok(manager.shutdown(Shutdown::Both)?)
}

#[test]
fn a_guest_is_answered_when_its_state_is_durable() -> Result<()> {
    let backend = Backend::start()?;
    // Long enough that nobody mistakes the deadline for an acknowledgement.
    let mut manager = backend.opened(60_000, None)?;
    let mut listening = manager.try_clone()?;
    let prompt = Arc::new(AtomicBool::new(true));
    let (held_back, unacknowledged) = mpsc::channel();
    let is_prompt = Arc::clone(&prompt);
    thread::spawn(move || -> Result<()> {
        loop {
            let (sequence, _) = pushed(&mut listening)?;
            if is_prompt.load(Ordering::SeqCst) {
                send(&mut listening, &ToBackend::Persisted { sequence })?;
            } else {
                held_back.send(sequence)?;
            }
        }
    });
    let guest = backend.guest()?.wait()?;
    prompt.store(false, Ordering::SeqCst);
    let guest = define(guest);
    let sequence = unacknowledged.recv()?;
    ensure!(
        !guest.is_finished(),
        "answered before its state was durable"
    );
    prompt.store(true, Ordering::SeqCst);
    send(&mut manager, &ToBackend::Persisted { sequence })?;
    let (_, code) = guest.join().map_err(|_| anyhow::anyhow!("the guest"))??;
    assert_eq!(code, 0);
    Ok(())
}

#[test]
fn at_the_deadline_it_is_answered_anyway_and_the_vrot_is_degraded_until_it_caught_up() -> Result<()>
{
    let backend = Backend::start()?;
    let mut manager = backend.opened(50, None)?;
    let guest = define(backend.guest()?.wait()?);
    // Nothing is acknowledged.
    let (_, code) = guest.join().map_err(|_| anyhow::anyhow!("the guest"))??;
    assert_eq!(code, 0);
    // The manager need not ask.
    let now = told_status(&mut manager)?;
    ensure!(now.degraded && now.persisted < now.pushed, "{now:?}");
    let sequence = status(&mut manager)?.pushed;
    send(&mut manager, &ToBackend::Persisted { sequence })?;
    ensure!(!told_status(&mut manager)?.degraded);
    Ok(())
}

#[test]
fn a_guest_that_never_rests_waits_for_its_manager_again_when_that_commits_again() -> Result<()> {
    /// Until the manager must have been caught up with: three, if nobody is late.
    const COMMITS: usize = 10;
    const ONE_COMMIT: Duration = Duration::from_millis(100);
    let backend = Backend::start()?;
    let mut manager = backend.opened(2_000, None)?;
    let guest = define(backend.guest()?.wait()?);
    let (vmm, _) = guest.join().map_err(|_| anyhow::anyhow!("the guest"))??;
    let (mut committed, _) = pushed(&mut manager)?;
    ensure!(status(&mut manager)?.degraded);

    let rests = Arc::new(AtomicBool::new(false));
    let guest = write_until(vmm, Arc::clone(&rests));
    for _ in 0..COMMITS {
        // While one state is committed, the guest goes on changing it.
        thread::sleep(ONE_COMMIT);
        let sequence = committed;
        send(&mut manager, &ToBackend::Persisted { sequence })?;
        (committed, _) = pushed(&mut manager)?;
    }
    // It still writes: that it is degraded no more does not come from a pause.
    ensure!(!guest.is_finished());
    let caught_up = !status(&mut manager)?.degraded;
    rests.store(true, Ordering::SeqCst);
    goes(manager)?;
    guest.join().map_err(|_| anyhow::anyhow!("the guest"))??;
    ensure!(caught_up, "degraded for good");
    Ok(())
}

#[test]
fn a_new_manager_hears_that_a_vrot_is_degraded_before_anything_else() -> Result<()> {
    let backend = Backend::start()?;
    goes(backend.opened(50, None)?)?;
    let guest = define(backend.guest()?.wait()?);
    let (vmm, _) = guest.join().map_err(|_| anyhow::anyhow!("the guest"))??;
    let mut manager = backend.connect()?;
    match receive(&mut manager)? {
        FromBackend::Status(status) => ensure!(status.degraded, "{status:?}"),
        other => bail!("{other:?}"),
    }
    drop(vmm);
    Ok(())
}

#[test]
fn a_new_manager_is_welcome_although_nobody_saw_the_last_one_go() -> Result<()> {
    let backend = Backend::start()?;
    let mut last = backend.opened(50, None)?;
    let command = create_rsa_key();
    send(
        &mut last,
        &ToBackend::Execute {
            id: 1,
            command: command.into(),
        },
    )?;
    // While the engine is at work, one manager goes and the next one comes.
    goes(last)?;
    let mut next = backend.connect()?;
    ensure!(status(&mut next)?.vrot == Some(VROT.into()));
    Ok(())
}

#[test]
fn a_guest_that_is_suspended_waits_until_its_manager_lets_it_go_on_or_is_gone() -> Result<()> {
    let backend = Backend::start()?;
    let mut manager = backend.opened(50, None)?;
    let mut vmm = backend.guest()?.wait()?;
    send(&mut manager, &ToBackend::Suspend)?;
    loop {
        match receive(&mut manager)? {
            FromBackend::Suspended { volatile } => {
                ensure!(volatile.is_some());
                break;
            }
            FromBackend::Stopped => bail!("it ended"),
            _ => {}
        }
    }
    // TPM2_GetRandom
    let random = command(0x17b, &[0, 8]);
    let guest = thread::spawn(move || vmm.execute(&random).map(drop));
    thread::sleep(Duration::from_millis(200));
    ensure!(!guest.is_finished(), "it went on");
    goes(manager)?;
    guest.join().map_err(|_| anyhow::anyhow!("the guest"))?
}

#[test]
fn what_the_manager_asks_for_holds_before_a_command_that_came_at_the_same_time() -> Result<()> {
    for asked in [
        ToBackend::Hold { held: true },
        ToBackend::Suspend,
        ToBackend::Stop,
    ] {
        let mut backend = Backend::start()?;
        let mut manager = backend.opened(5, None)?;
        let mut vmm = backend.guest()?.wait()?;
        // Both are there when the backend looks next.
        let process = Pid::from_raw(backend.process.id().try_into()?);
        kill(process, Signal::SIGSTOP)?;
        waitpid(process, Some(WaitPidFlag::WUNTRACED))?;
        send(&mut manager, &asked)?;
        // TPM2_GetRandom
        vmm.data.write_all(&command(0x17b, &[0, 8]))?;
        kill(process, Signal::SIGCONT)?;
        let ends = matches!(asked, ToBackend::Stop);
        if ends {
            backend.process.wait()?;
        } else {
            // When it has answered twice, the turn is over in which it looked at both.
            for turn in [1, 2] {
                let command = command(0x17b, &[0, 8]).into();
                send(&mut manager, &ToBackend::Execute { id: turn, command })?;
                while !matches!(receive(&mut manager)?, FromBackend::Executed { id, .. } if id == turn)
                {
                }
            }
        }
        vmm.data.set_nonblocking(true)?;
        let answer = vmm.data.read(&mut [0; 64]).map_err(|error| error.kind());
        let is_unanswered = match answer {
            Ok(0) | Err(ErrorKind::ConnectionReset) => ends,
            Err(ErrorKind::WouldBlock) => !ends,
            _ => false,
        };
        ensure!(is_unanswered, "{asked:?}: {answer:?}");
    }
    Ok(())
}

#[test]
fn a_new_manager_is_given_what_the_last_one_did_not_acknowledge() -> Result<()> {
    let backend = Backend::start()?;
    goes(backend.opened(50, None)?)?;
    let guest = define(backend.guest()?.wait()?);
    let (mut vmm, code) = guest.join().map_err(|_| anyhow::anyhow!("the guest"))??;
    assert_eq!(code, 0);
    let mut manager = backend.connect()?;
    let (sequence, state) = pushed(&mut manager)?;
    send(&mut manager, &ToBackend::Persisted { sequence })?;
    let expected = vmm.execute(&command(0x169, &words(&[0x0150_0000])))?;
    ensure!(!status(&mut manager)?.degraded);

    // And that state is all there is to it.
    let restored = Backend::start()?;
    let manager = restored.opened(50, Some(state))?;
    let mut vmm = restored.vmm()?;
    vmm.execute(&STARTUP)?;
    assert_eq!(
        vmm.execute(&command(0x169, &words(&[0x0150_0000])))?,
        expected
    );
    drop(manager);
    Ok(())
}

#[test]
fn a_manager_that_takes_nothing_loses_its_connection_and_no_state_and_the_guest_goes_on()
-> Result<()> {
    let backend = Backend::start()?;
    // It reads nothing from now on.
    let hung = backend.opened(50, None)?;
    let mut vmm = backend.guest()?.wait()?;
    ensure!(define_index(&mut vmm, 0x0150_0000)? == 0);
    // More than fits into its connection.
    let mut longest = Duration::ZERO;
    let request = command(HOST_EVIDENCE_REQUEST, &[&[0, 32][..], &[7; 32]].concat());
    for _ in 0..4096 {
        let began = Instant::now();
        vmm.execute(&request)?;
        longest = longest.max(began.elapsed());
    }
    ensure!(longest < WRITE_DEADLINE, "a guest waited for {longest:?}");
    ensure!(define_index(&mut vmm, 0x0150_0001)? == 0);

    // It dials in again, although it never ended its first connection.
    let mut manager = backend.connect()?;
    let (sequence, _) = pushed(&mut manager)?;
    send(&mut manager, &ToBackend::Persisted { sequence })?;
    let now = status(&mut manager)?;
    ensure!(!now.degraded && now.persisted == now.pushed, "{now:?}");
    ensure!(sequence == now.pushed, "not the newest state: {sequence}");
    drop(hung);
    Ok(())
}

#[test]
fn a_vrot_that_another_process_serves_is_not_served() -> Result<()> {
    let lock = tempfile::tempdir()?;
    let lock = lock.path().join("lock");
    let first = Backend::start_locking(Some(&lock))?;
    let mut manager = first.opened(50, None)?;
    // In a folder of its own, nothing but the kernel knows of the first one.
    let folder = tempfile::tempdir()?;
    let mut refused = start_in(folder.path(), Some(&lock));
    let process = refused.stderr(Stdio::piped()).spawn()?;
    let mut second = Backend { process, folder };
    let deadline = Instant::now() + PATIENCE;
    let ended = loop {
        if let Some(status) = second.process.try_wait()? {
            break status;
        }
        ensure!(Instant::now() < deadline, "a second one serves it");
        thread::sleep(Duration::from_millis(5));
    };
    ensure!(!ended.success());
    let mut words = String::new();
    let said = second.process.stderr.as_mut().context("its words")?;
    said.read_to_string(&mut words)?;
    let expected = format!("process {} serves this vRoT", first.process.id());
    ensure!(words.contains(&expected), "{words}");
    ensure!(status(&mut manager)?.vrot == Some(VROT.into()));

    drop(first);
    Backend::start_locking(Some(&lock))?.opened(50, None)?;
    Ok(())
}

#[test]
fn state_of_another_vrot_generation_or_key_is_not_opened() -> Result<()> {
    let backend = Backend::start()?;
    let mut manager = backend.opened(50, None)?;
    let guest = backend.guest()?;
    let (_, state) = pushed(&mut manager)?;
    guest.wait()?;
    let good = || open(50, Some(state.clone()));
    for open in [
        Open {
            vrot: [8; 16].into(),
            ..good()?
        },
        Open {
            generation: 2,
            ..good()?
        },
        Open {
            key: StateKey::copied(&[0; 32])?,
            ..good()?
        },
        Open {
            permanent: Some(vec![0; 100].into()),
            ..good()?
        },
    ] {
        let mut other = Backend::start()?;
        let mut manager = other.connect()?;
        send(&mut manager, &ToBackend::Open(open))?;
        match receive(&mut manager)? {
            FromBackend::Failed { reason } => ensure!(reason.contains("does not open"), "{reason}"),
            other => bail!("{other:?}"),
        }
        other.process.wait()?;
    }
    Ok(())
}

#[test]
fn a_second_manager_and_another_user_are_turned_away() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this test changes users: run it as root"
    );
    const NOBODY: u32 = 65534;
    let backend = Backend::start()?;
    let mut manager = backend.opened(50, None)?;
    let mut second = backend.connect()?;
    second.set_read_timeout(Some(PATIENCE))?;
    let _ = send(&mut second, &ToBackend::Hello);
    ensure!(receive::<FromBackend>(&mut second).is_err());
    ensure!(!status(&mut manager)?.attached);

    // Even where the folder lets everybody in, the sockets do not.
    fs::set_permissions(backend.folder.path(), fs::Permissions::from_mode(0o755))?;
    for socket in ["manager.sock", "control.sock"] {
        let connect =
            "socket(S, PF_UNIX, SOCK_STREAM, 0); connect(S, sockaddr_un($ARGV[0])) or die $!";
        let output = Command::new("perl")
            .args(["-MSocket", "-e", connect])
            .arg(backend.folder.path().join(socket))
            .uid(NOBODY)
            .gid(NOBODY)
            .output()
            .context("perl is needed for this test")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(said.contains("Permission denied"), "{socket}: {said}");
    }
    Ok(())
}

#[test]
fn a_manager_hears_of_a_vmm_that_was_dropped_for_half_a_request() -> Result<()> {
    let backend = Backend::start()?;
    let mut manager = backend.opened(50, None)?;
    let mut vmm = backend.vmm()?;
    assert_eq!(told_attachment(&mut manager)?, (true, Some(0)));
    assert_eq!(told_attachment(&mut manager)?, (true, Some(1)));
    vmm.control.write_all(&[0, 0])?;
    assert_eq!(told_attachment(&mut manager)?, (false, Some(1)));
    assert_eq!(vmm.data.read(&mut [0; 4])?, 0, "the end of the stream");
    ensure!(!status(&mut manager)?.attached);
    let _next = backend.vmm()?;
    assert_eq!(told_attachment(&mut manager)?, (true, Some(1)));
    assert_eq!(told_attachment(&mut manager)?, (true, Some(2)));
    assert_eq!(status(&mut manager)?.vmms, Some(2));
    Ok(())
}

/// A tool that looks at the TPM and goes before there is a VM is none of the VMMs that ran one.
#[test]
fn a_peer_without_a_guest_is_not_counted_as_a_vmm_that_had_one() -> Result<()> {
    let backend = Backend::start()?;
    let mut manager = backend.opened(50, None)?;
    drop(backend.control_channel()?);
    assert_eq!(told_attachment(&mut manager)?, (true, Some(0)));
    assert_eq!(told_attachment(&mut manager)?, (false, Some(0)));
    Ok(())
}

#[test]
fn a_vmm_that_sends_ahead_and_reads_slowly_does_not_keep_its_manager_out() -> Result<()> {
    /// More answers than a socket has room for.
    const COMMANDS: usize = 2700;
    let backend = Backend::start()?;
    let mut manager = backend.opened(50, None)?;
    let mut vmm = backend.guest()?.wait()?;
    let random = command(0x17b, &[0, 8]);
    let mut data = vmm.data.try_clone()?;
    let all = random.repeat(COMMANDS);
    let ahead = thread::spawn(move || data.write_all(&all));
    // As nobody reads, the backend comes to wait for room.
    let mut waiting = 0;
    loop {
        let before = waiting;
        thread::sleep(Duration::from_millis(50));
        waiting = rustix::io::ioctl_fionread(&vmm.data)?;
        if waiting > 0 && waiting == before {
            break;
        }
    }
    let execute = ToBackend::Execute {
        id: 1,
        command: random.into(),
    };
    send(&mut manager, &execute)?;
    let (told, hears) = mpsc::channel();
    thread::spawn(move || -> Result<()> {
        while !matches!(receive(&mut manager)?, FromBackend::Executed { id: 1, .. }) {}
        Ok(told.send(manager)?)
    });
    // Each answer that is read makes room for one.
    let mut answer = [0; 20];
    let mut read = 0;
    let _manager = loop {
        match hears.recv_timeout(Duration::from_millis(5)) {
            Ok(manager) => break manager,
            Err(_) => vmm.data.read_exact(&mut answer)?,
        }
        read += 1;
    };
    ensure!(read < COMMANDS / 4, "{read} answers came first");
    for _ in read..COMMANDS {
        vmm.data.read_exact(&mut answer)?;
    }
    ahead.join().map_err(|_| anyhow::anyhow!("the VMM"))??;
    Ok(())
}

#[test]
fn a_manager_that_does_not_answer_is_sent_one_state_and_then_the_newest() -> Result<()> {
    let backend = Backend::start()?;
    let mut manager = backend.opened(50, None)?;
    define_twenty(&mut backend.guest()?.wait()?)?;
    let (status, states) = status_after_states(&mut manager, 20)?;
    assert_eq!(states, 1, "{status:?}");
    let newest = status.pushed;
    send(
        &mut manager,
        &ToBackend::Persisted {
            sequence: newest - 1,
        },
    )?;
    let (sequence, state) = pushed(&mut manager)?;
    assert_eq!(sequence, newest);
    send(&mut manager, &ToBackend::Persisted { sequence })?;
    ensure!(!told_status(&mut manager)?.degraded);

    has_twenty(state)
}

#[test]
fn a_backend_that_is_told_to_end_hands_its_newest_state_over_before() -> Result<()> {
    let backend = Backend::start()?;
    let mut manager = backend.opened(50, None)?;
    define_twenty(&mut backend.guest()?.wait()?)?;
    send(&mut manager, &ToBackend::Stop)?;
    let mut newest = None;
    loop {
        match receive(&mut manager)? {
            FromBackend::StateChanged { sealed, .. } => newest = Some(sealed.into()),
            FromBackend::Stopped => return has_twenty(newest.context("a state")?),
            _ => {}
        }
    }
}

#[test]
fn a_vmm_that_is_early_waits_for_key_and_state() -> Result<()> {
    let backend = Backend::start()?;
    let socket = backend.folder.path().join("control.sock");
    let early = thread::spawn(move || Vmm::over(connect_to(&socket)?));
    let mut manager = backend.connect()?;
    ensure!(!status(&mut manager)?.attached);
    ensure!(!early.is_finished());
    send(&mut manager, &ToBackend::Open(open(50, None)?))?;
    let mut vmm = early.join().map_err(|_| anyhow::anyhow!("the VMM"))??;
    assert_eq!(vmm.control(&words(&[2, 0]), 4)?, [0; 4]);
    Ok(())
}

/// What a change costs a manager's disk depends on what changed.
#[test]
fn of_a_large_state_eight_changed_bytes_change_a_few_pieces() -> Result<()> {
    const LARGE: std::ops::Range<u32> = 0x0150_0100..0x0150_0128;
    let backend = Backend::start()?;
    let mut manager = backend.opened(60_000, None)?;
    let (newest, states) = mpsc::channel();
    thread::spawn(move || -> Result<()> {
        loop {
            let (sequence, sealed) = pushed(&mut manager)?;
            newest.send(sealed)?;
            send(&mut manager, &ToBackend::Persisted { sequence })?;
        }
    });
    let mut vmm = backend.guest()?.wait()?;
    for index in LARGE {
        ensure!(define_index_of(&mut vmm, index, 2048)? == 0);
        for offset in [0u16, 1024] {
            let data = [&[4, 0][..], &[7; 1024], &offset.to_be_bytes()].concat();
            nv_write(&mut vmm, index, &data)?;
        }
    }
    let mut before = states.try_iter().last().context("no state")?;
    ensure!(before.len() > 80_000, "{} bytes", before.len());
    for number in 0..20u64 {
        let data = [&[0, 8][..], &number.to_be_bytes(), &[2, 0]].concat();
        nv_write(&mut vmm, 0x0150_0110, &data)?;
        let after = states.try_iter().last().context("no state")?;
        ensure!(after.len() == before.len());
        let pieces = before.chunks(1024).zip(after.chunks(1024));
        let changed = pieces.filter(|(a, b)| a != b).count();
        ensure!((1..=8).contains(&changed), "{changed} pieces changed");
        before = after;
    }
    Ok(())
}

/// TPM2_NV_Write with the owner's empty password.
fn nv_write(vmm: &mut Vmm, index: u32, data: &[u8]) -> Result<()> {
    let response = vmm.execute(&with_password(0x137, &[OWNER, index], data))?;
    ensure!(response.get(6..10) == Some(&[0; 4]), "{response:02x?}");
    Ok(())
}
