//! A virtual terminal of this machine: what it really shows, that it is in front, and that it is let go.
//!
//! It comes to the front, so that is tested where it is in nobody's way.

use std::fs::{self, File, OpenOptions};
use std::io::{Write, stderr};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use confirmation::judge;
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::ioctl::{Getter, IntegerSetter, NoArg, Setter, ioctl};
use rustix::termios::{LocalModes, tcgetattr};
use rustls_pki_types::UnixTime;
use test_support::deadline::wait_for;

use crate::support::{Asked, Device, PIN};

const PATIENCE: Duration = Duration::from_secs(60);
const TEXT: &str = "Pay 100 EUR to ACME";

/// A virtual terminal that nobody has open. While this lives, other tests on this machine wait for their turn:
/// one terminal is in front.
struct Console {
    file: File,
    number: u16,
    /// The one in front before.
    before: u16,
    _turn: File,
}

#[expect(unsafe_code, reason = "an ioctl takes what its number says")]
impl Console {
    /// `None`, and why is told, where the machine has none, or none that can be read, as most containers, or where
    /// somebody sits before the one in front.
    fn open() -> Result<Option<Self>> {
        let console = Self::where_it_disturbs_nobody()?;
        Ok(match console {
            Ok(console) => Some(console),
            Err(why) => {
                // Not by a macro, whose words nobody sees unless the test fails.
                writeln!(stderr(), "no virtual terminal was tested: {why}")?;
                None
            }
        })
    }

    fn where_it_disturbs_nobody() -> Result<Result<Self, &'static str>> {
        const NONE: &str = "this machine has none that may be used";
        let Ok(any) = open(Path::new("/dev/tty0")) else {
            return Ok(Err(NONE));
        };
        flock(&any, FlockOperation::LockExclusive)?;
        // SAFETY: VT_GETSTATE writes three numbers.
        let state = unsafe { ioctl(&any, Getter::<0x5603, [u16; 3]>::new()) };
        let Ok([before, _, in_use]) = state else {
            return Ok(Err(NONE));
        };
        let front = open(&terminal(before))?;
        // SAFETY: KDGETMODE writes a number.
        let is_graphical = unsafe { ioctl(&front, Getter::<0x4b3b, i32>::new()) }? != 0;
        // login(1) gives it to whoever logs in.
        if is_graphical || front.metadata()?.uid() != 0 {
            return Ok(Err(
                "somebody uses the one in front, which another one would cover",
            ));
        }
        let is_free = |number: &u16| in_use & (1 << number) == 0 && *number != before;
        let number = (2..16).find(is_free).context("a free virtual terminal")?;
        let console = Self {
            file: open(&terminal(number))?,
            number,
            before,
            _turn: any,
        };
        Ok(match console.shown() {
            Ok(_) => Ok(console),
            Err(_) => Err("what it shows cannot be read"),
        })
    }

    fn path(&self) -> PathBuf {
        terminal(self.number)
    }

    fn in_front(&self) -> Result<u16> {
        // SAFETY: VT_GETSTATE writes three numbers.
        let [active, ..] = unsafe { ioctl(&self.file, Getter::<0x5603, [u16; 3]>::new()) }?;
        Ok(active)
    }

    /// As Control, Alt and a function key do.
    fn switch_to(&self, number: u16) -> Result<()> {
        // SAFETY: VT_ACTIVATE takes a number.
        unsafe {
            let activate = IntegerSetter::<0x5606>::new_usize(number.into());
            ioctl(&self.file, activate)
        }?;
        Ok(())
    }

    /// As `vlock -a` does.
    fn lock(&self) -> Result<()> {
        // SAFETY: VT_LOCKSWITCH takes nothing.
        Ok(unsafe { ioctl(&self.file, NoArg::<0x560b>::new()) }?)
    }

    fn unlock(&self) -> Result<()> {
        // SAFETY: VT_UNLOCKSWITCH takes nothing.
        Ok(unsafe { ioctl(&self.file, NoArg::<0x560c>::new()) }?)
    }

    /// What the kernel shows, as lines of characters (vcs(4)).
    fn shown(&self) -> Result<Vec<String>> {
        let cells = fs::read(format!("/dev/vcsu{}", self.number))?;
        let columns = usize::from(rustix::termios::tcgetwinsize(&self.file)?.ws_col);
        let characters: Vec<char> = cells
            .chunks_exact(4)
            .filter_map(|cell| char::from_u32(u32::from_ne_bytes(cell.try_into().ok()?)))
            .collect();
        let line = |line: &[char]| line.iter().collect::<String>().trim_end().to_owned();
        Ok(characters.chunks(columns.max(1)).map(line).collect())
    }

    fn wait_for(&self, text: &str) -> Result<()> {
        wait_for(text, PATIENCE, || {
            Ok(self
                .shown()?
                .iter()
                .any(|line| line.contains(text))
                .then_some(()))
        })
        .with_context(|| format!("it shows {:?}", self.shown()))
    }

    fn wait_until_in_front(&self, number: u16) -> Result<()> {
        wait_for("the terminal in front", PATIENCE, || {
            Ok((self.in_front()? == number).then_some(()))
        })
    }

    /// As the keyboard does.
    fn press(&self, keys: &str) -> Result<()> {
        for key in keys.bytes() {
            // SAFETY: TIOCSTI reads one byte.
            unsafe { ioctl(&self.file, Setter::<0x5412, u8>::new(key)) }?;
        }
        Ok(())
    }

    fn echoes(&self) -> Result<bool> {
        Ok(tcgetattr(&self.file)?
            .local_modes
            .contains(LocalModes::ECHO))
    }
}

