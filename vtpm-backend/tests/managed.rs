//! A backend and its manager: state is durable before the guest is answered, or the vRoT says
//! that it is degraded.

mod support;

use std::fs;
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
        let folder = tempfile::tempdir()?;
        let process = Command::new(env!("CARGO_BIN_EXE_vtpm-backend"))
            .arg("--runtime")
            .arg(folder.path())
            .stdin(Stdio::null())
            .spawn()?;
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

/// TPM2_NV_DefineSpace: the response code, when it comes.
fn define(mut vmm: Vmm) -> thread::JoinHandle<Result<(Vmm, u32)>> {
    thread::spawn(move || {
        let index = [
            0, 0, 0, 14, 0x01, 0x50, 0, 0, 0, 0x0b, 0x02, 0x02, 0, 0x02, 0, 0, 0, 8,
        ];
        let response = vmm.execute(&with_password(0x12a, &[OWNER], &index))?;
        let code = response.get(6..10).context("a response code")?;
        Ok((vmm, u32::from_be_bytes(code.try_into()?)))
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

fn told_status(manager: &mut UnixStream) -> Result<Status> {
    loop {
        if let FromBackend::Status(status) = receive(manager)? {
            return Ok(status);
        }
    }
}
