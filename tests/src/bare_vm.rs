//! A VM of which there is no more than its TPM: for services whose guest is this machine, and for more of
//! them than machines could be emulated.
//!
//! Its firmware is a few commands that measure a boot; its kernel's resource manager is a pair of TCP ports
//! at which each client has its commands executed in turn.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cert_chain::HashAlgorithm;
use tpm_wire::{MAX_SIZE, read_frame};

use crate::host_boot_log::HostBootLog;
use crate::vmm::{Control, Vmm};

/// A running VM. Its threads end with the process.
#[derive(Clone, Debug)]
pub struct BareVm {
    port: u16,
    event_log: PathBuf,
    vmm: Arc<Mutex<Vmm>>,
    before: Arc<Mutex<Option<Before>>>,
    signatures: Arc<Mutex<Signatures>>,
}

/// Signatures of keys that are not restricted.
#[derive(Debug, Default)]
struct Signatures {
    /// How long the TPM takes for each beside its own time.
    delay: Duration,
    /// How long each took, from the command's arrival to its response.
    took: Vec<Duration>,
}

/// What happens in the guest right before its next command of a kind.
type Before = (u32, u32);

/// What a thread needs that passes commands on.
const STACK: usize = 256 * 1024;
/// What the software stack says on the control channel fits into one read, and is granted.
const GRANTED: [u8; 4] = [0; 4];

impl BareVm {
    /// Attaches to a vRoT that runs and boots with it. The boot's event log is written into `folder`.
    pub fn boot(control: &Path, folder: &Path) -> Result<Self> {
        Self::boot_with(Control::connect(control)?.attach()?, folder)
    }

    /// Boots with a vRoT to which a VMM is attached.
    pub fn boot_with(mut vmm: Vmm, folder: &Path) -> Result<Self> {
        let log = HostBootLog::in_banks("6.12.0-1-cloud-amd64", &[HashAlgorithm::Sha256]);
        for (pcr, digest) in log.measurements() {
            vmm.extend(*pcr, digest)?;
        }
        fs::create_dir_all(folder)?;
        let event_log = folder.join("event-log");
        fs::write(&event_log, log.bytes())?;
        let (data, control, port) = two_ports()?;
        let vmm = Arc::new(Mutex::new(vmm));
        let tpm = Arc::clone(&vmm);
        let before = Arc::<Mutex<Option<Before>>>::default();
        let soon = Arc::clone(&before);
        let signatures = Arc::<Mutex<Signatures>>::default();
        let signed = Arc::clone(&signatures);
        serve(data, move |client| execute(client, &tpm, &soon, &signed))?;
        serve(control, grant)?;
        Ok(Self {
            port,
            event_log,
            vmm,
            before,
            signatures,
        })
    }

    /// The TPM, as `vrot-service --tpm` and tools take it.
    pub fn tpm(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }

    /// The same for a client in this process, which pays for no connection: one command with each write,
    /// one response with each read, as at `/dev/tpmrm0`.
    pub fn client(&self) -> BareVmClient {
        BareVmClient {
            vmm: Arc::clone(&self.vmm),
            response: Vec::new(),
        }
    }

    /// What the kernel would hand out.
    pub fn event_log(&self) -> &Path {
        &self.event_log
    }

    /// Measures something more.
    pub fn extend(&self, pcr: u32, content: &[u8]) -> Result<()> {
        self.extend_in(HashAlgorithm::Sha256, pcr, content)
    }

    /// The same in another bank.
    pub fn extend_in(&self, bank: HashAlgorithm, pcr: u32, content: &[u8]) -> Result<()> {
        let mut vmm = self.vmm.lock().unwrap_or_else(PoisonError::into_inner);
        vmm.extend(pcr, &bank.hash(&[content]))
    }

    /// Has something measured into this PCR right before the next command with this code
    /// (`TPM_CC`) is executed; [`BareVm::happened`] tells.
    pub fn extend_before(&self, command: u32, pcr: u32) {
        *self.before.lock().unwrap_or_else(PoisonError::into_inner) = Some((command, pcr));
    }

    /// Whether what was asked for with [`BareVm::extend_before`] has happened.
    pub fn happened(&self) -> bool {
        self.before
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_none()
    }

    /// Has each signature (`TPM2_Sign`) take so much longer, as it would with a slow part.
    pub fn slow_signatures(&self, delay: Duration) {
        lock(&self.signatures).delay = delay;
    }

