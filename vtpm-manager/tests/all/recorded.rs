//! What happens to a vRoT, and what the audit log says of it, are the same: whenever the manager is
//! killed, and while the log cannot be written.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use uuid::Uuid;

use crate::support::bus::{Bus, Step, VOLATILE};
use crate::support::records::differences;
use crate::support::vmm::Vmm;
use crate::support::{Host, TENANT, said, wait_until};

const CONFIGURATION: &str = "backend_restarts_per_hour = 0\n";

/// Each order, and how many commits it consists of.
const ORDERS: [(&str, u32); 7] = [
    ("create", 1),
    ("create-and-start", 1),
    ("start", 1),
    ("stop", 1),
    ("suspend", 1),
    ("resume", 1),
    ("delete", 2),
];

#[test]
fn log_and_store_say_the_same_at_whichever_step_of_an_order_the_manager_is_killed() -> Result<()> {
    let mut host = Host::enrolled_with(CONFIGURATION)?;
    let bus = host.put_bus_between()?;
    for (order, commits) in ORDERS {
        for commit in 0..commits {
            for step in [Step::BeforeWrite(VOLATILE), Step::AfterWrite(VOLATILE)] {
                killed_during(&mut host, &bus, order, commit, step).with_context(|| {
                    format!("the manager was killed at {step:x?} of commit {commit} of {order}")
                })?;
            }
        }
    }
    host.ctl(["audit", "verify"])?;
    Ok(())
}

fn killed_during(host: &mut Host, bus: &Bus, order: &str, commit: u32, step: Step) -> Result<()> {
    let vm = match order {
        "create" | "create-and-start" => Uuid::new_v4().to_string(),
        _ => host.create()?,
    };
    if matches!(order, "stop" | "suspend" | "resume") {
        host.ctl(["start", &vm])?;
        drop(Vmm::attach(&host.control(&vm)?)?);
    }
    if order == "resume" {
        host.ctl(["suspend", &vm])?;
    }
    let vrot = host.json(["show", &vm]).map(|view| view["vrot"].clone());
    bus.kill_at(step, commit, vec![host.manager()?]);
    let mut ordered = match order {
        "create" => host.vtpmctl(["create", "--vm", &vm, "--tenant", TENANT]),
        "create-and-start" => host.vtpmctl(["create", "--vm", &vm, "--tenant", TENANT, "--start"]),
        order => host.vtpmctl([order, &vm]),
    };
    let mut ordered = ordered.stderr(Stdio::null()).spawn()?;
    wait_until("that step", || Ok(bus.has_killed()))?;
    host.crash()?;
    ordered.wait()?;
    host.start_again()?;
    wait_until("log and store to say the same", || {
        Ok(differences(host)?.is_empty())
    })?;
    if order == "delete" {
        is_deleted(host, &vm, &vrot?)?;
    }
    Ok(())
}

/// It is gone, and one line tells of it.
fn is_deleted(host: &Host, vm: &str, vrot: &Value) -> Result<()> {
    ensure!(host.refused(["show", vm])?.contains("no vRoT or VM"));
    let lines = host.audit()?;
    let deleted: Vec<&Value> = (lines.iter())
        .filter(|line| line["event"] == "vrot-deleted" && line["vrot"] == *vrot)
        .collect();
    assert_eq!(deleted.len(), 1, "{deleted:?}");
    let line = deleted[0];
    let uid = nix::unistd::geteuid().as_raw();
    assert_eq!((&line["vm"], &line["tenant"]), (&vm.into(), &TENANT.into()));
    assert_eq!(line["by_uid"], uid);
    // To delete what is deleted changes nothing.
    host.ctl(["delete", vm])?;
    host.ctl(["delete", vrot.as_str().context("a number")?])?;
    assert_eq!(host.audit()?.len(), lines.len());
    host.refused(["delete", &Uuid::new_v4().to_string()])?;
    Ok(())
}

