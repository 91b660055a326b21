//! A VMM as the backend sees it: the TPM emulator protocol with a data descriptor.

use std::io::{IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use test_support::tpm_commands::{self, pcr_extend};
pub(crate) use test_support::tpm_commands::{command, pcr_read, with_password};
use test_support::virtio_tpm::Driver;
use tpm_wire::{MAX_SIZE, Response, read_frame};

/// An attached VMM with a guest that sends TPM commands.
pub(crate) struct Vmm {
    control: UnixStream,
    data: UnixStream,
}

/// Longer than anything takes on a machine that does other things.
const PATIENCE: Duration = Duration::from_secs(60);
const CMD_INIT: u32 = 2;
const CMD_GET_STATEBLOB: u32 = 0xc;
const CMD_SET_STATEBLOB: u32 = 0xd;
const CMD_STOP: u32 = 0xe;
const CMD_SET_DATAFD: u32 = 0x10;
/// `TPM2_Startup(TPM_SU_CLEAR)`
const STARTUP: &str = "80010000000c000001440000";

/// How a guest begins.
#[derive(Clone, Copy)]
pub(crate) enum Attach<'b> {
    /// With its firmware, on a TPM that was reset.
    Boot,
    /// In the middle, on a TPM that was suspended by the manager.
    Resumed,
    /// In the middle, with state that the VMM kept: kind and contents.
    Bringing(&'b [(u32, &'b [u8])]),
}

impl Drop for Vmm {
    /// So that its end is seen at once. Closing alone is not: a program that another test starts has a
    /// copy of every descriptor for a moment, between its fork and its exec.
    fn drop(&mut self) {
        for channel in [&self.control, &self.data] {
            let _ = channel.shutdown(Shutdown::Both);
        }
    }
}

impl Vmm {
    /// Attaches, as QEMU does, and starts the TPM, as a guest's firmware does.
    pub(crate) fn attach(socket: &Path) -> Result<Self> {
        Self::attach_as(socket, Attach::Boot)
    }

    /// Attaches, as QEMU does.
    pub(crate) fn attach_as(socket: &Path, attach: Attach<'_>) -> Result<Self> {
        let control = UnixStream::connect(socket)?;
        control.set_read_timeout(Some(PATIENCE))?;
        let (data, theirs) = UnixStream::pair()?;
        data.set_read_timeout(Some(PATIENCE))?;
        let mut vmm = Self { control, data };
        sendmsg::<()>(
            vmm.control.as_raw_fd(),
            &[IoSlice::new(&CMD_SET_DATAFD.to_be_bytes())],
            &[ControlMessage::ScmRights(&[theirs.as_raw_fd()])],
            MsgFlags::empty(),
            None,
        )?;
        vmm.result()?;
        if let Attach::Bringing(state) = attach {
            vmm.control.write_all(&CMD_STOP.to_be_bytes())?;
            vmm.result()?;
            for (kind, state) in state {
                let length = u32::try_from(state.len())?;
                let request = [CMD_SET_STATEBLOB, 2, *kind, length];
                let mut request: Vec<u8> = request.iter().flat_map(|w| w.to_be_bytes()).collect();
                request.extend_from_slice(state);
                vmm.control.write_all(&request)?;
                vmm.result()?;
            }
        }
        let delete_volatile = u32::from(matches!(attach, Attach::Bringing(_)));
        vmm.control.write_all(&CMD_INIT.to_be_bytes())?;
        vmm.control.write_all(&delete_volatile.to_be_bytes())?;
        vmm.result()?;
        if matches!(attach, Attach::Boot) {
            vmm.succeed(&hex::decode(STARTUP)?)?;
        }
        Ok(vmm)
    }

    /// A part of the TPM's state, as QEMU asks for it when it saves a VM.
    pub(crate) fn state(&mut self, kind: u32) -> Result<Vec<u8>> {
        for word in [CMD_GET_STATEBLOB, 1, kind, 0] {
            self.control.write_all(&word.to_be_bytes())?;
        }
        self.result()?;
        let mut words = [0; 12];
        self.control.read_exact(&mut words)?;
        let [flags, total, length] = [0, 4, 8].map(|at| {
            words[at..at + 4]
                .iter()
                .fold(0, |n, b| n << 8 | u32::from(*b))
        });
        ensure!(flags == 2, "it is not sealed");
        ensure!(total == length, "it does not come whole");
        let mut state = vec![0; usize::try_from(length)?];
        self.control.read_exact(&mut state)?;
        Ok(state)
    }

    /// Sends a command that must succeed; the response without its header.
    pub(crate) fn succeed(&mut self, command: &[u8]) -> Result<Vec<u8>> {
        Commands::succeed(self, command)
    }

    /// Sends a command; response code, and the response without its header.
    pub(crate) fn execute(&mut self, command: &[u8]) -> Result<(u32, Vec<u8>)> {
        self.data.write_all(command)?;
        let response = read_frame(&mut self.data, MAX_SIZE)?.context("the TPM is gone")?;
        let response = Response::parse(&response).context("no response")?;
        Ok((response.code().raw(), response.body().to_vec()))
    }

    fn result(&mut self) -> Result<()> {
        let mut result = [0; 4];
        self.control.read_exact(&mut result)?;
        ensure!(result == [0; 4], "the control channel refused: {result:?}");
        Ok(())
    }
}

/// Whatever carries a guest's commands to its TPM.
pub(crate) trait Commands {
    /// Sends a command; response code, and the response without its header.
    fn execute(&mut self, command: &[u8]) -> Result<(u32, Vec<u8>)>;

