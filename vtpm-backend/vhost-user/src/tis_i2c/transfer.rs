//! One command on its way in or one response on its way out, through the FIFO (PC Client Platform
//! TPM Profile 1.05, 6.5.2.4: states idle, ready, reception, execution and completion).

use crc::{CRC_16_KERMIT, Crc};
use tpm_wire::{MAX_SIZE, length_in_stream};
use zeroize::{Zeroize, Zeroizing};

use crate::device::{Execution, Tpm};

/// As the driver sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// No command is taken.
    #[default]
    Idle,
    /// A command may begin.
    Ready,
    /// Some of a command is there, or all of it.
    Reception,
    /// The TPM is at the command.
    Execution,
    /// A response is there.
    Completion,
}

/// The command or response in the FIFO.
#[derive(Debug, Default)]
pub(super) struct Transfer {
    phase: Phase,
    /// At most [`MAX_SIZE`] bytes of a command, or a response.
    bytes: Zeroizing<Vec<u8>>,
    /// How much of the response has been read.
    read: usize,
}

/// Without the marks of the interface itself; bits of `TPM_STS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// A command may begin.
    pub(super) ready: bool,
    /// More of the response can be read.
    pub(super) available: bool,
    /// More of the command is to be written.
    pub(super) expected: bool,
    /// How many bytes can be read or written now.
    pub(super) burst: u16,
}

/// CRC-CCITT, low bit first, beginning at 0, as the profile has it (`TPM_DATA_CSUM`).
const CHECKSUM: Crc<u16> = Crc::<u16>::new(&CRC_16_KERMIT);

impl Transfer {
    pub(super) fn progress(&self) -> Progress {
        let unread = self.bytes.len().saturating_sub(self.read);
        let free = MAX_SIZE.saturating_sub(self.bytes.len());
        let (ready, available, expected, burst) = match self.phase {
            Phase::Idle => (false, false, false, 0),
            Phase::Ready => (true, false, false, free),
            Phase::Reception if self.expects_more() => (false, false, true, free),
            Phase::Reception | Phase::Execution => (false, false, false, 0),
            Phase::Completion => (false, unread > 0, false, unread),
        };
        Progress {
            ready,
            available,
            expected,
            burst: u16::try_from(burst).unwrap_or(u16::MAX),
        }
    }

    /// `commandReady`: forgets command or response, and waits for a command. What the TPM is at is
    /// given up (6.5.2.4: "aborts the command").
    pub(super) fn prepare(&mut self, tpm: &mut dyn Tpm) {
        self.forget(tpm);
        self.phase = Phase::Ready;
    }

    /// Forgets command or response, and waits for nothing.
    pub(super) fn forget(&mut self, tpm: &mut dyn Tpm) {
        if self.phase == Phase::Execution {
            tpm.give_up();
        }
        self.clear();
    }

    fn clear(&mut self) {
        self.bytes.zeroize();
        self.read = 0;
        self.phase = Phase::Idle;
    }

    /// `responseRetry`: the response is read from its beginning again.
    pub(super) fn rewind(&mut self) {
        self.read = 0;
    }

    /// Takes more of a command; what goes beyond it is dropped, and all of it where no command is
    /// expected.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        if self.phase == Phase::Ready {
            // The room does not grow, which would leave a copy behind.
            self.bytes.reserve_exact(MAX_SIZE);
            self.phase = Phase::Reception;
        }
        for byte in bytes {
            if self.phase != Phase::Reception || !self.expects_more() {
                return;
            }
            self.bytes.push(*byte);
        }
    }

    /// Appends so many bytes of the response; ones (0xff) behind its end, and where there is none.
    pub(super) fn read(&mut self, length: usize, answer: &mut Vec<u8>) {
        let end = answer.len().saturating_add(length);
        if self.phase == Phase::Completion {
            let unread = self.bytes.get(self.read..).unwrap_or_default();
            let part = unread.get(..length).unwrap_or(unread);
            answer.extend_from_slice(part);
            self.read = self.read.saturating_add(part.len());
        }
        answer.resize(end, 0xff);
    }

    /// `tpmGo`: carries the command out, if all of it is there. What states an impossible length is
    /// for the TPM to refuse.
    pub(super) fn go(&mut self, tpm: &mut dyn Tpm) {
        if self.phase != Phase::Reception || self.expects_more() {
            return;
        }
        let mut response = Zeroizing::new(Vec::with_capacity(MAX_SIZE));
        let execution = tpm.execute(&self.bytes, &mut response);
        self.clear();
        self.bytes = response;
        self.phase = match execution {
            Execution::Done => Phase::Completion,
            Execution::GoesOn => Phase::Execution,
        };
    }

    /// The response to a command that went on. False if that was given up.
    pub(super) fn complete(&mut self, response: &[u8]) -> bool {
        if self.phase != Phase::Execution {
            return false;
        }
        self.bytes.extend_from_slice(response);
        self.phase = Phase::Completion;
        true
    }

    /// Of what was written of the command, or read of the response.
    pub(super) fn checksum(&self) -> u16 {
        let moved = match self.phase {
            Phase::Completion => self.bytes.get(..self.read),
            Phase::Idle | Phase::Ready | Phase::Reception | Phase::Execution => {
                Some(self.bytes.as_slice())
            }
        };
        CHECKSUM.checksum(moved.unwrap_or_default())
    }

    /// Not of a command whose length cannot be.
    fn expects_more(&self) -> bool {
        match length_in_stream(&self.bytes) {
            Ok(Some(length)) => self.bytes.len() < length,
            Ok(None) => true,
            Err(_) => false,
        }
    }
}
