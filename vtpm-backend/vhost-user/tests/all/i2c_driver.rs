//! What a guest's two drivers do: that of the bus, and that of the TPM on it.

use vhost_user_tpm::{Device, Execution, Request, Tpm, VirtioI2c};

pub(crate) const READ: u32 = 2;
pub(crate) const FAIL_NEXT: u32 = 1;
pub(crate) const TPM: u16 = 0x2e;

pub(crate) const ACCESS: u8 = 0x04;
pub(crate) const STATUS: u8 = 0x18;
pub(crate) const FIFO: u8 = 0x24;
pub(crate) const CHECKSUM_ENABLE: u8 = 0x40;
pub(crate) const CHECKSUM: u8 = 0x44;

pub(crate) const COMMAND_READY: u8 = 0x40;
pub(crate) const GO: u8 = 0x20;
pub(crate) const AVAILABLE: u8 = 0x10;
pub(crate) const EXPECT: u8 = 0x08;
pub(crate) const RETRY: u8 = 0x02;
/// Set in each status: valid, and the self-test is done.
pub(crate) const ALWAYS: u8 = 0x84;

/// A command and a response that is longer than Linux reads at once.
pub(crate) const GET_RANDOM: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 64];

/// Keeps the commands, and answers each with the same.
pub(crate) struct Recorder {
    pub(crate) commands: Vec<Vec<u8>>,
    pub(crate) response: Vec<u8>,
    /// Whether it answers later.
    pub(crate) is_slow: bool,
    /// How many commands were given up.
    pub(crate) given_up: usize,
}

impl Default for Recorder {
    fn default() -> Self {
        let body: Vec<u8> = (0..66).collect();
        let header = [0x80, 1, 0, 0, 0, 76, 0, 0, 0, 0];
        Self {
            commands: Vec::new(),
            response: [&header[..], &body].concat(),
            is_slow: false,
            given_up: 0,
        }
    }
}

impl Tpm for Recorder {
    fn execute(&mut self, command: &[u8], response: &mut Vec<u8>) -> Execution {
        self.commands.push(command.to_vec());
        if self.is_slow {
            return Execution::GoesOn;
        }
        response.extend_from_slice(&self.response);
        Execution::Done
    }

    fn give_up(&mut self) {
        self.given_up += 1;
    }
}

/// A bus with a TPM on it, and what both drivers do with them.
#[derive(Default)]
pub(crate) struct Driver {
    pub(crate) bus: VirtioI2c,
    pub(crate) tpm: Recorder,
}

impl Driver {
    /// With the locality, and checksums, as Linux begins.
    pub(crate) fn ready() -> Self {
        let mut driver = Self::default();
        driver.write(&[0x00, 0]);
        driver.write(&[CHECKSUM_ENABLE, 1]);
        driver.write(&[ACCESS, 0x02]);
        driver
    }

    /// One request of the bus' driver: what is read, and the status.
    pub(crate) fn request(
        &mut self,
        address: u16,
        flags: u32,
        data: &[u8],
        room: usize,
    ) -> Vec<u8> {
        let mut bytes = [&(address << 1).to_le_bytes()[..], &[0, 0]].concat();
        bytes.extend(flags.to_le_bytes());
        bytes.extend_from_slice(data);
        self.raw(&bytes, room)
    }

    pub(crate) fn raw(&mut self, bytes: &[u8], room: usize) -> Vec<u8> {
        let length = bytes.len();
        let bytes = &bytes[..length.min(self.bus.longest_request())];
        let mut answer = Vec::new();
        let request = Request {
            bytes,
            length,
            room,
        };
        let served = self.bus.serve(request, &mut self.tpm, &mut answer);
        assert_eq!(served, Execution::Done, "the bus goes on");
        assert!(answer.is_empty() || answer.len() == room, "all is answered");
        answer
    }

    pub(crate) fn try_write(&mut self, bytes: &[u8]) -> bool {
        self.request(TPM, 0, bytes, 1) == [0]
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        assert!(self.try_write(bytes), "{bytes:02x?} is acknowledged");
    }

    pub(crate) fn try_read(&mut self, register: u8, length: usize) -> Option<Vec<u8>> {
        if !self.try_write(&[register]) {
            return None;
        }
        let mut answer = self.request(TPM, READ, &[], length + 1);
        (answer.pop() == Some(0)).then_some(answer)
    }

    pub(crate) fn read(&mut self, register: u8, length: usize) -> Vec<u8> {
        self.try_read(register, length).expect("it acknowledges")
    }

    pub(crate) fn word(&mut self, register: u8) -> u32 {
        let bytes = self.read(register, 4);
        u32::from_le_bytes(bytes.try_into().expect("four bytes"))
    }

    /// The lowest byte of the status.
    pub(crate) fn status(&mut self) -> u8 {
        self.read(STATUS, 1)[0]
    }

    pub(crate) fn burst(&mut self) -> u32 {
        self.word(STATUS) >> 8 & 0xffff
    }

    /// As Linux sends a command: in parts of 31 bytes, the last byte alone.
    pub(crate) fn send(&mut self, command: &[u8]) {
        if self.status() & COMMAND_READY == 0 {
            self.write(&[STATUS, COMMAND_READY]);
        }
        let (last, body) = command.split_last().expect("a command");
        for part in body.chunks(31) {
            assert!(self.burst() > 0);
            self.write(&[&[FIFO][..], part].concat());
            assert_ne!(self.status() & EXPECT, 0, "more is expected");
        }
        self.write(&[FIFO, *last]);
        assert_eq!(self.status() & EXPECT, 0, "nothing more is expected");
        assert_eq!(self.read(CHECKSUM, 2), checksum(command));
    }

    /// As Linux takes a response: the header, then the rest, in parts of 32 bytes.
    pub(crate) fn receive(&mut self) -> Vec<u8> {
        let mut response = Vec::new();
        let mut length = 10;
        while response.len() < length {
            assert_ne!(self.status() & AVAILABLE, 0, "there is more");
            let burst = usize::try_from(self.burst()).expect("a number");
            let part = burst.min(length - response.len()).min(32);
            response.extend(self.read(FIFO, part));
            if length == 10 && response.len() == 10 {
                let size = response[2..6].try_into().expect("four bytes");
                length = usize::try_from(u32::from_be_bytes(size)).expect("a length");
            }
        }
        assert_eq!(self.status() & AVAILABLE, 0, "nothing is left over");
        assert_eq!(self.read(CHECKSUM, 2), checksum(&response));
        response
    }
}

/// `swab16(crc_ccitt(0, …))` as Linux compares it, written out.
pub(crate) fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut crc = 0_u16;
    for byte in bytes {
        crc ^= u16::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 0 {
                crc >> 1
            } else {
                crc >> 1 ^ 0x8408
            };
        }
    }
    crc.to_be_bytes()
}