impl Drop for Console {
    /// However the test ended.
    fn drop(&mut self) {
        let _ = self.unlock();
        let _ = self.switch_to(self.before);
    }
}

fn terminal(number: u16) -> PathBuf {
    format!("/dev/tty{number}").into()
}

fn open(path: &Path) -> Result<File> {
    let no_controlling = i32::try_from(OFlags::NOCTTY.bits())?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(no_controlling);
    Ok(options.open(path)?)
}

/// A device that asks on a console; nothing on a machine that has none.
fn console_with_device() -> Result<Option<(Console, Device)>> {
    let Some(console) = Console::open()? else {
        return Ok(None);
    };
    let mut device = Device::enrolled(80, 24)?;
    device.move_to(&console.path())?;
    Ok(Some((console, device)))
}

#[test]
fn a_virtual_terminal_shows_the_text_in_front_is_held_there_and_let_go() -> Result<()> {
    let Some((console, mut device)) = console_with_device()? else {
        return Ok(());
    };
    let before = console.before;
    let asked = Asked::new(TEXT, 7)?;
    let asking = device.ask(TEXT, &asked.nonce)?;
    console.wait_for("PIN and Enter")?;
    assert_eq!(console.in_front()?, console.number);
    let shown = console.shown()?;
    assert!(shown.contains(&format!("| {TEXT}")), "{shown:?}");
    assert!(shown.iter().any(|line| line == "shop.example"), "{shown:?}");
    // Held: a switch does nothing, and is not made up for later either.
    let _ = console.switch_to(before);
    console.press(PIN)?;
    assert_eq!(console.in_front()?, console.number);
    console.press("\r")?;
    let confirmation = asking.confirmed()?;
    let expected = asked.expected();
    judge(
        Some(&confirmation),
        &expected,
        &device.policy()?,
        UnixTime::now(),
    )?;
    console.wait_until_in_front(before)?;
    console.wait_for("nothing to confirm")?;
    assert!(!console.shown()?.concat().contains(PIN));

    // What a font lacks is not shown as something else. None has all of these.
    let scripts = "Πληρωμή, Đến, Ждать";
    let refused = device.ask(scripts, &asked.nonce)?.failed(2)?;
    assert!(refused.contains("setfont"), "{refused}");

    // Stopped in mid-request, it lets it go itself, and gives the terminal back.
    let asking = device.ask(TEXT, &asked.nonce)?;
    console.wait_for("PIN and Enter")?;
    assert!(!console.echoes()?);
    assert!(device.daemon.stop()?.success());
    asking.failed(2)?;
    assert!(console.echoes()?);
    console.switch_to(before)?;
    console.wait_until_in_front(before)?;
    device.move_to(&console.path())?;

    // Killed in mid-request, the daemon leaves the terminal locked; the next one lets it go.
    let asking = device.ask(TEXT, &asked.nonce)?;
    console.wait_for("PIN and Enter")?;
    device.daemon.kill()?;
    asking.failed(2)?;
    let _ = console.switch_to(before);
    assert_eq!(console.in_front()?, console.number);
    device.move_to(&console.path())?;
    console.switch_to(before)?;
    console.wait_until_in_front(before)
}

#[test]
fn another_program_s_lock_of_the_terminals_is_not_undone() -> Result<()> {
    let Some((console, mut device)) = console_with_device()? else {
        return Ok(());
    };
    let before = console.before;
    let asked = Asked::new(TEXT, 7)?;
    // Neither for a request nor by a daemon that ends or starts.
    console.lock()?;
    let refused = device.ask(TEXT, &asked.nonce)?.failed(2)?;
    assert!(refused.contains("stays in front"), "{refused}");
    device.move_to(&console.path())?;
    let refused = device.ask(TEXT, &asked.nonce)?.failed(2)?;
    assert!(refused.contains("stays in front"), "{refused}");
    assert_eq!(console.in_front()?, before);
    console.unlock()?;
    console.switch_to(console.number)?;
    console.wait_until_in_front(console.number)
}
