//! A physical TPM whose signatures are as slow as a real one's: passes swtpm's commands on, waits
//! with every signature, and counts what a real part would write to its flash. All other commands
//! are as fast as swtpm, unless [`SlowTpm::slow_down`] says otherwise.
//!
//! It knows nothing of the manager: which NV index lives in the TPM's RAM (`ORDERLY`) it learns
//! from the definitions that go by.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tpm_wire::{HEADER, Header, ResponseCode, SESSIONS, read_frame};

/// The proxy. Its threads end with the process.
#[derive(Clone, Debug)]
pub(super) struct SlowTpm {
    socket: PathBuf,
    traffic: Arc<Mutex<Traffic>>,
    other: Arc<Mutex<Duration>>,
}

/// What went by so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Traffic {
    /// Signatures, each of them delayed.
    pub(super) signatures: u64,
    /// How long the last of them took, from the command's arrival to the response's departure.
    last_signature: Duration,
    /// When flash was written: NV indices that are not orderly, definitions, persistent objects.
    pub(super) flash: Vec<Instant>,
    /// Writes to orderly indices.
    pub(super) ram: u64,
    /// How long the last of them took, from the command's arrival to the response's departure.
    last_ram: Duration,
    orderly: BTreeSet<u32>,
}

/// The largest command or response of libtpms has 4096 bytes.
const MAX_FRAME: usize = 8192;
/// `TPM2_Certify`, `_CertifyCreation`, `_GetTime`, `_Quote`, `_Sign`, `_NV_Certify`,
/// `_CertifyX509`.
const SIGNATURES: [u32; 7] = [0x148, 0x14a, 0x14c, 0x158, 0x15d, 0x184, 0x197];
/// `TPM2_NV_Increment`, `_SetBits`, `_Extend`, `_Write`: the index is the second handle.
const NV_WRITES: [u32; 4] = [0x134, 0x135, 0x136, 0x137];
const NV_DEFINE_SPACE: u32 = 0x12a;
/// `TPM2_EvictControl`, `_NV_UndefineSpace`: flash is written for these as well.
const OTHER_FLASH: [u32; 2] = [0x120, 0x122];
/// `TPMA_NV_ORDERLY` (TPM 2.0 Part 2 §13.4).
const ORDERLY: u32 = 1 << 26;

impl SlowTpm {
    /// Listens at `socket` and `socket.ctrl` for what shall reach the TPM at `tpm`.
    pub(super) fn open(socket: PathBuf, tpm: &Path, signature: Duration) -> Result<Self> {
        let traffic = Arc::new(Mutex::new(Traffic::default()));
        let other = Arc::<Mutex<Duration>>::default();
        let listen = |path: &Path| {
            UnixListener::bind(path).with_context(|| format!("listening on {}", path.display()))
        };
        let data = listen(&socket)?;
        let control = listen(&control_path(&socket))?;
        let way = Way {
            tpm: tpm.to_owned(),
            signature,
            other: Arc::clone(&other),
            traffic: Arc::clone(&traffic),
            busy: Arc::default(),
        };
        serve(data, move |client| way.pass_commands(client))?;
        let tpm = control_path(tpm);
        serve(control, move |client| pass_control(client, &tpm))?;
        Ok(Self {
            socket,
            traffic,
            other,
        })
    }

    /// How the manager's configuration names it.
    pub(super) fn tcti(&self) -> String {
        format!("swtpm:path={}", self.socket.display())
    }

    /// From now on every command that is not a signature takes at least so long as well.
    pub(super) fn slow_down(&self, command: Duration) {
        *lock(&self.other) = command;
    }

    /// How long the last signature took.
    pub(super) fn last_signature(&self) -> Duration {
        lock(&self.traffic).last_signature
    }

    /// How long the last write to an orderly index took.
    pub(super) fn last_ram(&self) -> Duration {
        lock(&self.traffic).last_ram
    }

    /// What went by so far.
    pub(super) fn traffic(&self) -> Traffic {
        lock(&self.traffic).clone()
    }
}

/// The way to the TPM.
#[derive(Clone)]
struct Way {
    tpm: PathBuf,
    signature: Duration,
    other: Arc<Mutex<Duration>>,
    traffic: Arc<Mutex<Traffic>>,
    /// A TPM does one thing at a time.
    busy: Arc<Mutex<()>>,
}

impl Way {
    fn pass_commands(&self, mut client: UnixStream) -> io::Result<()> {
        while let Some(command) = read_frame(&mut client, MAX_FRAME)? {
            let begin = Instant::now();
            let response = {
                let _busy = lock(&self.busy);
                // swtpm serves one connection at a time; a client may keep its own open.
                let mut tpm = UnixStream::connect(&self.tpm)?;
                tpm.write_all(&command)?;
                let response =
                    read_frame(&mut tpm, MAX_FRAME)?.ok_or(io::ErrorKind::UnexpectedEof)?;
                if succeeded(&response) {
                    thread::sleep(self.delay(&command));
                }
                response
            };
            if succeeded(&response) {
                lock(&self.traffic).note(&command, begin.elapsed());
            }
            client.write_all(&response)?;
        }
        Ok(())
    }

    fn delay(&self, command: &[u8]) -> Duration {
        if is_signature(command) {
            self.signature
        } else {
            *lock(&self.other)
        }
    }
}

