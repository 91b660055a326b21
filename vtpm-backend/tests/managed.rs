//! A backend and its manager: state is durable before the guest is answered, or the vRoT says
//! that it is degraded.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use support::{STARTUP, Vmm, command, with_password, words};
use vtpm_backend::message::{FromBackend, Open, StateKey, Status, ToBackend, receive, send};
use vtpm_backend::sockets::WRITE_DEADLINE;

const VROT: [u8; 16] = [7; 16];
const KEY: [u8; 32] = [9; 32];
const PATIENCE: Duration = Duration::from_secs(60);
const OWNER: u32 = 0x4000_0001;

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
    ensure!(status(&mut manager)?.degraded);

    let rests = Arc::new(AtomicBool::new(false));
    let guest = write_until(vmm, Arc::clone(&rests));
    let (mut committed, _) = pushed(&mut manager)?;
    for _ in 0..COMMITS {
        // While one state is committed, the guest pushes what it likes: the next in turn.
        let mut next = None;
        manager.set_read_timeout(Some(ONE_COMMIT))?;
        let until = Instant::now() + ONE_COMMIT;
        while Instant::now() < until
            && let Ok((sequence, _)) = pushed(&mut manager)
        {
            next = Some(sequence);
        }
        manager.set_read_timeout(Some(PATIENCE))?;
        let sequence = committed;
        send(&mut manager, &ToBackend::Persisted { sequence })?;
        match next {
            Some(next) => committed = next,
            None => break,
        }
    }
    // It still writes: that it is degraded no more does not come from a pause.
    ensure!(!guest.is_finished());
    let caught_up = !status(&mut manager)?.degraded;
    rests.store(true, Ordering::SeqCst);
    drop(manager);
    guest.join().map_err(|_| anyhow::anyhow!("the guest"))??;
    ensure!(caught_up, "degraded for good");
    Ok(())
}

#[test]
fn a_new_manager_hears_that_a_vrot_is_degraded_before_anything_else() -> Result<()> {
    let backend = Backend::start()?;
    let manager = backend.opened(50, None)?;
    drop(manager);
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
    drop(last);
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
    drop(manager);
    guest.join().map_err(|_| anyhow::anyhow!("the guest"))?
}

