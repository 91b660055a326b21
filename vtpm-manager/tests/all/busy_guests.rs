//! Guests that write without rest have their share of the disk, and others theirs.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::support::http::ask;
use crate::support::writer::{Writer, attach, prepared};
use crate::support::{Host, wait_until};

const BUSY: usize = 4;
/// Changes of one vRoT in a second, after [`AT_ONCE`] times as many.
const SHARE: u64 = 5;
const AT_ONCE: u64 = 10;
/// What one batch may write.
const MOST_WRITTEN: u64 = 64 * 1024;

#[test]
fn guests_that_write_without_rest_have_their_share_and_others_theirs() -> Result<()> {
    let host = Host::enrolled_with(&format!(
        "state_changes_per_second = {SHARE}\ndurability_deadline_ms = 5000\n"
    ))?;
    let vms = (0..BUSY)
        .map(|_| prepared(&host))
        .collect::<Result<Vec<_>>>()?;
    let changes = || metric(&host, "vrot_store_changes_total");
    let (first, started) = (changes()?, Instant::now());
    let writers = vms
        .iter()
        .map(|vm| Ok(Writer::start(attach(&host, vm)?)))
        .collect::<Result<Vec<_>>>()?;
    wait_until("all to have used what they may write at once", || {
        Ok(metric(&host, "vrot_store_held_back_total")? > 8 * BUSY as u64)
    })?;

    let written = || metric(&host, "vrot_store_written_bytes_total");
    let (before, bytes_before) = (changes()?, written()?);
    thread::sleep(Duration::from_secs(4));
    let (after, bytes_after, took) = (changes()?, written()?, started.elapsed());
    ensure!(after > before, "nothing was written");
    // On a busy machine, one of them may have some left of what it may write at once.
    let allowed = BUSY as u64 * SHARE * (AT_ONCE + took.as_secs() + 2);
    ensure!(after - first <= allowed, "{first} to {after} in {took:?}");
    let bytes = bytes_after - bytes_before;
    ensure!(
        bytes <= (after - before) * MOST_WRITTEN,
        "{bytes} bytes for {} changes",
        after - before
    );

    // Others go on beside them, with what they may write at once before them.
    let other = prepared(&host)?;
    let guest = Writer::start(attach(&host, &other)?);
    wait_until("another to have written", || Ok(guest.written() > 0))?;
    ensure!(guest.stop()? > 0);

    for (vm, writer) in vms.iter().zip(writers) {
        writer.stop()?;
        assert_eq!(host.json(["show", vm])?["backend"]["degraded"], false);
    }
    Ok(())
}

fn metric(host: &Host, name: &str) -> Result<u64> {
    let metrics = ask(&host.socket(), "GET", "/metrics", "")?.body;
    let value = (metrics.lines()).find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.with_context(|| format!("no {name}"))?.parse()?)
}
