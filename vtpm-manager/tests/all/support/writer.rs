//! A guest that writes without a pause, and what must be there of it afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::vmm::{OWNER, Vmm, define_index, nv_read, with_password};
use super::{Host, wait_until};

/// Longer than any commit, or any restart of the manager: whoever is answered was told that it is
/// durable.
pub(crate) const ANSWERS_MEAN_DURABLE: &str =
    "durability_deadline_ms = 5000\nbackend_restarts_per_hour = 0\n";

/// Moments of an end, spread over some commits.
pub(crate) const MOMENTS: u32 = 10;
pub(crate) const STEP: Duration = Duration::from_micros(700);

const INDEX: u32 = 0x0150_0001;

/// A guest that writes rising numbers into its NV memory.
pub(crate) struct Writer {
    done: Arc<AtomicBool>,
    /// How many numbers were answered.
    answered: Arc<AtomicU64>,
    thread: JoinHandle<Written>,
}

#[derive(Default)]
struct Written {
    /// The last number that was answered.
    last: u64,
    error: Option<anyhow::Error>,
}

impl Writer {
    pub(crate) fn start(mut vmm: Vmm) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let is_done = Arc::clone(&done);
        let answered = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&answered);
        let thread = thread::spawn(move || {
            let mut written = Written::default();
            match number(&mut vmm) {
                Ok(found) => written.last = found,
                Err(error) => {
                    written.error = Some(error);
                    return written;
                }
            }
            while !is_done.load(Ordering::SeqCst) {
                let next = written.last + 1;
                if let Err(error) = write(&mut vmm, next) {
                    written.error = Some(error);
                    break;
                }
                written.last = next;
                count.fetch_add(1, Ordering::SeqCst);
            }
            written
        });
        Self {
            done,
            answered,
            thread,
        }
    }

    /// How many numbers it has written so far.
    pub(crate) fn written(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }

    /// Waits until the guest's TPM is gone: the last number that was answered.
    pub(crate) fn end(self) -> Result<u64> {
        let written = self
            .thread
            .join()
            .map_err(|_| anyhow::anyhow!("the guest"))?;
        written.error.context("its TPM did not end")?;
        Ok(written.last)
    }

    /// Stops the guest: the last number that it wrote. No command may have failed.
    pub(crate) fn stop(self) -> Result<u64> {
        self.done.store(true, Ordering::SeqCst);
        let written = self
            .thread
            .join()
            .map_err(|_| anyhow::anyhow!("the guest"))?;
        match written.error {
            None => Ok(written.last),
            Some(error) => Err(error.context("a command failed")),
        }
    }
}

/// A vRoT with an index in its NV memory; it is stopped.
pub(crate) fn prepared(host: &Host) -> Result<String> {
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    define_index(&mut vmm, INDEX)?;
    write(&mut vmm, 0)?;
    drop(vmm);
    host.ctl(["stop", &vm])?;
    Ok(vm)
}

pub(crate) fn attach(host: &Host, vm: &str) -> Result<Vmm> {
    host.ctl(["start", vm])?;
    Vmm::attach(&host.control(vm)?)
}

/// Starts from what is durable, and stops again.
pub(crate) fn check(host: &Host, vm: &str, told: u64) -> Result<()> {
    let mut vmm = attach(host, vm)?;
    let found = number(&mut vmm)?;
    drop(vmm);
    host.ctl(["stop", vm])?;
    ensure!(found >= told, "told {told}, found {found}");
    // At most the one that was under way is more.
    ensure!(found <= told + 1 || told == 0, "told {told}, found {found}");
    Ok(())
}

/// A guest writes while its manager ends at each of the moments and another one is started: no command
/// fails, and all that it was told is durable when the new manager has caught up.
pub(crate) fn check_through_restarts(
    host: &mut Host,
    mut end: impl FnMut(&mut Host) -> Result<()>,
) -> Result<()> {
    let vm = prepared(host)?;
    for moment in 0..MOMENTS {
        let writer = Writer::start(attach(host, &vm)?);
        thread::sleep(STEP * moment);
        end(host)?;
        host.start_again()?;
        let last = writer.stop()?;
        wait_until("all state to be durable", || {
            Ok(host.json(["show", &vm])?["backend"]["degraded"] == false)
        })?;
        host.crash()?;
        host.kill_backends()?;
        host.start_again()?;
        check(host, &vm, last)?;
    }
    Ok(())
}

/// TPM2_NV_Write with the owner's empty password.
fn write(vmm: &mut Vmm, number: u64) -> Result<()> {
    let parameters = [&[0, 8], &number.to_be_bytes()[..], &[0, 0]].concat();
    let write = with_password(0x137, &[OWNER, INDEX], &parameters);
    vmm.succeed(&write).map(drop)
}

fn number(vmm: &mut Vmm) -> Result<u64> {
    let bytes = nv_read(vmm, INDEX)?;
    Ok(u64::from_be_bytes(bytes.as_slice().try_into()?))
}
