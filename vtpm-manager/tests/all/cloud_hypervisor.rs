//! A vRoT under cloud-hypervisor, which reads each reply once, and gives a command up after 100 ms.

use std::io::{IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tpm_wire::Response;

use crate::support::vmm::{PASSWORD, command, with_sessions};
use crate::support::{Host, wait_until};

/// What cloud-hypervisor waits for a response.
const COMMAND_TIMEOUT: Duration = Duration::from_millis(100);
/// What it demands of a TPM 2.0 (`PTM_CAP_*`).
const DEMANDED: u32 = 0x348f;

#[test]
fn no_late_answer_is_taken_for_that_to_the_next_command_while_the_manager_stands_still()
-> Result<()> {
    // Well below the 80 ms of the documentation: this machine does other things as well.
    let host = Host::enrolled_with("durability_deadline_ms = 20\n")?;
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    let mut vmm = CloudHypervisor::attach(&host.control(&vm)?)?;
    vmm.startup()?;
    let exchange = |vmm: &mut CloudHypervisor, index: u8| -> Result<()> {
        // TPM2_NV_DefineSpace, which changes the permanent state, and TPM2_GetRandom, which does not.
        let defined = vmm.execute(&define(index))?;
        ensure!(
            code(&defined) == Some(0) && defined.len() == 19,
            "{defined:?}"
        );
        for bytes in 1..=3 {
            let random = vmm.execute(&command(0x17b, &[0, bytes]))?;
            ensure!(random.len() == 12 + usize::from(bytes), "{random:?}");
        }
        Ok(())
    };
    exchange(&mut vmm, 0)?;
    host.signal(Signal::SIGSTOP)?;
    let meanwhile = (1..=40).try_for_each(|index| exchange(&mut vmm, index));
    host.signal(Signal::SIGCONT)?;
    meanwhile?;
    wait_until("all state to be durable", || {
        Ok(host.json(["show", &vm])?["backend"]["degraded"] == false)
    })?;
    exchange(&mut vmm, 41)
}

/// Both channels, used in cloud-hypervisor's order.
struct CloudHypervisor {
    control: UnixStream,
    data: UnixStream,
}

impl CloudHypervisor {
    fn attach(socket: &Path) -> Result<Self> {
        let control = UnixStream::connect(socket)?;
        control.set_read_timeout(Some(Duration::from_secs(30)))?;
        let (data, theirs) = UnixStream::pair()?;
        data.set_read_timeout(Some(COMMAND_TIMEOUT))?;
        let mut vmm = Self { control, data };
        sendmsg::<()>(
            vmm.control.as_raw_fd(),
            &[IoSlice::new(&[0, 0, 0, 16])],
            &[ControlMessage::ScmRights(&[theirs.as_raw_fd()])],
            MsgFlags::empty(),
            None,
        )?;
        ensure!(vmm.reply()? == [0; 4], "CMD_SET_DATAFD");
        let capabilities = vmm.request(&[1])?;
        let (result, offered) = capabilities.split_at_checked(4).context("8 bytes")?;
        ensure!(result == [0; 4], "CMD_GET_CAPABILITY: {capabilities:?}");
        let offered = u32::from_be_bytes(offered.try_into()?);
        ensure!(offered & DEMANDED == DEMANDED, "0x{offered:x}");
        ensure!(vmm.request(&[14])? == [0; 4], "CMD_STOP");
        let size = vmm.request(&[17, 0])?;
        ensure!(size.len() == 16 && size.starts_with(&[0; 4]), "{size:?}");
        ensure!(vmm.request(&[14])? == [0; 4], "CMD_STOP");
        let size = vmm.request(&[17, 4096])?;
        ensure!(size.len() == 16 && size.starts_with(&[0; 4]), "{size:?}");
        ensure!(vmm.request(&[2, 0])? == [0; 4], "CMD_INIT");
        Ok(vmm)
    }

    fn startup(&mut self) -> Result<()> {
        let response = self.execute(&command(0x144, &[0, 0]))?;
        ensure!(code(&response) == Some(0), "TPM2_Startup: {response:?}");
        Ok(())
    }

    fn request(&mut self, words: &[u32]) -> Result<Vec<u8>> {
        let request: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        self.control.write_all(&request)?;
        self.reply()
    }

    /// What one read brings.
    fn reply(&mut self) -> Result<Vec<u8>> {
        read_once(&mut self.control)
    }

    /// A command, and what one read brings in time.
    fn execute(&mut self, command: &[u8]) -> Result<Vec<u8>> {
        self.data.write_all(command)?;
        read_once(&mut self.data).context("cloud-hypervisor has given the command up")
    }
}

fn read_once(stream: &mut UnixStream) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 4096];
    let length = stream.read(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

/// TPM2_NV_DefineSpace of eight bytes for the owner.
fn define(index: u8) -> Vec<u8> {
    let owner = 0x4000_0001u32.to_be_bytes();
    let area = [
        0, 0, 0, 14, 0x01, 0x50, 0, index, 0, 0x0b, 0x02, 0x02, 0, 0x02, 0, 0, 0, 8,
    ];
    with_sessions(command(0x12a, &[&owner, PASSWORD, &area].concat()))
}

fn code(response: &[u8]) -> Option<u32> {
    Some(Response::parse(response)?.code().raw())
}
