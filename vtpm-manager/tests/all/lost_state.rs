//! A backend that has answered its guest before the state was durable ends before it is: verifiers,
//! operators and the audit log are told, until the vRoT has a new generation. One that had nothing
//! open is no reason to warn.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use attestation::StateLoss;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::bus::{Step, VOLATILE};
use crate::support::evidence::leaf;
use crate::support::vmm::{Vmm, command, define_index};
use crate::support::writer::ANSWERS_MEAN_DURABLE;
use crate::support::{Host, wait_until};

const AUTOMATIC: &str = "backend_restarts_per_hour = 0\n";
const INDICES: std::ops::Range<u32> = 0x0150_0000..0x0150_0004;

/// A running vRoT whose guest is attached.
fn running(host: &Host) -> Result<(String, Vmm)> {
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    let vmm = Vmm::attach(&host.control(&vm)?)?;
    Ok((vm, vmm))
}

/// Commands that change permanent state, all of which are answered.
fn write(vmm: &mut Vmm) -> Result<()> {
    INDICES
        .into_iter()
        .try_for_each(|index| define_index(vmm, index))
}

fn end(process: i32) -> Result<()> {
    Ok(kill(Pid::from_raw(process), Signal::SIGKILL)?)
}

fn has_stopped(host: &Host, vm: &str) -> Result<()> {
    wait_until("the end of the backend", || {
        Ok(host.json(["show", vm])?["state"] == "stopped")
    })
}

/// Everybody is told, and goes on to be.
fn is_told(host: &mut Host, vm: &str) -> Result<()> {
    for _ in 0..2 {
        let shown = host.json(["show", vm])?;
        let batch = shown["state_loss"]["batch"].as_u64();
        ensure!(batch.is_some(), "{shown}");
        ensure!(host.ctl(["list"])?.contains("LOST"));
        ensure!(host.ctl(["show", vm])?.contains("state lost"));
        assert_eq!(host.metric("vrot_state_lost")?, 1.0);
        let lines = host.audit()?;
        let told: Vec<_> = lines
            .iter()
            .filter(|line| line["event"] == "state-lost")
            .collect();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0]["vrot"], shown["vrot"]);
        assert_eq!(told[0]["batch"].as_u64(), batch);
        host.ctl(["start", vm])?;
        let mut vmm = Vmm::attach(&host.control(vm)?)?;
        let StateLoss::Possible { batch: stated, .. } = leaf(&mut vmm)?.state_loss else {
            anyhow::bail!("evidence does not say it");
        };
        assert_eq!(Some(stated), batch);
        drop(vmm);
        host.ctl(["stop", vm])?;
        host.shut_down()?;
        host.start_again()?;
    }
    Ok(())
}

/// Its backend is killed before the next manager is there.
fn ends_without_a_manager(host: &mut Host, vm: &str) -> Result<()> {
    host.kill_backends()?;
    host.start_again()?;
    has_stopped(host, vm)
}

fn nothing_is_told(host: &Host, vm: &str) -> Result<()> {
    assert!(host.json(["show", vm])?["state_loss"].is_null());
    assert_eq!(host.metric("vrot_state_lost")?, 0.0);
    assert!(
        host.audit()?
            .iter()
            .all(|line| line["event"] != "state-lost")
    );
    host.ctl(["start", vm])?;
    let mut vmm = Vmm::attach(&host.control(vm)?)?;
    assert_eq!(leaf(&mut vmm)?.state_loss, StateLoss::Excluded);
    Ok(())
}

#[test]
fn what_a_degraded_backend_took_with_it_is_told_for_good() -> Result<()> {
    let mut host = Host::enrolled_with(AUTOMATIC)?;
    let (vm, mut vmm) = running(&host)?;
    let backend = host.backend(&vm)?;
    host.signal(Signal::SIGSTOP)?;
    write(&mut vmm)?;
    end(backend)?;
    host.signal(Signal::SIGCONT)?;
    has_stopped(&host, &vm)?;
    is_told(&mut host, &vm)
}

#[test]
fn so_it_is_where_no_manager_was_there_to_see_it() -> Result<()> {
    let mut host = Host::enrolled_with(AUTOMATIC)?;
    let (vm, mut vmm) = running(&host)?;
    host.crash()?;
    write(&mut vmm)?;
    ends_without_a_manager(&mut host, &vm)?;
    is_told(&mut host, &vm)
}

