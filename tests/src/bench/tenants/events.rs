//! How soon a thousand who follow events are told of one.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;

use super::PATIENCE;
use crate::bench::host::BenchHost;
use crate::bench::launch::TENANT;
use crate::bench::report::Report;
use crate::bench::samples::Samples;

/// How many follow events at a time.
const FOLLOWERS: usize = 1000;
/// How many events are told to each.
const EVENTS: u32 = 20;

/// A vRoT is started and stopped: from the manager's answer until each follower has read of it, and 0
/// where that was sooner.
pub(super) fn measure(report: &mut Report, host: &BenchHost) -> Result<()> {
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