#[test]
fn a_new_manager_is_given_what_the_last_one_did_not_acknowledge() -> Result<()> {
    let backend = Backend::start()?;
    let manager = backend.opened(50, None)?;
    drop(manager);
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
    let mut longest = Duration::ZERO;
    let last = 0x0150_0000 + 63;
    for index in 0x0150_0000..=last {
        let began = Instant::now();
        let defined = define_index(&mut vmm, index)?;
        ensure!(defined == 0, "response code 0x{defined:x}");
        longest = longest.max(began.elapsed());
    }
    ensure!(longest < WRITE_DEADLINE, "a guest waited for {longest:?}");

    // It dials in again, although it never ended its first connection.
    let mut manager = backend.connect()?;
    let (sequence, _) = pushed(&mut manager)?;
    send(&mut manager, &ToBackend::Persisted { sequence })?;
    let now = status(&mut manager)?;
    ensure!(!now.degraded && now.persisted == now.pushed, "{now:?}");
    ensure!(sequence >= 64, "not the newest state: {sequence}");
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
    ensure!(told_attachment(&mut manager)?);
    vmm.control.write_all(&[0, 0])?;
    ensure!(!told_attachment(&mut manager)?);
    assert_eq!(vmm.data.read(&mut [0; 4])?, 0, "the end of the stream");
    ensure!(!status(&mut manager)?.attached);
    let _next = backend.vmm()?;
    ensure!(told_attachment(&mut manager)?);
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

/// A backend in a folder of its own; it ends with the test.
struct Backend {
    process: Child,
    folder: tempfile::TempDir,
}

/// A guest at work beside the test.
struct Guest(thread::JoinHandle<Result<Vmm>>);

impl Backend {
    fn start() -> Result<Self> {
        Self::start_locking(None)
    }

    fn start_locking(lock: Option<&Path>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let process = start_in(folder.path(), lock).spawn()?;
        Ok(Self { process, folder })
    }

    fn connect(&self) -> Result<UnixStream> {
        connect_to(&self.folder.path().join("manager.sock"))
    }

    /// A manager that has handed over key and state.
    fn opened(&self, deadline_ms: u32, state: Option<Vec<u8>>) -> Result<UnixStream> {
        let mut manager = self.connect()?;
        send(&mut manager, &ToBackend::Open(open(deadline_ms, state)?))?;
        match receive(&mut manager)? {
            FromBackend::Opened => Ok(manager),
            other => bail!("{other:?}"),
        }
    }

    fn vmm(&self) -> Result<Vmm> {
        let mut vmm = Vmm::over(connect_to(&self.folder.path().join("control.sock"))?)?;
        ensure!(vmm.control(&words(&[2, 0]), 4)? == [0; 4], "CMD_INIT");
        Ok(vmm)
    }

    /// A guest that starts its TPM, which changes the permanent state.
    fn guest(&self) -> Result<Guest> {
        let socket = self.folder.path().join("control.sock");
        Ok(Guest(thread::spawn(move || {
            let mut vmm = Vmm::over(connect_to(&socket)?)?;
            ensure!(vmm.control(&words(&[2, 0]), 4)? == [0; 4], "CMD_INIT");
            vmm.execute(&STARTUP)?;
            Ok(vmm)
        })))
    }
}

fn start_in(folder: &Path, lock: Option<&Path>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vtpm-backend"));
    command.arg("--runtime").arg(folder).stdin(Stdio::null());
    if let Some(lock) = lock {
        command.arg("--lock").arg(lock);
    }
    command
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Guest {
    fn wait(self) -> Result<Vmm> {
        self.0.join().map_err(|_| anyhow::anyhow!("the guest"))?
    }
}

/// Changes the permanent state often.
fn define_twenty(vmm: &mut Vmm) -> Result<()> {
    for index in 0..20 {
        let area = [
            0, 0, 0, 14, 0x01, 0x50, 0, index, 0, 0x0b, 0x02, 0x02, 0, 0x02, 0, 0, 0, 8,
        ];
        vmm.execute(&with_password(0x12a, &[OWNER], &area))?;
    }
    Ok(())
}

/// The last of these changes is in a state.
fn has_twenty(state: Vec<u8>) -> Result<()> {
    let restored = Backend::start()?;
    let _manager = restored.opened(50, Some(state))?;
    let mut vmm = restored.vmm()?;
    vmm.execute(&STARTUP)?;
    let last = vmm.execute(&command(0x169, &words(&[0x0150_0013])))?;
    assert_eq!(last.get(6..10), Some(&[0; 4][..]));
    Ok(())
}

/// TPM2_NV_DefineSpace: the response code, when it comes.
fn define(mut vmm: Vmm) -> thread::JoinHandle<Result<(Vmm, u32)>> {
    thread::spawn(move || {
        let code = define_index(&mut vmm, 0x0150_0000)?;
        Ok((vmm, code))
    })
}

fn define_index(vmm: &mut Vmm, index: u32) -> Result<u32> {
    let public = [
        &[0, 0, 0, 14],
        &index.to_be_bytes()[..],
        &[0, 0x0b, 0x02, 0x02, 0, 0x02, 0, 0, 0, 8],
    ]
    .concat();
    let response = vmm.execute(&with_password(0x12a, &[OWNER], &public))?;
    let code = response.get(6..10).context("a response code")?;
    Ok(u32::from_be_bytes(code.try_into()?))
}

/// TPM2_NV_Write to what [`define`] made, again and again.
fn write_until(mut vmm: Vmm, rests: Arc<AtomicBool>) -> thread::JoinHandle<Result<()>> {
    thread::spawn(move || {
        let mut number = 0u64;
        while !rests.load(Ordering::SeqCst) {
            number += 1;
            let data = [&[0, 8][..], &number.to_be_bytes(), &[0, 0]].concat();
            let response = vmm.execute(&with_password(0x137, &[OWNER, 0x0150_0000], &data))?;
            ensure!(response.get(6..10) == Some(&[0; 4]), "{response:02x?}");
        }
        Ok(())
    })
}

fn open(durability_deadline_ms: u32, state: Option<Vec<u8>>) -> Result<Open> {
    Ok(Open {
        vrot: VROT.into(),
        generation: 1,
        key: StateKey::copied(&KEY)?,
        permanent: state.map(Into::into),
        durability_deadline_ms,
        volatile: None,
    })
}

fn connect_to(socket: &Path) -> Result<UnixStream> {
    let deadline = Instant::now() + PATIENCE;
    let socket = PathBuf::from(socket);
    loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(error) => ensure!(Instant::now() < deadline, "{}: {error}", socket.display()),
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// The next state that is pushed.
fn pushed(manager: &mut UnixStream) -> Result<(u64, Vec<u8>)> {
    loop {
        if let FromBackend::StateChanged { sequence, sealed } = receive(manager)? {
            return Ok((sequence, sealed.into()));
        }
    }
}

fn status(manager: &mut UnixStream) -> Result<Status> {
    send(manager, &ToBackend::Hello)?;
    told_status(manager)
}

/// TPM2_CreatePrimary: an RSA key takes long to find.
fn create_rsa_key() -> Vec<u8> {
    let sensitive = [0, 4, 0, 0, 0, 0];
    let attributes = 0x0003_0072u32.to_be_bytes();
    let rsa = [&[0, 1, 0, 0x0b][..], &attributes].concat();
    let parameters = [0, 6, 0, 0x80, 0, 0x43, 0, 0x10, 0x08, 0, 0, 0, 0, 0, 0, 0];
    let public = [&rsa[..], &[0, 0], &parameters].concat();
    let length = [0, u8::try_from(public.len()).unwrap_or(u8::MAX)];
    let rest = [&sensitive[..], &length, &public, &[0, 0], &[0; 4]].concat();
    with_password(0x131, &[OWNER], &rest)
}

/// The status that is asked for now, and how many states came before it.
fn status_after_states(manager: &mut UnixStream, changes: u64) -> Result<(Status, usize)> {
    send(manager, &ToBackend::Hello)?;
    let mut states = 0;
    loop {
        match receive(manager)? {
            FromBackend::StateChanged { .. } => states += 1,
            FromBackend::Status(status) if status.pushed >= changes => {
                return Ok((status, states));
            }
            _ => {}
        }
    }
}

fn told_attachment(manager: &mut UnixStream) -> Result<bool> {
    loop {
        if let FromBackend::Attachment { attached } = receive(manager)? {
            return Ok(attached);
        }
    }
}

fn told_status(manager: &mut UnixStream) -> Result<Status> {
    loop {
        if let FromBackend::Status(status) = receive(manager)? {
            return Ok(status);
        }
    }
}