#[test]
fn so_it_is_where_not_even_its_folder_is_left() -> Result<()> {
    let mut host = Host::enrolled_with(AUTOMATIC)?;
    let (vm, mut vmm) = running(&host)?;
    host.crash()?;
    write(&mut vmm)?;
    host.kill_backends()?;
    std::fs::remove_dir_all(host.path("run"))?;
    host.start_again()?;
    has_stopped(&host, &vm)?;
    is_told(&mut host, &vm)
}

#[test]
fn the_end_of_a_backend_that_had_nothing_open_is_no_loss() -> Result<()> {
    // However busy the machine is, what was answered is durable.
    let mut host = Host::enrolled_with(ANSWERS_MEAN_DURABLE)?;
    let (vm, mut vmm) = running(&host)?;
    write(&mut vmm)?;
    end(host.backend(&vm)?)?;
    has_stopped(&host, &vm)?;
    nothing_is_told(&host, &vm)?;
    host.crash()?;
    ends_without_a_manager(&mut host, &vm)?;
    nothing_is_told(&host, &vm)
}

#[test]
fn a_backend_that_caught_up_with_its_guest_has_nothing_to_lose() -> Result<()> {
    let mut host = Host::enrolled_with(AUTOMATIC)?;
    let (vm, mut vmm) = running(&host)?;
    host.signal(Signal::SIGSTOP)?;
    write(&mut vmm)?;
    host.signal(Signal::SIGCONT)?;
    wait_until("all state to be durable", || {
        Ok(host.json(["show", &vm])?["backend"]["degraded"] == false)
    })?;
    host.crash()?;
    ends_without_a_manager(&mut host, &vm)?;
    nothing_is_told(&host, &vm)
}

#[test]
fn what_a_guest_did_after_its_vrot_was_stopped_in_the_store_is_kept() -> Result<()> {
    let mut host = Host::enrolled_with(AUTOMATIC)?;
    let bus = host.put_bus_between()?;
    let (vm, mut vmm) = running(&host)?;
    // The manager ends between the stop's commit and the end of the backend, which goes on.
    bus.kill_at(Step::AfterWrite(VOLATILE), 0, vec![host.manager()?]);
    let mut stopping = host.vtpmctl(["stop", &vm]).spawn()?;
    wait_until("the stop to be in the store", || Ok(bus.has_killed()))?;
    host.crash()?;
    stopping.wait()?;
    write(&mut vmm)?;
    host.start_again()?;
    has_stopped(&host, &vm)?;
    wait_until("its backend to be ended", || {
        Ok(host.instances_of(&vm)?.is_empty() && host.json(["show", &vm])?["note"].is_null())
    })?;
    nothing_is_told(&host, &vm)?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    for index in INDICES {
        // TPM2_NV_ReadPublic
        vmm.succeed(&command(0x169, &index.to_be_bytes()))?;
    }
    Ok(())
}

#[test]
fn a_guest_that_waited_for_the_disk_was_told_nothing_that_is_not_durable() -> Result<()> {
    let host = Host::enrolled_on_small_disk("durability_deadline_ms = 5000\n")?;
    let (vm, mut vmm) = running(&host)?;
    let filling = host.fill_disk()?;
    let guest = thread::spawn(move || -> Result<()> {
        // Until the store needs more room than there is.
        (0x0150_0000..0x0150_0020).try_for_each(|index| define_index(&mut vmm, index))
    });
    wait_until("the store to fail", || {
        Ok(host.log().contains("state is not durable yet") || guest.is_finished())
    })?;
    ensure!(!guest.is_finished(), "the disk was not full");
    assert_eq!(host.json(["show", &vm])?["backend"]["degraded"], false);
    std::fs::remove_file(filling)?;
    guest.join().map_err(|_| anyhow::anyhow!("the guest"))??;
    thread::sleep(Duration::from_millis(100));
    assert_eq!(host.json(["show", &vm])?["backend"]["degraded"], false);
    assert_eq!(host.metric("vrot_degraded")?, 0.0);
    Ok(())
}
