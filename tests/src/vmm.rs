//! A VMM with a guest in it, as a vRoT and swtpm alike see them: QEMU's TPM emulator protocol.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cert_chain::HashValue;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};
use tpm_wire::host_commands::HOST_EVIDENCE_REQUEST;
use tpm_wire::{MAX_SIZE, NO_SESSIONS, Response, ResponseCode, SESSIONS, frame, read_frame};

/// A control channel that answers.
#[derive(Debug)]
pub struct Control(UnixStream);

/// An attached VMM whose guest has started its TPM.
#[derive(Debug)]
pub struct Vmm {
    // Open as long as the VMM is attached.
    control: Control,
    data: UnixStream,
    written: u64,
}

const CMD_GET_CAPABILITY: u32 = 1;
const CMD_INIT: u32 = 2;
const CMD_CANCEL_TPM_CMD: u32 = 9;
const CMD_SET_DATAFD: u32 = 0x10;
/// Nobody waits longer than a guest's driver does (Linux: two minutes for the slowest command).
const PATIENCE: Duration = Duration::from_secs(120);

const NV_DEFINE_SPACE: u32 = 0x12a;
const NV_WRITE: u32 = 0x137;
const PCR_EXTEND: u32 = 0x182;
const STARTUP: u32 = 0x144;
const OWNER: u32 = 0x4000_0001;
const PASSWORD: u32 = 0x4000_0009;
/// An index of a guest's owner, and its contents: what a guest keeps there is small.
const INDEX: u32 = 0x0180_0042;
const CONTENTS: u16 = 32;
/// `OWNERWRITE`, `AUTHWRITE`, `OWNERREAD`, `AUTHREAD`, `NO_DA` (TPM 2.0 Part 2 §13.4).
const ATTRIBUTES: u32 = 0x0206_0006;

impl Control {
    /// Connects and waits for one answer: then a VMM can attach.
    pub fn connect(socket: &Path) -> Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&CMD_GET_CAPABILITY.to_be_bytes())?;
        let mut capability = [0; 8];
        stream.read_exact(&mut capability)?;
        Ok(Self(stream))
    }

    /// Attaches as QEMU does, and starts the TPM as a guest's firmware does.
    pub fn attach(self) -> Result<Vmm> {
        let mut vmm = self.attach_running()?;
        let clear = 0u16.to_be_bytes();
        vmm.succeed("TPM2_Startup", &frame(NO_SESSIONS, STARTUP, &clear))?;
        Ok(vmm)
    }

    /// Attaches for a guest that goes on, whose TPM is running.
    pub fn attach_running(mut self) -> Result<Vmm> {
        let (data, theirs) = UnixStream::pair()?;
        data.set_read_timeout(Some(PATIENCE))?;
        sendmsg::<()>(
            self.0.as_raw_fd(),
            &[IoSlice::new(&CMD_SET_DATAFD.to_be_bytes())],
            &[ControlMessage::ScmRights(&[theirs.as_raw_fd()])],
            MsgFlags::empty(),
            None,
        )?;
        self.done().context("SET_DATAFD")?;
        let init = [CMD_INIT.to_be_bytes(), 0u32.to_be_bytes()].concat();
        self.0.write_all(&init)?;
        self.done().context("INIT")?;
        Ok(Vmm {
            control: self,
            data,
            written: 0,
        })
    }

    fn done(&mut self) -> Result<()> {
        let mut result = [0; 4];
        self.0.read_exact(&mut result)?;
        ensure!(result == [0; 4], "refused: {}", hex::encode(result));
        Ok(())
    }
}

impl Vmm {
    /// Defines the NV index that [`Vmm::write`] writes.
    pub fn define(&mut self) -> Result<()> {
        let public = [
            &INDEX.to_be_bytes()[..],
            &0x000bu16.to_be_bytes(), // TPM_ALG_SHA256
            &ATTRIBUTES.to_be_bytes(),
            &0u16.to_be_bytes(), // no policy
            &CONTENTS.to_be_bytes(),
        ]
        .concat();
        let size = u16::try_from(public.len())?.to_be_bytes();
        let no_auth = 0u16.to_be_bytes();
        let parameters = [&no_auth[..], &size, &public].concat();
        let body = [&OWNER.to_be_bytes()[..], &password(), &parameters].concat();
        let define = frame(SESSIONS, NV_DEFINE_SPACE, &body);
        self.succeed("TPM2_NV_DefineSpace", &define)
    }

