//! The audit log in parts, with the daemon and the command line, and on a full disk.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use api_types::audit::{Known, verify};
use serde_json::Value;
use vtpm_manager::audit::{AuditLog, Event, Layout};

use crate::support::{Host, said};

/// A part for each line.
const SMALL: Layout = Layout {
    from: None,
    part_bytes: 1,
};

fn add_parts(log: &Path, count: usize) -> Result<()> {
    let log = AuditLog::open(log, SMALL)?;
    for _ in 0..count {
        log.append(None, &[Event::ManagerStopped])?;
    }
    Ok(())
}

fn last_hash(part: &str) -> Result<String> {
    let text = fs::read_to_string(part)?;
    let line: Value = serde_json::from_str(text.lines().last().context("no line")?)?;
    Ok(line["hash"].as_str().context("no hash")?.to_owned())
}

fn why_not(host: &Host) -> Result<String> {
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_vtpm-managerd"));
    let said = said(daemon.arg("--config").arg(host.path("config.toml")))?;
    ensure!(said.status == 1, "{}", said.err);
    Ok(said.err)
}

#[test]
fn a_manager_takes_no_log_without_its_first_part_unless_its_last_hash_is_configured() -> Result<()>
{
    let mut host = Host::start()?;
    ensure!(host.ctl(["audit", "verify"])?.contains("in one part"));
    host.shut_down()?;
    let newest = host.path("state/audit.jsonl");
    add_parts(newest.as_ref(), 3)?;
    host.start_again()?;
    let view = host.json(["audit", "verify"])?;
    assert_eq!((&view["parts"], &view["intact"]), (&4.into(), &true.into()));
    assert_eq!(host.metric("vrot_audit_parts")?, 4.0);
    let head = view["head"].as_str().context("no hash")?.to_owned();
    host.ctl(["audit", "verify", "--head", &head])?;
    host.shut_down()?;

    let first = host.path("state/audit-00000001.jsonl");
    let archived = host.path("archived.jsonl");
    let from = last_hash(&first)?;
    fs::rename(&first, &archived)?;
    let said = why_not(&host)?;
    ensure!(said.contains("audit-00000002.jsonl"), "{said}");
    ensure!(said.contains(&format!("hash {from}")), "{said}");
    ensure!(said.contains("audit_begins_after"), "{said}");
    let said = host.refused(["audit", "verify", "--log", &newest])?;
    ensure!(said.contains("audit-00000002.jsonl"), "{said}");
    let known = ["--from", &from, "--head", &head];
    let by_hand = ["audit", "verify", "--log", &newest];
    host.ctl([&by_hand[..], &known].concat())?;
    host.ctl(["audit", "verify", "--log", &archived])?;

    let configuration = fs::read_to_string(host.path("config.toml"))?;
    fs::write(
        host.path("config.toml"),
        format!("audit_begins_after = \"{from}\"\n{configuration}"),
    )?;
    host.start_again()?;
    assert_eq!(host.json(["audit", "verify"])?["parts"], 3);
    host.ctl(["audit", "verify", "--head", &head])?;
    host.shut_down()?;
    // Another one is missing, and not the first.
    fs::remove_file(host.path("state/audit-00000003.jsonl"))?;
    let said = why_not(&host)?;
    ensure!(said.contains("audit.jsonl"), "{said}");
    Ok(())
}

#[test]
fn on_a_disk_without_room_for_a_new_part_nothing_is_lost() -> Result<()> {
    let disk = SmallDisk::new()?;
    let path = disk.path.join("audit.jsonl");
    add_parts(&path, 2)?;
    let log = AuditLog::open(&path, SMALL)?;
    let whole = |lines, parts| {
        let verified = verify(&path, Known::default())?;
        assert_eq!(verified, log.end());
        assert_eq!((verified.entries, verified.parts), (lines, parts));
        anyhow::Ok(())
    };
    let stopped = [Event::ManagerStopped];
    // No name is left, so no step can be made.
    let mut names = disk.take_names()?;
    log.append(None, &stopped)?;
    whole(3, 2)?;
    // One is left: for the first step and not for the second.
    fs::remove_file(names.pop().context("no name")?)?;
    log.append(None, &stopped)?;
    whole(4, 2)?;
    // Two are left, but no room for a line.
    fs::remove_file(names.pop().context("no name")?)?;
    let mut filler = File::options()
        .append(true)
        .open(names.first().context("no name")?)?;
    while filler.write_all(&[0; 512]).is_ok() {}
    let refused = log.append(None, &stopped);
    ensure!(refused.is_err(), "a line on a full disk");
    let lines = verify(&path, Known::default())?;
    assert_eq!((lines.entries, lines.parts), (4, 3));
    filler.set_len(0)?;
    log.append(None, &stopped)?;
    whole(5, 3)?;
    drop(log);
    assert_eq!(AuditLog::open(&path, SMALL)?.end().entries, 5);
    Ok(())
}

/// A disk with room for a few files.
struct SmallDisk {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl SmallDisk {
    fn new() -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "this test mounts a file system: run it as root"
        );
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("disk");
        fs::create_dir(&path)?;
        let mount = [
            "-t",
            "tmpfs",
            "-o",
            "size=64k,nr_inodes=12,mode=700",
            "none",
        ];
        let mounted = said(Command::new("mount").args(mount).arg(&path))?;
        ensure!(mounted.status == 0, "{}", mounted.err);
        Ok(Self {
            _folder: folder,
            path,
        })
    }

    fn take_names(&self) -> Result<Vec<PathBuf>> {
        let mut names = Vec::new();
        loop {
            let name = self.path.join(format!("filler-{}", names.len()));
            if File::create(&name).is_err() {
                ensure!(names.len() > 2, "the disk is too small");
                return Ok(names);
            }
            names.push(name);
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}
