//! What a guest notices of its tenant's asking: its short commands come back to back, and between two of them
//! its vRoT quotes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use test_support::run_folder::RunFolder;
use tpm_wire::{NO_SESSIONS, Response, frame};
use uuid::Uuid;

use super::client::{Client, Request};
use super::evidence::{fresh_nonce, request};
use crate::bench::host::BenchHost;
use crate::bench::launch::{launch, remove_vm, wait_until_complete};
use crate::bench::report::Report;
use crate::bench::samples::Samples;
use crate::vmm::Vmm;

/// Sets of this VM alone that are asked for: 1 in 100 may be slower than the figure.
const QUOTES: usize = 100;
/// Sets of all VMs, which take longer.
const SETS: usize = 20;
/// With and without sets take turns after so many.
const TURN: usize = 10;

const GET_RANDOM: u32 = 0x17b;

/// When a command was given, and how long its answer took.
type Timed = (Instant, Duration);

/// For each set: the slowest command while it is made; beside the slowest in as long a time without.
pub(super) fn measure(
    report: &mut Report,
    run: &RunFolder,
    host: &BenchHost,
    client: &Client,
) -> Result<()> {
    let launched = launch(host.api())?;
    let vm = launched.vm;
    wait_until_complete(host.api(), vm)?;
    let mut vmm = launched.control.attach()?;
    let requests = |count, of: Option<Uuid>| -> Vec<Request> {
        let answer = run.join("set.cbor");
        (0..count)
            .map(|_| request(&fresh_nonce(), of, answer.clone()))
            .collect()
    };
    let [beside, without] = in_turns(&mut vmm, client, &requests(QUOTES, Some(vm)))?;
    for (name, per_cent) in [("quote_p50_us", 50), ("quote_us", 99)] {
        report.beside(
            format!("guest_delay_by_tenant_{name}"),
            beside.percentile(per_cent)?,
            without.percentile(per_cent)?,
            "µs",
            beside.count(),
        );
    }
    report.spread(&beside)?;
    let [beside, without] = in_turns(&mut vmm, client, &requests(SETS, None))?;
    report.beside(
        "guest_delay_by_tenant_set_us",
        beside.percentile(99)?,
        without.percentile(99)?,
        "µs",
        beside.count(),
    );
    report.spread(&beside)?;
    drop(vmm);
    remove_vm(host.api(), vm)
}

/// The slowest command beside each set, and the slowest in times of the same lengths without any.
fn in_turns(vmm: &mut Vmm, client: &Client, requests: &[Request]) -> Result<[Samples; 2]> {
    let [mut beside, mut without] = <[Samples; 2]>::default();
    for turn in requests.chunks(TURN) {
        let mut sets = Vec::new();
        let commands = commands_during(vmm, || {
            client.ask(turn, |took| sets.push((Instant::now(), took)))
        })?;
        for (end, took) in &sets {
            let begin = end.checked_sub(*took).context("the clock")?;
            beside.add_us(slowest(&commands, begin, *took)?);
        }
        let took: Duration = sets.iter().map(|(_, took)| *took).sum();
        let mut begin = Instant::now();
        let commands = commands_during(vmm, || {
            begin = Instant::now();
            thread::sleep(took);
            Ok(())
        })?;
        for (_, took) in sets {
            without.add_us(slowest(&commands, begin, took)?);
            begin += took;
        }
    }
    Ok([beside, without])
}

/// The slowest of the commands that were under way in this time.
fn slowest(commands: &[Timed], begin: Instant, took: Duration) -> Result<Duration> {
    let end = begin + took;
    let overlap = (commands.iter()).filter(|(given, took)| *given < end && *given + *took > begin);
    let slowest = overlap.map(|(_, took)| *took).max();
    slowest.context("no command in that time")
}

/// Gives one command after the other while something is done.
fn commands_during(vmm: &mut Vmm, during: impl FnOnce() -> Result<()>) -> Result<Vec<Timed>> {
    let command = frame(NO_SESSIONS, GET_RANDOM, &16u16.to_be_bytes());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let guest = scope.spawn(|| -> Result<_> {
            let mut commands = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let begin = Instant::now();
                let response = vmm.respond(&command)?;
                commands.push((begin, begin.elapsed()));
                let response = Response::parse(&response).context("no response")?;
                ensure!(response.code().is_success(), "{}", response.code());
            }
            Ok(commands)
        });
        let outcome = during();
        done.store(true, Ordering::Relaxed);
        let commands = guest.join().map_err(|_| anyhow!("the guest"))??;
        outcome.map(|()| commands)
    })
}
