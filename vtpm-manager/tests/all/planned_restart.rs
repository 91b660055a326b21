//! The manager is restarted as planned while guests use their TPMs: they are answered all the while,
//! and nothing that they were told is lost.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use crate::support::vmm::{Vmm, define_index};
use crate::support::writer::{
    ANSWERS_MEAN_DURABLE, MOMENTS, STEP, Writer, attach, check, check_through_restarts, prepared,
};
use crate::support::{Host, wait_until};

/// That of [`ANSWERS_MEAN_DURABLE`], with which a guest waits in vain for a manager that was killed.
const DEADLINE: Duration = Duration::from_secs(5);

#[test]
fn a_guest_is_answered_during_a_planned_restart_before_the_new_manager_is_there() -> Result<()> {
    let mut host = Host::enrolled_with(ANSWERS_MEAN_DURABLE)?;
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    ensure!(host.shut_down()?.success());
    for index in 0x0150_0000..0x0150_0008 {
        let began = Instant::now();
        define_index(&mut vmm, index)?;
        ensure!(began.elapsed() < DEADLINE, "it waited for its deadline");
    }
    host.start_again()?;
    wait_until("all state to be durable", || {
        Ok(host.json(["show", &vm])?["backend"]["degraded"] == false)
    })?;
    Ok(())
}

#[test]
fn a_guest_that_writes_through_planned_restarts_finds_all_that_it_was_told() -> Result<()> {
    let mut host = Host::enrolled_with(ANSWERS_MEAN_DURABLE)?;
    check_through_restarts(&mut host, |host| {
        host.shut_down()?;
        Ok(())
    })
}

/// The backend is killed at moments around that at which its manager leaves it.
#[test]
fn what_a_guest_was_told_as_its_manager_left_is_there_or_said_to_be_lost() -> Result<()> {
    let mut host = Host::enrolled_with(ANSWERS_MEAN_DURABLE)?;
    let vm = prepared(&host)?;
    let mut losses = 0;
    for moment in 0..MOMENTS {
        let writer = Writer::start(attach(&host, &vm)?);
        host.signal(Signal::SIGTERM)?;
        thread::sleep(STEP * 8 * moment);
        host.kill_backends()?;
        let told = writer.end()?;
        host.shut_down()?;
        host.start_again()?;
        wait_until("the end of the backend", || {
            Ok(host.json(["show", &vm])?["state"] == "stopped")
        })?;
        let lines = host.audit()?;
        let lost = (lines.iter().filter(|line| line["event"] == "state-lost")).count();
        if lost == losses {
            check(&host, &vm, told)?;
        }
        losses = lost;
    }
    Ok(())
}
