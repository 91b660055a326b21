//! What a VM is launched with: measured by the manager, told in evidence for one start and one VMM, and
//! demanded where the vRoT or the configuration says so.

use std::fs::{self, File};
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use attestation::LaunchMeasurement;
use nix::libc::O_PATH;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};

use crate::support::evidence::leaf;
use crate::support::vmm::{Attach, Vmm};
use crate::support::{Host, said, wait_until};

/// What evidence says of the launch of the VM whose VMM this is, part by part.
fn told(vmm: &mut Vmm) -> Result<Option<Vec<String>>> {
    Ok(match leaf(vmm)?.launch {
        LaunchMeasurement::NotMeasured => None,
        LaunchMeasurement::Measured(launch) => {
            Some(launch.parts().iter().map(ToString::to_string).collect())
        }
    })
}

/// The digest of a file as another program computes it.
fn sha256sum(path: &str) -> Result<String> {
    let out = said(Command::new("sha256sum").arg(path))?.out;
    Ok(out.split(' ').next().context("a digest")?.to_owned())
}

fn attach(host: &Host, vm: &str) -> Result<Vmm> {
    Vmm::attach(&host.control(vm)?)
}

fn state(host: &Host, vm: &str) -> Result<Value> {
    Ok(host.json(["measure", vm])?["state"].clone())
}

fn refusal(host: &Host, arguments: &[&str]) -> Result<String> {
    host.refused(arguments)
}

#[test]
fn a_measured_launch_is_told_in_evidence_for_one_start_and_one_vmm() -> Result<()> {
    let mut host = Host::enrolled()?;
    let vm = host.create()?;
    let (kernel, line) = (host.path("kernel"), host.path("line"));
    fs::write(&kernel, vec![7; 3_000_000])?;
    fs::write(&line, "console=ttyS0 -- x=\"y\"")?;
    let expected = vec![
        format!("command-line=sha256:{}", sha256sum(&line)?),
        "cpus=2".to_owned(),
        format!("disk:root=sha256:{}", sha256sum(&kernel)?),
        format!("kernel=sha256:{}", sha256sum(&kernel)?),
        "machine=pc-q35-7.2".to_owned(),
    ];
    let text = fs::read_to_string(&line)?;
    let disk = format!("root={kernel}");
    let parts = [
        "--kernel",
        &kernel,
        "--cmdline",
        &text,
        "--machine",
        "pc-q35-7.2",
        "--cpus",
        "2",
        "--disk",
        &disk,
    ];
    let measured = host.json([&["measure", vm.as_str()], &parts[..]].concat())?;
    assert_eq!(measured["state"], "prepared");
    host.ctl(["start", &vm])?;
    assert_eq!(state(&host, &vm)?, "in-force");
    // Too late: it may run already.
    let refused = refusal(&host, &["measure", &vm, "--cpus", "4"])?;
    ensure!(refused.contains("Stop it first"), "{refused}");
    let mut vmm = attach(&host, &vm)?;
    assert_eq!(told(&mut vmm)?, Some(expected.clone()));
    let digest = leaf(&mut vmm)?.launch;
    ensure!(matches!(&digest, LaunchMeasurement::Measured(launch)
        if launch.digest().to_string() == measured["digest"]));

    // Neither another manager nor a reset of the VM is another launch.
    host.crash()?;
    host.start_again()?;
    assert_eq!(told(&mut vmm)?, Some(expected));
    assert_eq!(state(&host, &vm)?, "in-force");

    // Another VMM may run anything.
    drop(vmm);
    wait_until("the end of the VMM", || {
        Ok(host.json(["show", &vm])?["backend"]["attached"] == false)
    })?;
    let mut other = attach(&host, &vm)?;
    assert_eq!(told(&mut other)?, None);
    assert_eq!(state(&host, &vm)?, "used-up");
    host.crash()?;
    host.start_again()?;
    assert_eq!(told(&mut other)?, None);

    drop(other);
    host.ctl(["stop", &vm])?;
    host.ctl(["start", &vm])?;
    assert_eq!(told(&mut attach(&host, &vm)?)?, None);
    let lines = host.audit()?;
    let line = (lines.iter()).find(|line| line["event"] == "launch-measured");
    let line = line.context("no line")?;
    assert_eq!(line["digest"], measured["digest"]);
    assert_eq!(line["parts"]["cpus"], "2");
    Ok(())
}

