//! Backends that are forks of one process: alike, and yet each a TPM of its own.

mod support;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{command, with_password};
use tempfile::TempDir;
use vtpm_backend::admission::VmmAdmission;
use vtpm_backend::message::{FromBackend, Open, StateKey, ToBackend, receive, send};
use vtpm_backend::nursery::{FromNursery, ToNursery};

const PATIENCE: Duration = Duration::from_secs(60);
const ENDORSEMENT: u32 = 0x4000_000b;

#[test]
fn two_backends_of_one_nursery_share_no_randomness_and_no_seed() -> Result<()> {
    let mut nursery = Nursery::start()?;
    let (one, two) = (nursery.bear()?, nursery.bear()?);
    // TPM2_GetRandom
    let random = command(0x17b, &[0, 32]);
    ensure!(one.execute(&random)? != two.execute(&random)?);
    let primary = create_primary();
    let (first, second) = (one.execute(&primary)?, two.execute(&primary)?);
    for response in [&first, &second] {
        ensure!(response.get(6..10) == Some(&[0; 4]), "{response:02x?}");
    }
    ensure!(first != second, "two TPMs with one endorsement seed");
    Ok(())
}

#[test]
fn the_end_of_a_backend_is_told_with_its_cause() -> Result<()> {
    let mut nursery = Nursery::start()?;
    let (killed, other) = (nursery.bear()?, nursery.bear()?);
    kill(Pid::from_raw(killed.process), Signal::SIGKILL)?;
    match receive(&mut nursery.manager)? {
        FromNursery::Ended { process, status } => {
            ensure!(process == killed.process);
            ensure!(status.contains("SIGKILL"), "{status}");
        }
        other => bail!("{other:?}"),
    }
    other.execute(&command(0x17b, &[0, 8]))?;
    Ok(())
}

#[test]
fn a_backend_without_a_folder_ends_and_the_next_one_is_born() -> Result<()> {
    let mut nursery = Nursery::start()?;
    let runtime = "/nonexistent/folder".to_owned();
    send(
        &mut nursery.manager,
        &ToNursery::Bear {
            runtime,
            lock: None,
            admission: VmmAdmission::default(),
        },
    )?;
    let FromNursery::Born { process: unlucky } = receive(&mut nursery.manager)? else {
        bail!("not born");
    };
    match receive(&mut nursery.manager)? {
        FromNursery::Ended { process, status } => {
            ensure!(process == unlucky);
            ensure!(status == "exit status: 1", "{status}");
        }
        other => bail!("{other:?}"),
    }
    nursery.bear()?;
    Ok(())
}

#[test]
fn a_nursery_ends_with_its_manager_and_backends_go_on() -> Result<()> {
    let mut nursery = Nursery::start()?;
    let backend = nursery.bear()?;
    nursery.manager.shutdown(std::net::Shutdown::Both)?;
    ensure!(nursery.process.wait()?.success());
    backend.execute(&command(0x17b, &[0, 8]))?;
    Ok(())
}

struct Nursery {
    process: Child,
    manager: UnixStream,
}

/// A backend with key and state; it ends with the test.
struct Backend {
    process: i32,
    manager: UnixStream,
    _folder: TempDir,
}

impl Nursery {
    fn start() -> Result<Self> {
        let (manager, theirs) = UnixStream::pair()?;
        manager.set_read_timeout(Some(PATIENCE))?;
        let process = Command::new(env!("CARGO_BIN_EXE_vtpm-backend"))
            .arg("--nursery")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()?;
        Ok(Self { process, manager })
    }

    fn bear(&mut self) -> Result<Backend> {
        let folder = tempfile::tempdir()?;
        let runtime = folder.path().display().to_string();
        send(
            &mut self.manager,
            &ToNursery::Bear {
                runtime,
                lock: None,
                admission: VmmAdmission::default(),
            },
        )?;
        let FromNursery::Born { process } = receive(&mut self.manager)? else {
            bail!("not born");
        };
        let socket = folder.path().join("manager.sock");
        let deadline = Instant::now() + PATIENCE;
        let mut manager = loop {
            match UnixStream::connect(&socket) {
                Ok(manager) => break manager,
                Err(error) => ensure!(Instant::now() < deadline, "{error}"),
            }
            thread::sleep(Duration::from_millis(2));
        };
        manager.set_read_timeout(Some(PATIENCE))?;
        let open = Open {
            vrot: [7; 16].into(),
            generation: 1,
            key: StateKey::new([9; 32]),
            permanent: None,
            durability_deadline_ms: 1,
            volatile: None,
        };
        send(&mut manager, &ToBackend::Open(open))?;
        ensure!(matches!(receive(&mut manager)?, FromBackend::Opened));
        Ok(Backend {
            process,
            manager,
            _folder: folder,
        })
    }
}

impl Backend {
    fn execute(&self, command: &[u8]) -> Result<Vec<u8>> {
        let mut manager = self.manager.try_clone()?;
        let command = command.to_vec().into();
        send(&mut manager, &ToBackend::Execute { id: 1, command })?;
        loop {
            match receive(&mut manager).context("the backend has ended")? {
                FromBackend::Executed { response, .. } => return Ok(response.into()),
                FromBackend::StateChanged { sequence, .. } => {
                    send(&mut manager, &ToBackend::Persisted { sequence })?;
                }
                _ => {}
            }
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.process), Signal::SIGKILL);
    }
}

impl Drop for Nursery {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// TPM2_CreatePrimary of a P-256 storage key from the endorsement seed: the same seed gives the
/// same key.
fn create_primary() -> Vec<u8> {
    let sensitive = [0, 4, 0, 0, 0, 0];
    let ecc = [&[0, 0x23, 0, 0x0b][..], &0x0003_0072u32.to_be_bytes()].concat();
    // No policy; AES-128 CFB; no scheme; P-256; no derivation; no unique point.
    let rest = [
        0, 0, 0, 6, 0, 0x80, 0, 0x43, 0, 0x10, 0, 3, 0, 0x10, 0, 0, 0, 0,
    ];
    let public = [&ecc[..], &rest].concat();
    let length = [0, u8::try_from(public.len()).unwrap_or(u8::MAX)];
    let parameters = [&sensitive[..], &length, &public, &[0, 0], &[0; 4]].concat();
    with_password(0x131, &[ENDORSEMENT], &parameters)
}
