//! A backend whose manager is started again: as planned, or because it was lost.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, anyhow, bail, ensure};
use backend_link::frame::{receive, send};
use backend_link::message::{FromBackend, ToBackend};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::support::Vmm;
use crate::support::managed::{Backend, define_index, pushed, status, told_status};

/// So long that nobody is answered because of it.
const DEADLINE_MS: u32 = 600_000;
/// Longer than a guest waits between two managers, and far below the deadline.
const A_WHILE: Duration = Duration::from_millis(200);

/// A guest that has started its TPM, and its manager, which has nothing to acknowledge.
fn started() -> Result<(Backend, UnixStream, Vmm)> {
    let backend = Backend::start()?;
    let mut manager = backend.opened(DEADLINE_MS, None)?;
    let mut listening = manager.try_clone()?;
    let acknowledging = thread::spawn(move || -> Result<()> {
        loop {
            match receive(&mut listening)? {
                FromBackend::StateChanged { sequence, .. } => {
                    send(&mut listening, &ToBackend::Persisted { sequence })?;
                }
                FromBackend::Status(_) => return Ok(()),
                _ => {}
            }
        }
    });
    let vmm = backend.guest()?.wait()?;
    send(&mut manager, &ToBackend::Hello)?;
    joined(acknowledging)?;
    Ok((backend, manager, vmm))
}

fn leaves(manager: &mut UnixStream) -> Result<()> {
    send(manager, &ToBackend::Leaving)?;
    Ok(manager.shutdown(Shutdown::Both)?)
}

/// A guest's command that changes permanent state; with the response, the VMM is back.
fn changes(mut vmm: Vmm, index: u32) -> JoinHandle<Result<Vmm>> {
    thread::spawn(move || {
        let code = define_index(&mut vmm, index)?;
        ensure!(code == 0, "0x{code:x}");
        Ok(vmm)
    })
}

fn joined<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread panicked"))?
}

/// The guest's next change is answered when this manager has acknowledged it, and not before.
fn waits_for(manager: &mut UnixStream, vmm: Vmm, index: u32) -> Result<Vmm> {
    let guest = changes(vmm, index);
    let (sequence, _) = pushed(manager)?;
    thread::sleep(A_WHILE);
    ensure!(!guest.is_finished(), "answered before it was durable");
    send(manager, &ToBackend::Persisted { sequence })?;
    joined(guest)
}

#[test]
fn a_guest_whose_manager_left_is_answered_before_the_next_one_is_there() -> Result<()> {
    let (backend, mut manager, vmm) = started()?;
    leaves(&mut manager)?;
    let vmm = joined(changes(vmm, 0x0150_0000))?;
    let vmm = joined(changes(vmm, 0x0150_0001))?;

    // The next one hears of it, and has all of it.
    let mut next = backend.connect()?;
    match receive(&mut next)? {
        FromBackend::Status(status) => ensure!(status.degraded, "{status:?}"),
        other => bail!("{other:?}"),
    }
    let (sequence, _) = pushed(&mut next)?;
    send(&mut next, &ToBackend::Persisted { sequence })?;
    let now = told_status(&mut next)?;
    ensure!(!now.degraded && now.persisted == now.pushed, "{now:?}");
    waits_for(&mut next, vmm, 0x0150_0002)?;
    Ok(())
}

#[test]
fn a_command_under_way_when_the_manager_leaves_is_answered_as_well() -> Result<()> {
    let (_backend, mut manager, vmm) = started()?;
    let guest = changes(vmm, 0x0150_0000);
    pushed(&mut manager)?;
    leaves(&mut manager)?;
    joined(guest)?;
    Ok(())
}

#[test]
fn after_a_planned_restart_a_guest_that_changed_nothing_waits_for_the_new_manager() -> Result<()> {
    let (backend, mut manager, vmm) = started()?;
    leaves(&mut manager)?;
    let mut next = backend.connect()?;
    ensure!(!status(&mut next)?.degraded);
    waits_for(&mut next, vmm, 0x0150_0000)?;
    ensure!(!status(&mut next)?.degraded);
    Ok(())
}

#[test]
fn that_a_manager_left_is_not_taken_for_a_word_of_the_next_one() -> Result<()> {
    let (backend, mut manager, vmm) = started()?;
    // The one is gone and the other there when the backend looks next.
    let process = Pid::from_raw(backend.process.id().try_into()?);
    kill(process, Signal::SIGSTOP)?;
    waitpid(process, Some(WaitPidFlag::WUNTRACED))?;
    leaves(&mut manager)?;
    let mut next = backend.connect()?;
    send(&mut next, &ToBackend::Hello)?;
    kill(process, Signal::SIGCONT)?;
    told_status(&mut next)?;
    waits_for(&mut next, vmm, 0x0150_0000)?;
    Ok(())
}

#[test]
fn a_guest_whose_manager_was_lost_waits_for_the_next_one_and_is_not_degraded() -> Result<()> {
    let (backend, manager, vmm) = started()?;
    manager.shutdown(Shutdown::Both)?;
    let guest = changes(vmm, 0x0150_0000);
    thread::sleep(A_WHILE);
    let mut next = backend.connect()?;
    let (sequence, _) = pushed(&mut next)?;
    thread::sleep(A_WHILE);
    ensure!(!guest.is_finished(), "answered before it was durable");
    send(&mut next, &ToBackend::Persisted { sequence })?;
    joined(guest)?;
    ensure!(!status(&mut next)?.degraded);
    Ok(())
}

/// A thousand backends that ask for it all the time keep a manager from starting.
#[test]
fn a_backend_that_waits_for_a_manager_leaves_the_processor_to_others() -> Result<()> {
    let (backend, manager, vmm) = started()?;
    manager.shutdown(Shutdown::Both)?;
    let guest = changes(vmm, 0x0150_0000);
    let wakings = || -> Result<u64> {
        let path = format!("/proc/{}/status", backend.process.id());
        let status = std::fs::read_to_string(path)?;
        let line = (status.lines()).find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        Ok(line.ok_or_else(|| anyhow!("{status}"))?.trim().parse()?)
    };
    thread::sleep(A_WHILE);
    let before = wakings()?;
    thread::sleep(A_WHILE);
    let woken = wakings()? - before;
    ensure!(!guest.is_finished());
    ensure!(woken < 5, "woken {woken} times");

    let mut next = backend.connect()?;
    let (sequence, _) = pushed(&mut next)?;
    send(&mut next, &ToBackend::Persisted { sequence })?;
    joined(guest)?;
    Ok(())
}
