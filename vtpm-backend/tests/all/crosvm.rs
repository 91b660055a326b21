//! crosvm's order of messages for `--vhost-user tpm,socket=…`, byte by byte: it never asks for
//! acknowledgements, negotiates the protocol before its guest has chosen features, and takes the queue
//! away and gives it back when the driver is loaded again and when the VM is put to sleep.

use std::io::{IoSlice, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use vmm_sys_util::eventfd::EventFd;

use crate::support::rings::{
    AVAILABLE, BUFFER, DESCRIPTORS, Guest, MEMORY, NEXT, QUEUE_SIZE, USED, VMM_ADDRESS, WRITE,
};
use crate::support::{Commands, Emulator, STARTUP, code, extend, pcr};

// Messages of the vhost-user protocol.
const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const GET_QUEUE_NUM: u32 = 17;
const SET_VRING_ENABLE: u32 = 18;
/// What crosvm can: MQ, REPLY_ACK, BACKEND_REQ, CONFIG, DEVICE_STATE, SHMEM_MAP.
const ITS_PROTOCOL: u64 = 1 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 19 | 1 << 20;
const PROTOCOL_FEATURES: u64 = 1 << 30;
const VERSION_1: u64 = 1 << 32;
/// `TPM_RC_INITIALIZE`
const INITIALIZE: u32 = 0x100;

#[test]
fn crosvm_s_order_of_messages_is_served_and_none_of_them_resets_a_pcr() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let _emulator = Emulator::virtio_tpm(folder.path())?;
    let mut vm = Crosvm::start(&folder.path().join("vhost-user.sock"))?;
    vm.driver_starts()?;
    ensure!(code(&vm.execute(&STARTUP)?) == 0);
    extend(&mut vm)?;
    let measured = pcr(&mut vm)?;
    // The guest loads its driver again, or starts anew.
    vm.takes_the_queue()?;
    vm.guest = Guest::new()?;
    vm.driver_starts()?;
    ensure!(pcr(&mut vm)? == measured);
    ensure!(code(&vm.execute(&STARTUP)?) == INITIALIZE);
    // The VM is put to sleep, and goes on with the queue as it was.
    let base = vm.takes_the_queue()?;
    ensure!(base == u32::from(vm.guest.offered()), "base {base}");
    vm.gives_the_queue(base)?;
    ensure!(pcr(&mut vm)? == measured);
    Ok(())
}

struct Crosvm {
    stream: UnixStream,
    guest: Guest,
    kick: EventFd,
    call: EventFd,
    features: u64,
}

impl Crosvm {
    fn start(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut vm = Self {
            stream,
            guest: Guest::new()?,
            kick: EventFd::new(0)?,
            call: EventFd::new(0)?,
            features: 0,
        };
        vm.say(SET_OWNER, &[], None)?;
        let offered = vm.ask(GET_FEATURES, &[])?;
        let wanted = VERSION_1 | PROTOCOL_FEATURES;
        ensure!(offered & wanted == wanted, "{offered:x}");
        vm.features = wanted;
        let protocol = vm.ask(GET_PROTOCOL_FEATURES, &[])? & ITS_PROTOCOL;
        vm.say(SET_PROTOCOL_FEATURES, &protocol.to_le_bytes(), None)?;
        ensure!(vm.ask(GET_QUEUE_NUM, &[])? == 1);
        Ok(vm)
    }

    fn driver_starts(&mut self) -> Result<()> {
        self.say(SET_FEATURES, &self.features.to_le_bytes(), None)?;
        self.gives_the_queue(0)
    }

    fn gives_the_queue(&mut self, base: u32) -> Result<()> {
        let region = [0, MEMORY, VMM_ADDRESS, 0].map(u64::to_le_bytes);
        let table = [&words([1, 0])[..], region.as_flattened()].concat();
        self.say(SET_MEM_TABLE, &table, Some(&self.guest.memory))?;
        self.say(SET_VRING_NUM, &words([0, QUEUE_SIZE.into()]), None)?;
        let parts = [DESCRIPTORS, USED, AVAILABLE].map(|part| (VMM_ADDRESS + part).to_le_bytes());
        let addresses = [&words([0, 0])[..], parts.as_flattened(), &[0; 8]].concat();
        self.say(SET_VRING_ADDR, &addresses, None)?;
        self.say(SET_VRING_BASE, &words([0, base]), None)?;
        self.say(SET_VRING_CALL, &[0; 8], Some(&self.call))?;
        self.say(SET_VRING_KICK, &[0; 8], Some(&self.kick))?;
        self.say(SET_VRING_ENABLE, &words([0, 1]), None)
    }

    fn takes_the_queue(&mut self) -> Result<u32> {
        self.say(SET_VRING_ENABLE, &words([0, 0]), None)?;
        // Its number, and where it stands.
        let state = self.ask(GET_VRING_BASE, &words([0, 0]))?;
        Ok(u32::try_from(state >> 32)?)
    }

    fn ask(&mut self, request: u32, body: &[u8]) -> Result<u64> {
        self.say(request, body, None)?;
        let mut reply = [0; 20];
        self.stream.read_exact(&mut reply)?;
        // The message's number, version 1 and "reply", eight bytes.
        let header = [request, 5, 8].map(u32::to_le_bytes);
        ensure!(reply.starts_with(header.as_flattened()), "{reply:?}");
        let value = reply.last_chunk().context("a number")?;
        Ok(u64::from_le_bytes(*value))
    }

    fn say(&self, request: u32, body: &[u8], descriptor: Option<&dyn AsRawFd>) -> Result<()> {
        let header = [request, 1, body.len().try_into()?].map(u32::to_le_bytes);
        let descriptor = descriptor.map(AsRawFd::as_raw_fd);
        let along: Vec<ControlMessage<'_>> = descriptor
            .as_slice()
            .chunks(1)
            .map(ControlMessage::ScmRights)
            .collect();
        let parts = [IoSlice::new(header.as_flattened()), IoSlice::new(body)];
        let stream = self.stream.as_raw_fd();
        let sent = sendmsg::<()>(stream, &parts, &along, MsgFlags::empty(), None)?;
        ensure!(
            sent == header.as_flattened().len() + body.len(),
            "{sent} bytes"
        );
        Ok(())
    }
}

impl Commands for Crosvm {
    fn execute(&mut self, command: &[u8]) -> Result<Vec<u8>> {
        self.guest.write(BUFFER, command)?;
        let length = command.len().try_into()?;
        self.guest
            .describe(&[(BUFFER, length, NEXT, 1), (BUFFER, 4096, WRITE, 0)])?;
        self.guest.offer(0)?;
        self.kick.write(1)?;
        let used = self.guest.used()?;
        self.guest.read(BUFFER, used.try_into()?)
    }
}

fn words(words: [u32; 2]) -> [u8; 8] {
    let [first, second] = words.map(u32::to_le_bytes);
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first);
    bytes[4..].copy_from_slice(&second);
    bytes
}
