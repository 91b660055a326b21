//! The terminal: what is shown, and keys.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::termios::{
    OptionalActions, QueueSelector, Termios, ioctl_tiocexcl, ioctl_tiocnxcl, tcflush, tcgetattr,
    tcgetwinsize, tcsetattr,
};
use zeroize::{Zeroize, Zeroizing};

/// What the dialogue needs of a terminal: a virtual one of the machine, or one that stands for it.
pub trait Terminal {
    /// Columns and rows.
    fn size(&self) -> io::Result<(u16, u16)>;
    /// Clears the screen and shows this.
    fn show(&mut self, screen: &str) -> io::Result<()>;
    /// Forgets what was typed before anybody was asked.
    fn forget_input(&mut self) -> io::Result<()>;
    /// Waits for a key. `asker` is who waits for the answer.
    fn key(&mut self, until: Instant, asker: Option<BorrowedFd<'_>>) -> io::Result<Input>;
}

/// What happened while a key was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A key.
    Key(Key),
    /// Nobody waits for the answer any more.
    AskerGone,
    /// Nothing was pressed in time.
    Late,
}

/// A key, as far as it means anything.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// A printable ASCII character other than the blank.
    Character(u8),
    /// Blank, down, page down.
    Next,
    /// Up, page up.
    Previous,
    /// Backspace.
    Back,
    /// Enter.
    Enter,
    /// Escape, or Control with C.
    Decline,
    /// Any other.
    Other,
}

/// A terminal device of which this is the only reader. It is as before when this is dropped.
pub struct Tty {
    file: File,
    before: Before,
    typed: Zeroizing<[u8; 64]>,
    next: usize,
    end: usize,
}

/// How a terminal was before it was taken.
pub(crate) struct Before {
    file: File,
    settings: Termios,
}

const ESCAPE: u8 = 0x1b;
/// Puts back whatever a program did to the terminal before, such as colours in which nothing is seen (`ESC c`),
/// has it read UTF-8 (`ESC % G`), clears the screen and what scrolled off it, and goes to its first place
/// (ECMA-48 §8.3.39, §8.3.21, §8.3.105; console_codes(4)).
const CLEAR: &str = "\x1bc\x1b%G\x1b[2J\x1b[3J\x1b[H";

impl Tty {
    /// Takes a terminal: no echo, no signals from keys, and nobody without rights of root opens it from now on.
    pub fn open(path: &Path) -> io::Result<Self> {
        let no_controlling = i32::try_from(OFlags::NOCTTY.bits()).map_err(io::Error::other)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(no_controlling)
            .open(path)?;
        let before = Before {
            settings: tcgetattr(&file)?,
            file: file.try_clone()?,
        };
        ioctl_tiocexcl(&file)?;
        let mut raw = before.settings.clone();
        raw.make_raw();
        tcsetattr(&file, OptionalActions::Flush, &raw)?;
        Ok(Self {
            file,
            before,
            typed: Zeroizing::new([0; 64]),
            next: 0,
            end: 0,
        })
    }

    /// Its device.
    pub(crate) fn device(&self) -> &File {
        &self.file
    }

    /// What puts it back when this process ends without dropping this.
    pub(crate) fn before(&self) -> io::Result<Before> {
        Ok(Before {
            file: self.file.try_clone()?,
            settings: self.before.settings.clone(),
        })
    }

    fn pending(&mut self) -> Option<u8> {
        let byte = self.typed.get_mut(self.next..self.end)?.first_mut()?;
        self.next += 1;
        // It may be a part of a PIN.
        Some(std::mem::take(byte))
    }

    fn read(&mut self) -> io::Result<()> {
        self.next = 0;
        self.end = self.file.read(self.typed.as_mut_slice())?;
        if self.end == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// The key that begins with this byte. Keys without a character come as sequences, in one piece.
    fn decode(&mut self, first: u8) -> Key {
        match first {
            b'\r' | b'\n' => Key::Enter,
            b' ' => Key::Next,
            0x7f | 0x08 => Key::Back,
            0x03 => Key::Decline,
            ESCAPE => match self.pending() {
                None => Key::Decline,
                Some(b'[') => self.sequence(),
                Some(_) => Key::Other,
            },
            byte if byte.is_ascii_graphic() => Key::Character(byte),
            _ => Key::Other,
        }
    }

    /// A control sequence up to its final byte (ECMA-48 §5.4).
    fn sequence(&mut self) -> Key {
        let mut parameter = 0;
        while let Some(byte) = self.pending() {
            match (parameter, byte) {
                (0, b'A') | (b'5', b'~') => return Key::Previous,
                (0, b'B') | (b'6', b'~') => return Key::Next,
                (_, 0x40..=0x7e) => return Key::Other,
                _ => parameter = byte,
            }
        }
        Key::Other
    }
}

impl Terminal for Tty {
    fn size(&self) -> io::Result<(u16, u16)> {
        let size = tcgetwinsize(&self.file)?;
        Ok((size.ws_col, size.ws_row))
    }

    fn show(&mut self, screen: &str) -> io::Result<()> {
        self.file.write_all(format!("{CLEAR}{screen}").as_bytes())
    }

    fn forget_input(&mut self) -> io::Result<()> {
        (self.next, self.end) = (0, 0);
        self.typed.zeroize();
        tcflush(&self.file, QueueSelector::IFlush)?;
        Ok(())
    }

    fn key(&mut self, until: Instant, asker: Option<BorrowedFd<'_>>) -> io::Result<Input> {
        loop {
            // Before what was typed: keys that come without end are no reason to wait longer.
            if Instant::now() >= until {
                return Ok(Input::Late);
            }
            if let Some(first) = self.pending() {
                return Ok(Input::Key(self.decode(first)));
            }
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            let keys = PollFd::new(&self.file, PollFlags::IN);
            let mut ready = vec![keys];
            // Who asks says nothing more, so whatever comes from there is its end.
            ready.extend(asker.map(|asker| PollFd::from_borrowed_fd(asker, PollFlags::IN)));
            match poll(&mut ready, Some(&left)) {
                Ok(0) => return Ok(Input::Late),
                Err(rustix::io::Errno::INTR) => continue,
                done => done?,
            };
            if ready
                .get(1)
                .is_some_and(|asker| !asker.revents().is_empty())
            {
                return Ok(Input::AskerGone);
            }
            self.read()?;
        }
    }
}

impl AsFd for Tty {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Before {
    /// Clears the terminal and puts it back. One that is gone needs nothing any more.
    pub(crate) fn restore(&self) {
        let _ = (&self.file).write_all(CLEAR.as_bytes());
        let _ = tcsetattr(&self.file, OptionalActions::Flush, &self.settings);
        let _ = ioctl_tiocnxcl(&self.file);
    }

    /// Its device.
    pub(crate) fn device(&self) -> &File {
        &self.file
    }
}

impl Drop for Tty {
    fn drop(&mut self) {
        self.before.restore();
    }
}

/// A key may be a part of a PIN.
impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

impl std::fmt::Debug for Tty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tty")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}