#[test]
fn a_vrot_that_requires_a_measured_launch_is_not_started_without() -> Result<()> {
    let host = Host::enrolled_with(
        "backend_restarts_per_hour = 3\n[launch]\nrequired_tenants = [\"careful\"]\n",
    )?;
    let require = "--require-launch-measurement";
    let created = host.json(["create", "--tenant", "acme", require])?;
    let vm = created["vm"].as_str().context("a VM")?;
    for order in [
        &["start", vm][..],
        &["create", "--tenant", "acme", require, "--start"],
        &["create", "--tenant", "careful", "--start"],
    ] {
        let refused = refusal(&host, order)?;
        ensure!(refused.contains("measured"), "{refused}");
    }
    assert_eq!(
        host.json(["list"])?["vrots"].as_array().map(Vec::len),
        Some(1)
    );

    host.ctl(["start", vm, "--cpus", "2"])?;
    let mut vmm = attach(&host, vm)?;
    assert_eq!(told(&mut vmm)?, Some(vec!["cpus=2".to_owned()]));

    // What was measured served one start: the next ones need their own, a resumption among them.
    host.ctl(["suspend", vm])?;
    drop(vmm);
    let refused = refusal(&host, &["resume", vm])?;
    ensure!(refused.contains("measured"), "{refused}");
    host.ctl(["measure", vm, "--cpus", "4"])?;
    host.ctl(["measure", vm, "--forget"])?;
    assert_eq!(state(&host, vm)?, "not-measured");
    refusal(&host, &["resume", vm])?;
    host.ctl(["measure", vm, "--cpus", "4"])?;
    host.ctl(["resume", vm])?;
    let mut vmm = Vmm::attach_as(&host.control(vm)?, Attach::Resumed)?;
    assert_eq!(told(&mut vmm)?, Some(vec!["cpus=4".to_owned()]));

    // No backend is started again by itself, for a VM that may be launched otherwise.
    host.kill_backends()?;
    wait_until("the end of the backend", || {
        Ok(host.json(["show", vm])?["state"] == "stopped")
    })?;
    refusal(&host, &["start", vm])?;
    assert_eq!(state(&host, vm)?, "not-measured");

    // One that is created with its parts is started with them.
    let started = [
        "create",
        "--tenant",
        "careful",
        "--start",
        "--machine",
        "q35",
    ];
    let started = host.json(started)?;
    assert_eq!(started["launch"]["state"], "in-force");
    assert_eq!(started["launch"]["required"], true);
    Ok(())
}

/// Sends a request with these descriptors; status and body.
fn put(host: &Host, vm: &str, body: &Value, descriptors: &[RawFd]) -> Result<(u16, String)> {
    let mut stream = UnixStream::connect(host.socket())?;
    let body = body.to_string();
    let head = format!(
        "PUT /v1/vrots/{vm}/launch HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(head.as_bytes())],
        &[ControlMessage::ScmRights(descriptors)],
        MsgFlags::empty(),
        None,
    )?;
    stream.write_all(body.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let status = text.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, text))
}

#[test]
fn the_manager_measures_what_it_was_handed_and_nothing_that_its_caller_could_not_read() -> Result<()>
{
    let host = Host::enrolled()?;
    let vm = host.create()?;
    let path = host.path("kernel");
    fs::write(&path, "kernel")?;
    let kernel = |descriptor: u32| json!({"parts": [{"part": "kernel", "descriptor": descriptor}]});

    let file = File::open(&path)?;
    let (status, said) = put(&host, &vm, &kernel(0), &[file.as_raw_fd()])?;
    ensure!(status == 200 && said.contains(&sha256sum(&path)?), "{said}");

    // A place in the file system is no right to read what is there, nor is the right to write there.
    let place = File::options()
        .read(true)
        .custom_flags(O_PATH)
        .open(&path)?;
    let for_writing = File::options().append(true).open(&path)?;
    let (pipe, _writer) = std::io::pipe()?;
    let device = File::open("/dev/zero")?;
    for descriptor in [
        place.as_raw_fd(),
        for_writing.as_raw_fd(),
        pipe.as_raw_fd(),
        device.as_raw_fd(),
    ] {
        let (status, said) = put(&host, &vm, &kernel(0), &[descriptor])?;
        ensure!(
            status == 422 && said.contains("file-not-measured"),
            "{said}"
        );
    }
    for (body, descriptors, expected) in [
        (kernel(0), vec![], "descriptor 0"),
        (kernel(1), vec![file.as_raw_fd()], "descriptor 1"),
        (kernel(0), vec![file.as_raw_fd(); 40], "200 OK"),
        (json!({"parts": []}), vec![file.as_raw_fd()], "1 to 32"),
        (
            json!({"parts": [{"part": "kernel", "path": "/etc/shadow"}]}),
            vec![],
            "bad-request",
        ),
    ] {
        let (_, said) = put(&host, &vm, &body, &descriptors)?;
        ensure!(said.contains(expected), "{body}: {said}");
    }
    // Descriptors do not pile up in the manager.
    let open =
        || -> Result<usize> { Ok(fs::read_dir(format!("/proc/{}/fd", host.manager()?))?.count()) };
    let before = open()?;
    for _ in 0..20 {
        put(&host, &vm, &kernel(9), &[file.as_raw_fd(); 20])?;
    }
    wait_until("that descriptors are closed", || Ok(open()? <= before + 4))
}
