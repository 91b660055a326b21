//! The physical TPM is gone, or the disk is full: people see why nothing goes on, the daemon ends
//! when it is told to, and all goes on when the cause is gone.

use anyhow::{Result, ensure};

use crate::support::vmm::Vmm;
use crate::support::{Host, wait_until};

/// Switching the TPM on changes its permanent state.
fn use_tpm(host: &Host, vm: &str) -> Result<Vmm> {
    Vmm::attach(&host.control(vm)?)
}

fn metric(host: &Host, name: &str) -> Result<Option<String>> {
    let metrics = crate::support::http::ask(&host.socket(), "GET", "/metrics", "")?.body;
    let line = metrics.lines().find(|line| line.starts_with(name));
    Ok(line.map(ToOwned::to_owned))
}

#[test]
fn people_see_that_the_tpm_is_gone_and_the_daemon_ends_when_it_is_told_to() -> Result<()> {
    let mut host = Host::enrolled()?;
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    host.take_tpm_away()?;
    let vmm = use_tpm(&host, &vm)?;
    wait_until("the store to be stalled", || {
        Ok(metric(&host, "vrot_store_stalled_seconds")?
            .is_some_and(|line| line != "vrot_store_stalled_seconds 0"))
    })?;
    ensure!(metric(&host, "vrot_rollback_window_batches")?.is_some());
    let refused = host.refused(["stop", &vm])?;
    ensure!(refused.contains("nothing was begun"), "{refused}");
    ensure!(host.json(["show", &vm])?["state"] == "running");
    host.shut_down()?;
    drop(vmm);
    Ok(())
}

#[test]
fn on_a_full_disk_the_daemon_serves_and_goes_on_when_there_is_room() -> Result<()> {
    let mut host = Host::enrolled_on_small_disk("backend_restarts_per_hour = 0\n")?;
    let (one, two) = (host.create()?, host.create()?);
    host.ctl(["start", &one])?;
    host.ctl(["start", &two])?;
    host.crash()?;
    let filling = host.fill_disk()?;

    // It starts, with nowhere to write that it did.
    host.start_again()?;
    ensure!(metric(&host, "vrot_store_open")?.is_some());
    wait_until("the store to be open", || {
        Ok(metric(&host, "vrot_store_open")?.as_deref() == Some("vrot_store_open 1"))
    })?;
    ensure!(host.json(["show", &one])?["backend"]["process"].is_number());
    // What the store gave back when it was opened is taken again, and what is left of the audit
    // log's last block by lines as short as that of an end.
    let audit = host.path("state/audit.jsonl");
    let length = || anyhow::Ok(std::fs::metadata(&audit)?.len());
    loop {
        host.fill_disk()?;
        let before = length()?;
        crate::support::http::ask(&host.socket(), "PUT", "/metrics", "")?;
        if length()? == before {
            break;
        }
    }
    // A lock that is removed gives its block back only when it is closed.
    let locks: Vec<_> = std::fs::read_dir(host.path("state/locks"))?
        .map(|lock| Ok(std::fs::File::open(lock?.path())?))
        .collect::<Result<_>>()?;
    // A backend ends, and that cannot be recorded.
    let process = nix::unistd::Pid::from_raw(host.backend(&one)?);
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL)?;
    wait_until("its backend to be gone", || {
        Ok(host.json(["show", &one])?["backend"].is_null())
    })?;
    ensure!(host.json(["show", &one])?["state"] == "running");

    drop(locks);
    std::fs::remove_file(filling)?;
    wait_until("its end to be recorded", || {
        Ok(host.json(["show", &one])?["state"] == "stopped")
    })?;
    host.ctl(["start", &one])?;
    let audit = std::fs::read_to_string(&audit)?;
    ensure!(audit.matches("manager-started").count() == 2, "{audit}");
    ensure!(audit.matches("backend-ended").count() == 1, "{audit}");
    host.ctl(["stop", &two])?;
    Ok(())
}
