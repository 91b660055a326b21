//! A log changes nothing of what is served: whoever does not read it, whatever disk it is on, and
//! however much somebody gives it to write.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use crate::support::http::ask;
use crate::support::vmm::{Vmm, define_index};
use crate::support::{Host, TENANT, wait_until};

/// So that none is said to be degraded, or noted in the log, because the machine is busy.
const UNHURRIED: &str = "durability_deadline_ms = 5000\n";

/// A vRoT with its guest at work.
fn started(host: &Host) -> Result<(String, Vmm)> {
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    let vmm = Vmm::attach(&host.control(&vm)?)?;
    Ok((vm, vmm))
}

/// Another VMM at the socket of a VM, again and again: each time the backend has something to say.
fn knock(control: &Path, times: usize) {
    for _ in 0..times {
        if let Ok(mut stranger) = UnixStream::connect(control) {
            let _ = stranger.set_read_timeout(Some(Duration::from_secs(5)));
            let _ = stranger.read(&mut [0]);
        }
    }
}

/// All that a host is for: a guest's state becomes durable, vRoTs are made, started and stopped.
fn all_is_served(host: &Host, vm: &str, vmm: &mut Vmm) -> Result<()> {
    knock(&host.control(vm)?, 50);
    define_index(vmm, 0x0150_0001)?;
    assert_eq!(host.json(["show", vm])?["backend"]["degraded"], false);
    let (other, mut others) = started(host)?;
    define_index(&mut others, 0x0150_0001)?;
    host.ctl(["stop", &other])?;
    host.refused(["start", &other.replace(char::is_numeric, "0")])?;
    Ok(())
}

#[test]
fn a_log_whose_reader_has_ended_keeps_nothing_from_being_served() -> Result<()> {
    let mut host = Host::enrolled_with(UNHURRIED)?;
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    host.shut_down()?;
    host.start_again_logging_to(writer.into())?;
    let (vm, mut vmm) = started(&host)?;
    drop(reader);
    all_is_served(&host, &vm, &mut vmm)?;
    ensure!(missing(&host, "lost")? > 0, "what was lost is counted");
    assert!(host.shut_down()?.success());
    Ok(())
}

#[test]
fn a_reader_of_the_log_that_stalls_holds_nobody_up() -> Result<()> {
    let mut host = Host::enrolled_with(UNHURRIED)?;
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    fill(&writer)?;
    host.shut_down()?;
    host.start_again_logging_to(writer.into())?;
    let (vm, mut vmm) = started(&host)?;
    all_is_served(&host, &vm, &mut vmm)?;
    // It goes on: what there was room for until then is there.
    let mut reader = File::from(reader);
    let mut said = Vec::new();
    let mut chunk = [0; 4096];
    while !String::from_utf8_lossy(&said).contains("ready") {
        let read = reader.read(&mut chunk)?;
        said.extend_from_slice(chunk.get(..read).context("a part")?);
    }
    host.shut_down()?;
    Ok(())
}

#[test]
fn a_log_on_a_full_disk_keeps_nothing_from_being_served_and_tells_later_what_it_lacks() -> Result<()>
{
    let mut host = Host::enrolled_on_small_disk(UNHURRIED)?;
    host.shut_down()?;
    let path = host.path("state/daemon.log");
    let mut log = File::options().append(true).create(true).open(&path)?;
    host.start_again_logging_to(log.try_clone()?.into())?;
    let (_, _vmm) = started(&host)?;
    let filling = host.fill_disk()?;
    while log.write(b"\n").is_ok() {}
    // The store has no room either: only the log is looked at.
    for _ in 0..3 {
        host.refused(["create", "--tenant", TENANT])?;
    }
    wait_until("lost lines to be counted", || {
        Ok(missing(&host, "lost")? > 0)
    })?;
    assert!(host.ctl(["host", "show"])?.contains("missing from the log"));
    fs::remove_file(filling)?;
    wait_until("the log to tell what it lacks", || {
        Ok(fs::read_to_string(&path)?.contains("lines of this log are missing"))
    })?;
    // A line that was cut off by the full disk is none that others continue.
    let log = fs::read_to_string(&path)?;
    let told = log.lines().filter(|line| line.contains("are missing"));
    assert!(told.clone().all(|line| line.starts_with("20")), "{log}");
    assert!(!host.ctl(["list"])?.contains("DEGRADED"));
    Ok(())
}