    /// How long each signature took since this was asked last.
    pub fn signatures(&self) -> Vec<Duration> {
        std::mem::take(&mut lock(&self.signatures).took)
    }

    /// Takes the VM away, puts it aside in the meantime, and attaches it again where its guest was.
    pub fn set_aside(&self, meanwhile: impl FnOnce() -> Result<Vmm>) -> Result<()> {
        *self.vmm.lock().unwrap_or_else(PoisonError::into_inner) = meanwhile()?;
        Ok(())
    }
}

/// A client of a VM's TPM.
#[derive(Debug)]
pub struct BareVmClient {
    vmm: Arc<Mutex<Vmm>>,
    response: Vec<u8>,
}

impl Write for BareVmClient {
    fn write(&mut self, command: &[u8]) -> io::Result<usize> {
        self.response = lock(&self.vmm).respond(command)?;
        Ok(command.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for BareVmClient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        std::mem::take(&mut self.response).as_slice().read(buffer)
    }
}

/// Two ports in a row, as the software stack expects them: for commands, and for control.
fn two_ports() -> Result<(TcpListener, TcpListener, u16)> {
    const ATTEMPTS: usize = 100;
    for _ in 0..ATTEMPTS {
        let data = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = data.local_addr()?.port();
        let Some(next) = port.checked_add(1) else {
            continue;
        };
        if let Ok(control) = TcpListener::bind((Ipv4Addr::LOCALHOST, next)) {
            return Ok((data, control, port));
        }
    }
    None.context("there are no two free ports in a row")
}

/// Serves each client on a thread that serves others after it: the software stack connects anew for each
/// command, and a guest's kernel starts no thread for that.
fn serve(
    listener: TcpListener,
    client: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static,
) -> Result<()> {
    let waiting = Arc::new(AtomicUsize::new(0));
    start_serving(Arc::new(listener), waiting, client)?;
    Ok(())
}

/// A thread that takes client after client. One that is busy leaves another one that waits.
fn start_serving(
    listener: Arc<TcpListener>,
    waiting: Arc<AtomicUsize>,
    client: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static,
) -> io::Result<()> {
    waiting.fetch_add(1, Ordering::SeqCst);
    thread::Builder::new().stack_size(STACK).spawn(move || {
        for stream in listener.incoming().flatten() {
            if waiting.fetch_sub(1, Ordering::SeqCst) == 1 {
                let (listener, waiting) = (Arc::clone(&listener), Arc::clone(&waiting));
                // Without a thread, the next client waits for this one.
                let _ = start_serving(listener, waiting, client.clone());
            }
            // A client that has gone is nobody's concern.
            let _ = client(stream);
            waiting.fetch_add(1, Ordering::SeqCst);
        }
    })?;
    Ok(())
}

fn execute(
    mut client: TcpStream,
    vmm: &Mutex<Vmm>,
    before: &Mutex<Option<Before>>,
    signatures: &Mutex<Signatures>,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    while let Some(command) = read_frame(&mut client, MAX_SIZE)? {
        let begun = Instant::now();
        let signs = code_of(&command) == Some(SIGN);
        let response = {
            let mut vmm = vmm.lock().unwrap_or_else(PoisonError::into_inner);
            let mut before = before.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, pcr)) = before.take_if(|(code, _)| code_of(&command) == Some(*code)) {
                vmm.extend(pcr, &HashAlgorithm::Sha256.hash(&[b"in between"]))
                    .map_err(io::Error::other)?;
            }
            if signs {
                // Whoever else has a command waits as well.
                let delay = lock(signatures).delay;
                thread::sleep(delay);
            }
            vmm.respond(&command)?
        };
        if signs {
            lock(signatures).took.push(begun.elapsed());
        }
        client.write_all(&response)?;
    }
    Ok(())
}

/// `TPM2_Sign`.
const SIGN: u32 = 0x15d;

/// What a panicked thread left is still good: every change is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `TPM_CC` of a command (TPM 2.0 Part 3 §5.1).
fn code_of(command: &[u8]) -> Option<u32> {
    let code = command.get(6..10)?;
    Some(u32::from_be_bytes(code.try_into().ok()?))
}

fn grant(mut client: TcpStream) -> io::Result<()> {
    let mut order = [0; 64];
    while client.read(&mut order)? > 0 {
        client.write_all(&GRANTED)?;
    }
    Ok(())
}