    /// Writes to that index what was never there.
    pub fn write(&mut self) -> io::Result<ResponseCode> {
        self.written += 1;
        let contents = self.written.to_be_bytes().repeat(usize::from(CONTENTS) / 8);
        let body = [
            &INDEX.to_be_bytes()[..],
            &INDEX.to_be_bytes(),
            &password(),
            &CONTENTS.to_be_bytes(),
            &contents,
            &0u16.to_be_bytes(), // offset
        ]
        .concat();
        self.execute(&frame(SESSIONS, NV_WRITE, &body))
    }

    /// Asks the host for evidence, which a vRoT answers at once. The answer is a ticket; the guest of this file never comes
    /// back with it.
    pub fn request_evidence(&mut self) -> io::Result<ResponseCode> {
        self.written += 1;
        let digest = self.written.to_be_bytes().repeat(4);
        let body = [&32u16.to_be_bytes()[..], &digest].concat();
        self.execute(&frame(NO_SESSIONS, HOST_EVIDENCE_REQUEST, &body))
    }

    /// A write that must succeed.
    pub fn must_write(&mut self) -> Result<()> {
        success(self.write()?, "TPM2_NV_Write")
    }

    fn succeed(&mut self, name: &str, command: &[u8]) -> Result<()> {
        success(
            self.execute(command).with_context(|| name.to_owned())?,
            name,
        )
    }

    /// Extends a PCR in one bank.
    pub fn extend(&mut self, pcr: u32, digest: &HashValue) -> Result<()> {
        self.succeed("TPM2_PCR_Extend", &pcr_extend(pcr, digest))
    }

    /// Has the TPM execute a command; its response as it came.
    pub fn respond(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        self.send(command)?;
        self.receive()
    }

    /// Sends a command, and does not wait for its response.
    pub fn send(&mut self, command: &[u8]) -> io::Result<()> {
        self.data.write_all(command)
    }

    /// Orders that the command under way be given up, as far as the TPM can do that.
    pub fn cancel(&mut self) -> Result<()> {
        let cancel = CMD_CANCEL_TPM_CMD.to_be_bytes();
        self.control.0.write_all(&cancel)?;
        self.control.done().context("CANCEL_TPM_CMD")
    }

    /// Whether a response is there.
    pub fn has_response(&self) -> io::Result<bool> {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        match recv(self.data.as_raw_fd(), &mut [0], flags) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The response to a command that was sent.
    pub fn receive(&mut self) -> io::Result<Vec<u8>> {
        Ok(read_frame(&mut self.data, MAX_SIZE)?.ok_or(io::ErrorKind::UnexpectedEof)?)
    }

    fn execute(&mut self, command: &[u8]) -> io::Result<ResponseCode> {
        let response = self.respond(command)?;
        let response = Response::parse(&response).ok_or(io::ErrorKind::InvalidData)?;
        Ok(response.code())
    }
}

fn success(code: ResponseCode, name: &str) -> Result<()> {
    ensure!(code.is_success(), "{name}: response code {code}");
    Ok(())
}

/// `TPM2_PCR_Extend` of a PCR in one bank.
pub fn pcr_extend(pcr: u32, digest: &HashValue) -> Vec<u8> {
    let body = [
        &pcr.to_be_bytes()[..],
        &password(),
        &1u32.to_be_bytes(),
        &digest.algorithm().identifier().to_be_bytes(),
        digest.as_bytes(),
    ]
    .concat();
    frame(SESSIONS, PCR_EXTEND, &body)
}

/// The authorization area with the empty password.
pub fn password() -> Vec<u8> {
    let session = [&PASSWORD.to_be_bytes()[..], &[0, 0], &[0], &[0, 0]].concat();
    // Nine bytes.
    let size = u32::try_from(session.len()).unwrap_or(u32::MAX);
    [&size.to_be_bytes()[..], &session].concat()
}
