//! The part "tenants": how long a tenant waits for the list of its VMs, and followers for events.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;
use test_support::deadline::wait_for;
use test_support::programs::program;
use test_support::run_folder::RunFolder;
use test_support::tool::Tool;

use super::host::BenchHost;
use super::launch::TENANT;
use super::report::Report;
use super::samples::Samples;

/// How many follow events at a time.
const FOLLOWERS: usize = 1000;
/// How many events are told to each.
const EVENTS: u32 = 20;
/// How often a list is asked for on one connection.
const LISTS: usize = 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// Followers first, then tenants, whose API the manager is restarted for.
pub(super) fn measure(
    report: &mut Report,
    run: &RunFolder,
    host: &mut BenchHost,
    settings: &str,
) -> Result<()> {
    events(report, host)?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let root = host.issuer_root().to_owned();
    host.restart_with(&format!(
        "{settings}[tenants]\nlisten = [\"127.0.0.1:{port}\"]\nissuer = \"{}\"\n",
        root.display()
    ))?;
    let outcome = lists(report, run, host, &root, port);
    host.restart_with(settings)?;
    outcome
}

/// A vRoT is started and stopped: from the manager's answer until each follower has read of it, and 0
/// where that was sooner.
fn events(report: &mut Report, host: &BenchHost) -> Result<()> {
    let vrot = host.api().json(
        "POST",
        "/v1/vrots",
        &json!({ "tenant": TENANT }).to_string(),
    )?;
    let vm = vrot.get("vm").and_then(|vm| vm.as_str());
    let path = format!("/v1/vrots/{}", vm.context("a vRoT has a VM")?);
    let mut followers = Vec::new();
    for _ in 0..FOLLOWERS {
        followers.push(follow(host)?);
    }
    let mut delivered = Samples::default();
    for number in 0..EVENTS {
        let (order, kind) = match number % 2 {
            0 => ("start", "\"kind\":\"started\""),
            _ => ("stop", "\"kind\":\"stopped\""),
        };
        // Whatever came meanwhile is not waited for.
        let order = format!("{path}/{order}");
        let (answered, read) = std::thread::scope(|scope| -> Result<_> {
            let reading = scope.spawn(|| read_all(&mut followers, kind));
            host.api().ask("POST", &order, "")?;
            let answered = Instant::now();
            let read = reading
                .join()
                .map_err(|_| anyhow::anyhow!("the followers"))??;
            Ok((answered, read))
        })?;
        for at in read {
            delivered.add_ms(at.saturating_duration_since(answered));
        }
    }
    report.alone(
        "events_delivered_ms",
        delivered.percentile(99)?,
        "ms",
        delivered.count(),
    );
    report.spread(&delivered)?;
    drop(followers);
    host.api().ask("DELETE", &path, "").map(drop)
}

fn follow(host: &BenchHost) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(host.api().socket())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
    let mut hello = Vec::new();
    while !hello.windows(7).any(|window| window == b"\"hello\"") {
        let mut part = [0; 4096];
        let length = stream.read(&mut part)?;
        ensure!(length > 0, "the stream ended");
        hello.extend_from_slice(part.get(..length).unwrap_or_default());
    }
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// When each of them has read what it waits for.
fn read_all(followers: &mut [UnixStream], expected: &str) -> Result<Vec<Instant>> {
    let mut texts = vec![Vec::new(); followers.len()];
    let mut read: Vec<Option<Instant>> = vec![None; followers.len()];
    let begun = Instant::now();
    while read.iter().any(Option::is_none) {
        ensure!(
            begun.elapsed() < PATIENCE,
            "an event was not told to everybody"
        );
        let mut waiting: Vec<PollFd<'_>> = (followers.iter())
            .map(|follower| PollFd::new(follower.as_fd(), PollFlags::POLLIN))
            .collect();
        poll(&mut waiting, PollTimeout::from(1000_u16))?;
        let ready: Vec<bool> = (waiting.iter())
            .map(|waiting| waiting.any().unwrap_or_default())
            .collect();
        let each = followers.iter_mut().zip(&mut texts).zip(&mut read);
        for (((follower, text), read), _) in each.zip(ready).filter(|(_, ready)| *ready) {
            let mut part = [0; 4096];
            match follower.read(&mut part) {
                Ok(0) => anyhow::bail!("a stream ended"),
                Ok(length) => text.extend_from_slice(part.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            let is_told = String::from_utf8_lossy(text).contains(expected);
            if is_told && read.is_none() {
                *read = Some(Instant::now());
            }
        }
    }
    Ok(read.into_iter().flatten().collect())
}

/// All vRoTs are one tenant's: what it waits for their list, on a connection that it has.
fn lists(
    report: &mut Report,
    run: &RunFolder,
    host: &BenchHost,
    root: &Path,
    port: u16,
) -> Result<()> {
    let (certificate, key) = (run.join("tenant.pem"), run.join("tenant.key"));
    let issuer = root.parent().context("a folder")?;
    Tool::new(program("vtpmctl")?)
        .args(["issuer", "tenant", "add", TENANT, "--dir"])
        .arg(issuer)
        .arg("--out")
        .arg(&certificate)
        .arg("--new-key")
        .arg(&key)
        .run()?;
    let url = format!("https://{}:{port}/v1/vms", host.certified_name());
    let curl = |more: &[&str]| {
        Tool::new("curl")
            .args(["--silent", "--show-error", "--fail", "--resolve"])
            .arg(format!("{}:{port}:127.0.0.1", host.certified_name()))
            .arg("--cacert")
            .arg(root)
            .arg("--cert")
            .arg(&certificate)
            .arg("--key")
            .arg(&key)
            .args(more)
    };
    // Its key is certified by the physical TPM first.
    let list = wait_for("the API for tenants", PATIENCE, || {
        Ok(curl(&[&url]).text().ok())
    })?;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    let vms = list.get("vms").and_then(|vms| vms.as_array());
    let count = vms.context("a list")?.len();
    let mut arguments = vec![
        "--write-out",
        "%{stderr}%{time_pretransfer} %{time_total}\n",
    ];
    for _ in 0..LISTS {
        arguments.extend(["--output", "/dev/null", &url]);
    }
    let outcome = curl(&arguments).outcome()?;
    let told = String::from_utf8(outcome.stderr)?;
    let mut lists = Samples::default();
    for line in told.lines() {
        let (before, total) = line.split_once(' ').context(told.clone())?;
        let took = total.parse::<f64>()? - before.parse::<f64>()?;
        lists.add_ms(Duration::try_from_secs_f64(took.max(0.0))?);
    }
    ensure!(lists.count() == LISTS, "{told}");
    report.alone(
        format!("tenant_list_{count}_ms"),
        lists.median()?,
        "ms",
        lists.count(),
    );
    report.spread(&lists)
}
