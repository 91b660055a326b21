//! A managed backend, its manager and its guest.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use backend_link::StateKey;
use backend_link::frame::{receive, send};
use backend_link::message::{FromBackend, Open, Status, ToBackend};

use super::{STARTUP, Vmm, code, command, with_password, words};

pub(crate) const VROT: [u8; 16] = [7; 16];
pub(crate) const KEY: [u8; 32] = [9; 32];
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const OWNER: u32 = 0x4000_0001;

/// A backend in a folder of its own; it ends with the test.
pub(crate) struct Backend {
    pub(crate) process: Child,
    pub(crate) folder: tempfile::TempDir,
}

/// A guest at work beside the test.
pub(crate) struct Guest(thread::JoinHandle<Result<Vmm>>);

impl Backend {
    pub(crate) fn start() -> Result<Self> {
        Self::start_locking(None)
    }

    pub(crate) fn start_locking(lock: Option<&Path>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let process = start_in(folder.path(), lock).spawn()?;
        Ok(Self { process, folder })
    }

    pub(crate) fn connect(&self) -> Result<UnixStream> {
        connect_to(&self.folder.path().join("manager.sock"))
    }

    /// A manager that has handed over key and state.
    pub(crate) fn opened(&self, deadline_ms: u32, state: Option<Vec<u8>>) -> Result<UnixStream> {
        let mut manager = self.connect()?;
        send(&mut manager, &ToBackend::Open(open(deadline_ms, state)?))?;
        match receive(&mut manager)? {
            FromBackend::Opened => Ok(manager),
            other => bail!("{other:?}"),
        }
    }

    /// A peer that says nothing.
    pub(crate) fn control_channel(&self) -> Result<UnixStream> {
        connect_to(&self.folder.path().join("control.sock"))
    }

    pub(crate) fn vmm(&self) -> Result<Vmm> {
        let mut vmm = Vmm::over(connect_to(&self.folder.path().join("control.sock"))?)?;
        ensure!(vmm.control(&words(&[2, 0]), 4)? == [0; 4], "CMD_INIT");
        Ok(vmm)
    }

    /// A guest that starts its TPM, which changes the permanent state.
    pub(crate) fn guest(&self) -> Result<Guest> {
        let socket = self.folder.path().join("control.sock");
        Ok(Guest(thread::spawn(move || {
            let mut vmm = Vmm::over(connect_to(&socket)?)?;
            ensure!(vmm.control(&words(&[2, 0]), 4)? == [0; 4], "CMD_INIT");
            vmm.execute(&STARTUP)?;
            Ok(vmm)
        })))
    }
}

pub(crate) fn start_in(folder: &Path, lock: Option<&Path>) -> Command {
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
    pub(crate) fn wait(self) -> Result<Vmm> {
        self.0.join().map_err(|_| anyhow::anyhow!("the guest"))?
    }
}

/// Changes the permanent state often.
pub(crate) fn define_twenty(vmm: &mut Vmm) -> Result<()> {
    for index in 0..20 {
        let area = [
            0, 0, 0, 14, 0x01, 0x50, 0, index, 0, 0x0b, 0x02, 0x02, 0, 0x02, 0, 0, 0, 8,
        ];
        vmm.execute(&with_password(0x12a, &[OWNER], &area))?;
    }
    Ok(())
}

/// The last of these changes is in a state.
pub(crate) fn has_twenty(state: Vec<u8>) -> Result<()> {
    let restored = Backend::start()?;
    let _manager = restored.opened(50, Some(state))?;
    let mut vmm = restored.vmm()?;
    vmm.execute(&STARTUP)?;
    let last = vmm.execute(&command(0x169, &words(&[0x0150_0013])))?;
    assert_eq!(last.get(6..10), Some(&[0; 4][..]));
    Ok(())
}

/// TPM2_NV_DefineSpace: the response code, when it comes.
pub(crate) fn define(mut vmm: Vmm) -> thread::JoinHandle<Result<(Vmm, u32)>> {
    thread::spawn(move || {
        let code = define_index(&mut vmm, 0x0150_0000)?;
        Ok((vmm, code))
    })
}

pub(crate) fn define_index(vmm: &mut Vmm, index: u32) -> Result<u32> {
    define_index_of(vmm, index, 8)
}

pub(crate) fn define_index_of(vmm: &mut Vmm, index: u32, size: u16) -> Result<u32> {
    let public = [
        &[0, 0, 0, 14],
        &index.to_be_bytes()[..],
        &[0, 0x0b, 0x02, 0x02, 0, 0x02, 0, 0],
        &size.to_be_bytes(),
    ]
    .concat();
    let response = vmm.execute(&with_password(0x12a, &[OWNER], &public))?;
    Ok(code(&response))
}

/// TPM2_NV_Write to what [`define`] made, again and again.
pub(crate) fn write_until(mut vmm: Vmm, rests: Arc<AtomicBool>) -> thread::JoinHandle<Result<()>> {
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

pub(crate) fn open(durability_deadline_ms: u32, state: Option<Vec<u8>>) -> Result<Open> {
    Ok(Open {
        vrot: VROT.into(),
        generation: 1,
        key: StateKey::copied(&KEY)?,
        permanent: state.map(Into::into),
        durability_deadline_ms,
        volatile: None,
        is_copy: false,
        answer_within_ms: None,
    })
}

pub(crate) fn connect_to(socket: &Path) -> Result<UnixStream> {
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
pub(crate) fn pushed(manager: &mut UnixStream) -> Result<(u64, Vec<u8>)> {
    loop {
        if let FromBackend::StateChanged { sequence, sealed } = receive(manager)? {
            return Ok((sequence, sealed.into()));
        }
    }
}

pub(crate) fn status(manager: &mut UnixStream) -> Result<Status> {
    send(manager, &ToBackend::Hello)?;
    told_status(manager)
}

/// TPM2_CreatePrimary: an RSA key takes long to find.
pub(crate) fn create_rsa_key() -> Vec<u8> {
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
pub(crate) fn status_after_states(
    manager: &mut UnixStream,
    changes: u64,
) -> Result<(Status, usize)> {
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

/// Whether a VMM is attached, and how many have had a guest so far.
pub(crate) fn told_attachment(manager: &mut UnixStream) -> Result<(bool, Option<u64>)> {
    loop {
        if let FromBackend::Attachment { attached, vmms } = receive(manager)? {
            return Ok((attached, vmms));
        }
    }
}

pub(crate) fn told_status(manager: &mut UnixStream) -> Result<Status> {
    loop {
        if let FromBackend::Status(status) = receive(manager)? {
            return Ok(status);
        }
    }
}
