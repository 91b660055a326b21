//! Manager, backend or both are killed while a guest writes: what the guest was told is durable
//! is there afterwards.

#![expect(
    clippy::indexing_slicing,
    reason = "what a JSON value lacks is null, which no test expects; a panic is a failed test"
)]

mod support;

use std::thread;
use std::time::Duration;

use anyhow::Result;
use support::writer::{ANSWERS_MEAN_DURABLE, Writer, attach, check, prepared};
use support::{Host, wait_until};

/// Longer than a guest waits for its manager.
const AWAY: Duration = Duration::from_millis(800);
/// Moments of the kill, spread over some commits.
const MOMENTS: u32 = 10;
const STEP: Duration = Duration::from_micros(700);

#[test]
fn what_a_guest_was_told_is_there_after_its_backend_was_killed() -> Result<()> {
    let host = Host::enrolled_with(ANSWERS_MEAN_DURABLE)?;
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
    let mut host = Host::enrolled_with(ANSWERS_MEAN_DURABLE)?;
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
        thread::sleep(AWAY);
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