#[test]
fn a_deletion_that_a_kill_cut_short_is_finished_and_does_not_come_back_with_a_backup() -> Result<()>
{
    let mut host = Host::enrolled_with(CONFIGURATION)?;
    let (vm, other) = (host.create()?, host.create()?);
    let vrot = host.json(["show", &vm])?["vrot"].clone();
    host.shut_down()?;
    let backup = host.path("backup");
    fs::copy(host.path("state/store.redb"), &backup)?;
    host.start_again()?;

    let bus = host.put_bus_between()?;
    bus.kill_at(Step::AfterWrite(VOLATILE), 0, vec![host.manager()?]);
    let mut ordered = host
        .vtpmctl(["delete", &vm])
        .stderr(Stdio::null())
        .spawn()?;
    wait_until("its key to be destroyed", || Ok(bus.has_killed()))?;
    host.crash()?;
    ordered.wait()?;
    host.start_again()?;
    is_deleted(&host, &vm, &vrot)?;

    host.shut_down()?;
    fs::copy(&backup, host.path("state/store.redb"))?;
    host.start_again()?;
    let refusal = host.json(["host", "show"])?["store"]["refusal"].clone();
    let refusal = refusal.as_str().context("the backup is refused")?;
    host.ctl(["host", "recover", "--accept", refusal, "--yes"])?;
    is_deleted(&host, &vm, &vrot)?;
    host.ctl(["start", &other])?;
    ensure!(differences(&host)?.is_empty(), "{:?}", differences(&host)?);
    Ok(())
}

#[test]
fn a_deletion_whose_line_cannot_be_written_is_unfinished_and_told_until_it_can() -> Result<()> {
    let mut host = Host::enrolled_with(CONFIGURATION)?;
    let (one, two, other) = (host.create()?, host.create()?, host.create()?);
    let vrot_of = |vm: &str| anyhow::Ok(host.json(["show", vm])?["vrot"].clone());
    let vrots = [vrot_of(&one)?, vrot_of(&two)?];
    let log = SmallLog::of(&mut host)?;

    log.fill(&host, &other)?;
    for vm in [&one, &two] {
        let refused = host.refused(["delete", vm])?;
        ensure!(refused.contains("audit log"), "{refused}");
        let refused = host.refused(["show", vm])?;
        ensure!(refused.contains("its key is destroyed"), "{refused}");
        host.refused(["start", vm])?;
    }
    assert_eq!(host.metric("vrot_deletions_unfinished")?, 2.0);
    host.refused(["delete", &one])?;
    // Another manager knows it as well.
    host.crash()?;
    host.start_again()?;
    assert_eq!(host.metric("vrot_deletions_unfinished")?, 2.0);
    ensure!(host.refused(["delete", &one])?.contains("audit log"));

    log.make_room()?;
    host.ctl(["delete", &one])?;
    is_deleted(&host, &one, &vrots[0])?;
    // By itself.
    wait_until("the other deletion to be finished", || {
        Ok(host.metric("vrot_deletions_unfinished")? == 0.0)
    })?;
    is_deleted(&host, &two, &vrots[1])?;
    host.ctl(["audit", "verify"])?;
    Ok(())
}

/// A disk of its own for the audit log. It goes before the host does.
struct SmallLog {
    disk: PathBuf,
}

impl SmallLog {
    fn of(host: &mut Host) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "this test mounts a file system: run it as root"
        );
        host.shut_down()?;
        let disk = PathBuf::from(host.path("log"));
        fs::create_dir(&disk)?;
        let mount = ["-t", "tmpfs", "-o", "size=256k,mode=700", "none"];
        let mounted = said(Command::new("mount").args(mount).arg(&disk))?;
        ensure!(mounted.status == 0, "{}", mounted.err);
        let log = Self { disk };
        let at = host.path("state/audit.jsonl");
        fs::copy(&at, log.disk.join("audit.jsonl"))?;
        fs::remove_file(&at)?;
        std::os::unix::fs::symlink(log.disk.join("audit.jsonl"), &at)?;
        host.start_again()?;
        Ok(log)
    }

    /// Until not even the rest of a page takes a line.
    fn fill(&self, host: &Host, vm: &str) -> Result<()> {
        let mut filler = fs::File::create(self.disk.join("filler"))?;
        while std::io::Write::write_all(&mut filler, &[0; 512]).is_ok() {}
        let takes = |order| anyhow::Ok(said(&mut host.vtpmctl([order, vm]))?.status == 0);
        while takes("start")? && takes("stop")? {}
        Ok(())
    }

    fn make_room(&self) -> Result<()> {
        Ok(fs::remove_file(self.disk.join("filler"))?)
    }
}

impl Drop for SmallLog {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.disk).status();
    }
}
