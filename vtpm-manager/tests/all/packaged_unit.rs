//! The manager as its packaged unit runs it: a user of its own with four capabilities, in a mount,
//! network and IPC namespace. The settings are read from the unit itself.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use attestation::CutOff;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::evidence::leaf;
use crate::support::unit::{self, GROUP, TPM_GROUP, USER, Unit};
use crate::support::vmm::{Vmm, command};
use crate::support::{Host, wait_until};

/// A line of `/proc/PID/status`.
fn status(process: i32, field: &str) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{field}:")));
    Ok(value.with_context(|| field.to_owned())?.trim().to_owned())
}

/// Mount options at a place, as a process has them (proc(5), `mountinfo`).
fn mounted(process: i32, at: &Path) -> Result<String> {
    let mounts = fs::read_to_string(format!("/proc/{process}/mountinfo"))?;
    let newest = mounts.lines().rev().find_map(|line| {
        let mut fields = line.split(' ').skip(4);
        (fields.next() == at.to_str()).then(|| fields.next())?
    });
    Ok(newest.with_context(|| at.display().to_string())?.to_owned())
}

/// Whether the manager is what the unit makes of it.
fn is_confined(host: &Host, unit: &Unit) -> Result<()> {
    let manager = host.manager()?;
    let four = |id: u32| [id; 4].map(|id| id.to_string()).join("\t");
    assert_eq!(status(manager, "Uid")?, four(USER));
    assert_eq!(status(manager, "Gid")?, four(GROUP));
    assert_eq!(status(manager, "Groups")?, TPM_GROUP.to_string());
    assert_eq!(status(manager, "NoNewPrivs")?, "1");
    assert_eq!(status(manager, "Umask")?, unit.value("UMask")?);
    let ambient = format!("{:016x}", unit.mask("AmbientCapabilities")?);
    for field in ["CapAmb", "CapEff", "CapPrm"] {
        assert_eq!(status(manager, field)?, ambient, "{field}");
    }
    let bounding = format!("{:016x}", unit.mask("CapabilityBoundingSet")?);
    assert_eq!(status(manager, "CapBnd")?, bounding);
    for namespace in ["mnt", "net", "ipc"] {
        let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/{namespace}"));
        ensure!(of(&manager.to_string())? != of("self")?, "{namespace}");
    }
    for (at, writable) in [
        ("/".to_owned(), false),
        (host.path("state"), true),
        (host.path("run"), true),
    ] {
        let options = mounted(manager, Path::new(&at))?;
        assert_eq!(options.starts_with("rw"), writable, "{at}: {options}");
    }
    assert_eq!(store_owner(host)?, USER);
    Ok(())
}

fn store_owner(host: &Host) -> Result<u32> {
    Ok(fs::metadata(host.path("state/store.redb"))?.uid())
}

/// Whether a backend, and the process that forks backends, have what they need and no more.
fn has_given_up(process: i32, capabilities: u64) -> Result<()> {
    let kept = format!("{capabilities:016x}");
    for (field, expected) in [
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("CapBnd", "0000000000000000"),
        ("CapPrm", kept.as_str()),
        ("CapEff", kept.as_str()),
        ("NoNewPrivs", "1"),
    ] {
        assert_eq!(status(process, field)?, expected, "{field} of {process}");
    }
    Ok(())
}

#[test]
fn a_manager_with_what_its_unit_gives_it_does_all_that_a_manager_does() -> Result<()> {
    let unit = Unit::packaged()?;
    let mut host = Host::of_unit(unit.clone())?;
    is_confined(&host, &unit)?;
    assert_eq!(host.json(["host", "show"])?["isolation"], "own-users");

    // A VM's vRoT, up to evidence of the host.
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    let backend = host.backend(&vm)?;
    has_given_up(backend, 0)?;
    let uid: u32 = status(backend, "Uid")?
        .split('\t')
        .next()
        .context("a user")?
        .parse()?;
    ensure!(![0, USER].contains(&uid), "user {uid}");
    assert_eq!(status(backend, "Groups")?, "");
    let zygote: i32 = status(backend, "PPid")?.parse()?;
    has_given_up(zygote, unit::TO_CHANGE_USERS)?;
    let mut guest = Vmm::attach(&host.control(&vm)?)?;
    assert_eq!(leaf(&mut guest)?.cut_off, CutOff::Excluded);

    // A restart of the manager leaves the guest alone, in namespaces that are no longer those of
    // the manager.
    host.shut_down()?;
    guest.succeed(&command(0x17b, &[0, 8]))?;
    host.start_again()?;
    is_confined(&host, &unit)?;
    assert_eq!(host.backend(&vm)?, backend);
    leaf(&mut guest)?;

    // A backend that does not end by itself is ended: another user's process.
    kill(Pid::from_raw(backend), Signal::SIGSTOP)?;
    host.ctl(["stop", &vm])?;
    wait_until("the end of the backend", || {
        Ok(kill(Pid::from_raw(backend), None).is_err())
    })?;

    host.ctl(["delete", &vm])?;
    ensure!(host.refused(["show", &vm])?.contains("no vRoT or VM"));
    ensure!(host.all_instances().is_empty());
    host.ctl(["audit", "verify"])?;
    Ok(())
}