impl Traffic {
    /// Notes a command that succeeded, and how long it took.
    fn note(&mut self, command: &[u8], took: Duration) {
        let Some(code) = code(command) else { return };
        if SIGNATURES.contains(&code) {
            self.signatures += 1;
            self.last_signature = took;
        } else if NV_WRITES.contains(&code) {
            match number(command, HEADER + 4) {
                Some(index) if self.orderly.contains(&index) => {
                    self.ram += 1;
                    self.last_ram = took;
                }
                _ => self.flash.push(Instant::now()),
            }
        } else if code == NV_DEFINE_SPACE {
            if let Some((index, attributes)) = definition(command) {
                self.orderly.remove(&index);
                if attributes & ORDERLY != 0 {
                    self.orderly.insert(index);
                }
            }
            self.flash.push(Instant::now());
        } else if OTHER_FLASH.contains(&code) {
            self.flash.push(Instant::now());
        }
    }
}

/// Number and attributes of the index that `TPM2_NV_DefineSpace` defines (TPM 2.0 Part 3 §31.3):
/// handle, authorization area, TPM2B_AUTH, TPM2B_NV_PUBLIC. Only the first of these parameters
/// can be encrypted, and an encrypted one keeps its length.
fn definition(command: &[u8]) -> Option<(u32, u32)> {
    let sessions = Header::parse(command)?.tag == SESSIONS;
    let area = HEADER + 4;
    let parameters = if sessions {
        area + 4 + usize::try_from(number(command, area)?).ok()?
    } else {
        area
    };
    let auth = command.get(parameters..parameters + 2)?;
    let auth = usize::from(u16::from_be_bytes(auth.try_into().ok()?));
    let public = parameters + 2 + auth + 2;
    // nvIndex, nameAlg, attributes
    Some((number(command, public)?, number(command, public + 6)?))
}

fn is_signature(command: &[u8]) -> bool {
    code(command).is_some_and(|code| SIGNATURES.contains(&code))
}

fn succeeded(response: &[u8]) -> bool {
    code(response).is_some_and(|code| ResponseCode::new(code).is_success())
}

/// The command's or the response's code.
fn code(frame: &[u8]) -> Option<u32> {
    Header::parse(frame).map(|header| header.code)
}

fn number(frame: &[u8], at: usize) -> Option<u32> {
    let bytes = frame.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn serve(
    listener: UnixListener,
    pass: impl Fn(UnixStream) -> io::Result<()> + Clone + Send + 'static,
) -> Result<()> {
    thread::Builder::new().spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let pass = pass.clone();
            thread::spawn(move || {
                if let Err(error) = pass(client)
                    && !client_went_away(&error)
                {
                    eprintln!("   the way to the physical TPM: {error}");
                }
            });
        }
    })?;
    Ok(())
}

/// A manager that is killed says no farewell.
fn client_went_away(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

/// Passes control requests and their responses; each fits into one read.
fn pass_control(mut client: UnixStream, tpm: &Path) -> io::Result<()> {
    let mut buffer = [0; MAX_FRAME];
    loop {
        let length = client.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        let mut tpm = UnixStream::connect(tpm)?;
        tpm.write_all(buffer.get(..length).unwrap_or_default())?;
        let length = tpm.read(&mut buffer)?;
        client.write_all(buffer.get(..length).unwrap_or_default())?;
    }
}

fn control_path(socket: &Path) -> PathBuf {
    let mut control = socket.as_os_str().to_owned();
    control.push(".ctrl");
    control.into()
}

/// What a panicked thread left is still good: every change is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tpm_wire::frame;

    use super::*;

    fn framed(code: u32, body: &[u8]) -> Vec<u8> {
        frame(SESSIONS, code, body)
    }

    fn define(index: u32, attributes: u32) -> Vec<u8> {
        let mut body = 0x4000_0001u32.to_be_bytes().to_vec();
        body.extend([0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0]);
        body.extend([0, 3, 1, 2, 3]);
        body.extend([0, 14]);
        body.extend(index.to_be_bytes());
        body.extend([0, 11]);
        body.extend(attributes.to_be_bytes());
        body.extend([0, 0, 0, 32]);
        framed(NV_DEFINE_SPACE, &body)
    }

    fn write(index: u32) -> Vec<u8> {
        framed(0x137, &index.to_be_bytes().repeat(2))
    }

    #[test]
    fn writes_to_orderly_indices_do_not_count_as_flash() {
        let mut traffic = Traffic::default();
        traffic.note(&define(1, ORDERLY | 6), Duration::ZERO);
        traffic.note(&define(2, 6), Duration::ZERO);
        assert_eq!(traffic.flash.len(), 2);
        traffic.note(&write(1), Duration::ZERO);
        assert_eq!((traffic.flash.len(), traffic.ram), (2, 1));
        traffic.note(&write(2), Duration::ZERO);
        traffic.note(&write(3), Duration::ZERO);
        assert_eq!((traffic.flash.len(), traffic.ram), (4, 1));
        // Defined again, in flash this time.
        traffic.note(&define(1, 6), Duration::ZERO);
        traffic.note(&write(1), Duration::ZERO);
        assert_eq!((traffic.flash.len(), traffic.ram), (6, 1));
    }

    #[test]
    fn quotes_and_signatures_are_slow_and_reading_is_not() {
        assert!(is_signature(&framed(0x158, &[])));
        assert!(is_signature(&framed(0x15d, &[])));
        assert!(!is_signature(&framed(0x14e, &[])));
        assert!(!is_signature(&[]));
    }
}
