//! Manager, backend or both are killed while a guest writes: what the guest was told is durable
//! is there afterwards.

#![expect(
    clippy::indexing_slicing,
    reason = "what a JSON value lacks is null, which no test expects; a panic is a failed test"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use support::vmm::{PASSWORD, Vmm, command, nv_read, with_sessions};
use support::{Host, wait_until};

const INDEX: u32 = 0x0150_0001;
const OWNER: u32 = 0x4000_0001;
/// The backend answers after half a second at the latest: an answer that took about as long may
/// have come before its state was durable, and those after it, too.
const PROMPT: Duration = Duration::from_millis(400);
/// Moments of the kill, spread over some commits.
const MOMENTS: u32 = 10;
const STEP: Duration = Duration::from_micros(700);

#[test]
fn what_a_guest_was_told_is_there_after_its_backend_was_killed() -> Result<()> {
    let host = Host::enrolled_with("backend_restarts_per_hour = 0\n")?;
    let vm = prepared(&host)?;
    for moment in 0..MOMENTS {
        let writer = Writer::start(attach(&host, &vm)?);
        thread::sleep(STEP * moment);
        host.kill_backends()?;
        let told = writer.end()?;
        wait_until("the end of the backend", || {
            Ok(host.json(["show", &vm])?["state"] == "stopped")
        })?;
        check(&host, &vm, told)?;
    }
    Ok(())
}

#[test]
fn what_a_guest_was_told_is_there_after_manager_and_backend_were_killed() -> Result<()> {
    let mut host = Host::enrolled_with("backend_restarts_per_hour = 0\n")?;
    let vm = prepared(&host)?;
    for moment in 0..MOMENTS {
        let writer = Writer::start(attach(&host, &vm)?);
        thread::sleep(STEP * moment);
        host.crash()?;
        host.kill_backends()?;
        let told = writer.end()?;
        host.start_again()?;
        check(&host, &vm, told)?;
    }
    Ok(())
}

#[test]
fn a_guest_goes_on_while_its_manager_is_dead_and_all_is_durable_when_it_is_back() -> Result<()> {
    let mut host = Host::enrolled_with("backend_restarts_per_hour = 0\n")?;
    let vm = prepared(&host)?;
    for moment in 0..MOMENTS {
        let writer = Writer::start(attach(&host, &vm)?);
        thread::sleep(STEP * moment);
        host.crash()?;
        thread::sleep(PROMPT * 2);
        host.start_again()?;
        let last = writer.stop()?;
        wait_until("all state to be durable", || {
            Ok(host.json(["show", &vm])?["backend"]["degraded"] == false)
        })?;
        host.crash()?;
        host.kill_backends()?;
        host.start_again()?;
        check(&host, &vm, last)?;
    }
    Ok(())
}

/// A guest that writes rising numbers into its NV memory.
struct Writer {
    done: Arc<AtomicBool>,
    thread: JoinHandle<Written>,
}

#[derive(Default)]
struct Written {
    /// The last number that was answered.
    last: u64,
    /// The last of those that were answered promptly, from the first on.
    prompt: u64,
    error: Option<anyhow::Error>,
}

impl Writer {
    fn start(mut vmm: Vmm) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let is_done = Arc::clone(&done);
        let thread = thread::spawn(move || {
            let mut written = Written::default();
            let mut is_prompt = true;
            let first = match number(&mut vmm) {
                Ok(found) => found,
                Err(error) => {
                    return Written {
                        error: Some(error),
                        ..written
                    };
                }
            };
            (written.last, written.prompt) = (first, first);
            while !is_done.load(Ordering::SeqCst) {
                let began = Instant::now();
                let next = written.last + 1;
                if let Err(error) = write(&mut vmm, next) {
                    written.error = Some(error);
                    break;
                }
                written.last = next;
                is_prompt &= began.elapsed() < PROMPT;
                if is_prompt {
                    written.prompt = next;
                }
            }
            written
        });
        Self { done, thread }
    }

    /// Waits until the guest's TPM is gone: the last number of which it was told that it is
    /// durable.
    fn end(self) -> Result<u64> {
        let written = self
            .thread
            .join()
            .map_err(|_| anyhow::anyhow!("the guest"))?;
        written.error.context("its TPM did not end")?;
        Ok(written.prompt)
    }

    /// Stops the guest: the last number that it wrote. No command may have failed.
    fn stop(self) -> Result<u64> {
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
fn prepared(host: &Host) -> Result<String> {
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    // OWNERWRITE, OWNERREAD, NO_DA; 8 bytes.
    let public = [
        &INDEX.to_be_bytes()[..],
        &[0x00, 0x0b],
        &0x0202_0002u32.to_be_bytes(),
        &[0, 0, 0, 8],
    ]
    .concat();
    let length = u16::try_from(public.len())?.to_be_bytes();
    let define = [
        &OWNER.to_be_bytes()[..],
        PASSWORD,
        &[0, 0],
        &length,
        &public,
    ]
    .concat();
    vmm.succeed(&with_sessions(command(0x12a, &define)))?;
    write(&mut vmm, 0)?;
    drop(vmm);
    host.ctl(["stop", &vm])?;
    Ok(vm)
}

fn attach(host: &Host, vm: &str) -> Result<Vmm> {
    host.ctl(["start", vm])?;
    Vmm::attach(&host.control(vm)?)
}

/// Starts from what is durable, and stops again.
fn check(host: &Host, vm: &str, told: u64) -> Result<()> {
    let mut vmm = attach(host, vm)?;
    let found = number(&mut vmm)?;
    drop(vmm);
    host.ctl(["stop", vm])?;
    ensure!(found >= told, "told {told}, found {found}");
    // At most the one that was under way is more.
    ensure!(found <= told + 1 || told == 0, "told {told}, found {found}");
    Ok(())
}

/// TPM2_NV_Write with the owner's empty password.
fn write(vmm: &mut Vmm, number: u64) -> Result<()> {
    let parameters = [
        &OWNER.to_be_bytes()[..],
        &INDEX.to_be_bytes(),
        PASSWORD,
        &[0, 8],
        &number.to_be_bytes(),
        &[0, 0],
    ]
    .concat();
    vmm.succeed(&with_sessions(command(0x137, &parameters)))?;
    Ok(())
}

fn number(vmm: &mut Vmm) -> Result<u64> {
    let bytes = nv_read(vmm, INDEX)?;
    Ok(u64::from_be_bytes(bytes.as_slice().try_into()?))
}