    /// Sends a command that must succeed; the response without its header.
    fn succeed(&mut self, command: &[u8]) -> Result<Vec<u8>> {
        let (code, response) = self.execute(command)?;
        ensure!(
            code == 0,
            "{}: response code 0x{code:x}",
            hex::encode(command)
        );
        Ok(response)
    }
}

impl Commands for Vmm {
    fn execute(&mut self, command: &[u8]) -> Result<(u32, Vec<u8>)> {
        Vmm::execute(self, command)
    }
}

impl Commands for Driver {
    fn execute(&mut self, command: &[u8]) -> Result<(u32, Vec<u8>)> {
        let response = Driver::execute(self, command)?;
        let response = Response::parse(&response).context("no response")?;
        Ok((response.code().raw(), response.body().to_vec()))
    }
}

/// `TPM_RH_OWNER`
pub(crate) const OWNER: u32 = 0x4000_0001;

/// TPM2_PCR_Extend of PCR 16.
pub(crate) fn extend(vmm: &mut impl Commands) -> Result<()> {
    vmm.succeed(&pcr_extend(16)).map(drop)
}

/// What is in PCR 16 of the SHA-256 bank.
pub(crate) fn pcr(vmm: &mut impl Commands) -> Result<[u8; 32]> {
    let response = vmm.succeed(&pcr_read(16))?;
    response.last_chunk().copied().context("a digest")
}

/// TPM2_EvictControl by the owner, of this object at this handle.
pub(crate) fn evict_control(object: u32, handle: u32) -> Vec<u8> {
    with_password(0x120, &[OWNER, object], &handle.to_be_bytes())
}

/// TPM2_CreatePrimary in the owner's hierarchy, of a key with this template; its handle.
pub(crate) fn create_primary(vmm: &mut Vmm, template: &[u8]) -> Result<u32> {
    let size = u16::try_from(template.len())?;
    let sensitive = [0, 4, 0, 0, 0, 0];
    let parameters = [&sensitive[..], &size.to_be_bytes(), template, &[0; 6]].concat();
    let made = vmm.succeed(&with_password(0x131, &[OWNER], &parameters))?;
    Ok(u32::from_be_bytes(*made.first_chunk().context("a handle")?))
}

/// TPM2_NV_DefineSpace in the owner hierarchy, for eight bytes: changes permanent state.
pub(crate) fn define_index(vmm: &mut Vmm, index: u32) -> Result<()> {
    let public = [
        &index.to_be_bytes()[..],
        &[0x00, 0x0b],
        // OWNERWRITE, OWNERREAD, NO_DA.
        &0x0202_0002u32.to_be_bytes(),
        &[0, 0, 0, 8],
    ]
    .concat();
    let length = u16::try_from(public.len())?.to_be_bytes();
    let define = [&[0, 0], &length[..], &public].concat();
    vmm.succeed(&with_password(0x12a, &[OWNER], &define))?;
    Ok(())
}

/// Reads a whole index with its own, empty authorization.
pub(crate) fn nv_read(vmm: &mut Vmm, index: u32) -> Result<Vec<u8>> {
    // TPM2_NV_ReadPublic; the data size is the last field of TPMS_NV_PUBLIC.
    let public = vmm.succeed(&command(0x169, &index.to_be_bytes()))?;
    let length = usize::from(u16::from_be_bytes([public[0], public[1]]));
    let size = usize::from(u16::from_be_bytes([public[length], public[length + 1]]));
    let mut contents = Vec::new();
    while contents.len() < size {
        let part = u16::try_from((size - contents.len()).min(512))?;
        let offset = u16::try_from(contents.len())?;
        // TPM2_NV_Read with the owner's empty password.
        let parameters = [part.to_be_bytes(), offset.to_be_bytes()].concat();
        let response = vmm.succeed(&with_password(0x14e, &[OWNER, index], &parameters))?;
        let data = &response[6..];
        contents.extend_from_slice(&data[..usize::from(part)]);
    }
    Ok(contents)
}

/// An authorization area with an empty password.
pub(crate) const PASSWORD: &[u8] = &tpm_commands::PASSWORD;

/// The same command with an authorization area.
pub(crate) fn with_sessions(mut command: Vec<u8>) -> Vec<u8> {
    command[1] = 0x02;
    command
}

/// `TPM2_StartAuthSession` without salt, binding or encryption.
pub(crate) fn policy_session() -> Vec<u8> {
    let none = 0x4000_0007_u32.to_be_bytes();
    let rest = [&[0, 16][..], &[7; 16], &[0, 0, 1, 0x00, 0x10, 0x00, 0x0b]].concat();
    command(0x176, &[&none[..], &none, &rest].concat())
}

/// Begins as many sessions as the TPM can number, each saved; the handle of the last, if any began.
pub(crate) fn begin_every_session(vmm: &mut Vmm) -> Result<Option<[u8; 4]>> {
    const SESSION_HANDLES: u32 = 0x905;
    let mut last = None;
    loop {
        let (code, response) = vmm.execute(&policy_session())?;
        if code == SESSION_HANDLES {
            return Ok(last);
        }
        ensure!(code == 0, "0x{code:x}");
        let session: [u8; 4] = *response.first_chunk().context("a handle")?;
        // TPM2_ContextSave
        vmm.succeed(&command(0x162, &session))?;
        last = Some(session);
    }
}