#[test]
fn who_causes_lines_without_rest_gets_a_few_into_the_log_and_the_rest_is_counted() -> Result<()> {
    let host = Host::enrolled_with(UNHURRIED)?;
    let (vm, _vmm) = started(&host)?;
    let (quiet, _quiet) = started(&host)?;
    let before = host.log().len();
    knock(&host.control(&vm)?, 2000);
    let vrot = host.json(["show", &vm])?["vrot"].clone();
    let vrot = vrot.as_str().context("a vRoT")?.to_owned();
    let others = host.json(["show", &quiet])?["vrot"].clone();
    let others = others.as_str().context("a vRoT")?;
    wait_until("the backend to say that it left lines out", || {
        Ok(host.log().contains("lines of this log are left out"))
    })?;
    let log = host.log();
    let log = log.get(before..).context("more of it")?;
    // Whose they are is a field of the manager's; what the backend says is quoted.
    let turned_away: Vec<_> = log
        .lines()
        .filter(|line| line.contains("turned away"))
        .collect();
    assert!(
        (1..100).contains(&turned_away.len()),
        "{}",
        turned_away.len()
    );
    for line in turned_away {
        assert!(
            line.contains(&format!("backend: vrot={vrot} says=\"")),
            "{line}"
        );
    }
    assert!(!log.contains(others), "{log}");
    assert!(log.len() < 64 * 1024, "{} bytes", log.len());
    Ok(())
}

#[test]
fn a_backend_says_what_it_has_to_say_to_the_next_manager() -> Result<()> {
    let mut host = Host::enrolled()?;
    let (vm, mut vmm) = started(&host)?;
    let control = host.control(&vm)?;
    host.crash()?;
    let before = host.log().len();
    knock(&control, 500);
    // Its guest's command is answered although its manager is gone.
    define_index(&mut vmm, 0x0150_0001)?;
    host.start_again()?;
    wait_until("the backend to be heard", || {
        let log = host.log();
        Ok(log
            .get(before..)
            .is_some_and(|log| log.contains("a second VMM was turned away")))
    })?;
    let log = host.log();
    let lines = log.get(before..).context("more of it")?.lines();
    assert!(lines.filter(|line| line.contains("turned away")).count() < 50);
    Ok(())
}

/// Lines that the manager's metrics say are missing from its log.
fn missing(host: &Host, reason: &str) -> Result<u64> {
    let metrics = ask(&host.socket(), "GET", "/metrics", "")?.body;
    let name = format!("vrot_log_lines_missing_total{{reason=\"{reason}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
    Ok(line.context("no such metric")?.parse()?)
}

/// Leaves no room in a pipe.
fn fill(writer: &OwnedFd) -> Result<()> {
    fcntl(writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut file = File::from(writer.try_clone()?);
    while file.write(&[b'\n'; 4096]).is_ok() {}
    while file.write(b"\n").is_ok() {}
    fcntl(writer, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(())
}

#[test]
fn whoever_shares_standard_error_finds_it_as_it_was() -> Result<()> {
    let mut host = Host::enrolled()?;
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    let shared = writer.try_clone()?;
    host.shut_down()?;
    host.start_again_logging_to(Stdio::from(writer))?;
    let flags = OFlag::from_bits_truncate(fcntl(&shared, FcntlArg::F_GETFL)?);
    assert!(!flags.contains(OFlag::O_NONBLOCK));
    drop(reader);
    Ok(())
}
