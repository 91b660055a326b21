//! Many devices connect to all VMs, and what the host alone does for that.
//!
//! Devices, services and host share this machine's processors. So the processor time of each is told
//! beside the rate, and what the host does when nobody else needs a processor.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use attestation::RequestDigest;
use cert_chain::Digest32;
use nix::unistd::Pid;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use vrot_device::Connector;
use vrot_service::attester::Host;

use super::handshakes::load;
use super::service::{HostBelow, Service};
use crate::bench::arguments::Arguments;
use crate::bench::host::BenchHost;
use crate::bench::processor_time::{of_process, of_this_process};
use crate::bench::report::Report;
use crate::bench::samples::Samples;

/// Devices that connect at the same time, each again as soon as it was connected.
const DEVICES: usize = 384;
/// What a thread that only asks needs.
const STACK: usize = 256 * 1024;

/// Whose processor time is told.
pub(super) struct Processes {
    manager: Pid,
    backends: Vec<Pid>,
}

impl Processes {
    pub(super) fn of(host: &BenchHost, backends: Vec<Pid>) -> Result<Self> {
        Ok(Self {
            manager: Pid::from_raw(i32::try_from(host.manager())?),
            backends,
        })
    }

    fn spent(&self) -> Result<Spent> {
        let backends = self.backends.iter().map(|backend| of_process(*backend));
        Ok(Spent {
            ends: of_this_process()?,
            manager: of_process(self.manager)?,
            backends: backends.sum::<Result<_>>()?,
        })
    }
}

/// Processor time so far.
struct Spent {
    /// Of both ends of all connections, the VMs' ways to their TPMs and the slow physical TPM: this process.
    ends: Duration,
    manager: Duration,
    backends: Duration,
}

impl Spent {
    /// Tells what has been spent since, for each of so many.
    fn report_until(
        &self,
        now: &Self,
        report: &mut Report,
        name: &str,
        count: usize,
    ) -> Result<()> {
        let each = f64::from(u32::try_from(count.max(1))?);
        for (whose, before, after) in [
            ("ends", self.ends, now.ends),
            ("manager", self.manager, now.manager),
            ("backends", self.backends, now.backends),
        ] {
            let spent = after.saturating_sub(before).as_secs_f64() * 1e6;
            report.alone(format!("{name}_{whose}_cpu_us"), spent / each, "µs", count);
        }
        Ok(())
    }
}

/// Handshakes with all VMs: the first with each, and then those of devices that come all the time.
pub(super) fn handshakes(
    report: &mut Report,
    runtime: &Runtime,
    arguments: &Arguments,
    processes: &Processes,
    services: &[Service],
    device: &Connector,
) -> Result<()> {
    let rate = first_contacts(runtime, services, device)?;
    report.alone(
        "attested_fleet_first_per_s",
        rate,
        "handshakes/s",
        services.len(),
    );
    let services: Vec<_> = services.iter().collect();
    let before = processes.spent()?;
    let loaded = load(runtime, &services, device, DEVICES, arguments.window())?;
    let after = processes.spent()?;
    report.alone(
        "attested_fleet_per_s",
        loaded.per_s,
        "handshakes/s",
        loaded.took.count(),
    );
    report.alone(
        "attested_fleet_p99_ms",
        loaded.took.percentile(99)?,
        "ms",
        loaded.took.count(),
    );
    before.report_until(&after, report, "attested_fleet", loaded.all)
}

/// The first handshake with each VM, whose service then reads the host's event log through its TPM.
/// Handshakes a second.
fn first_contacts(runtime: &Runtime, services: &[Service], device: &Connector) -> Result<f64> {
    let begin = Instant::now();
    let outcomes = runtime.block_on(async {
        let mut tasks = JoinSet::new();
        let mut outcomes = Vec::new();
        for service in services {
            if tasks.len() >= DEVICES {
                outcomes.extend(tasks.join_next().await);
            }
            let (service, device) = (service.attested.clone(), device.clone());
            tasks.spawn(async move {
                device.connect(&service).await?.stream.give_up().await;
                anyhow::Ok(())
            });
        }
        while let Some(outcome) = tasks.join_next().await {
            outcomes.push(outcome);
        }
        outcomes
    });
    let took = begin.elapsed();
    for outcome in outcomes {
        outcome??;
    }
    Ok(f64::from(u32::try_from(services.len())?) / took.as_secs_f64())
}

/// Each VM asks its host for evidence again and again, without anybody who connects: what the manager can
/// do with default quotas.
pub(super) fn host_alone(
    report: &mut Report,
    arguments: &Arguments,
    processes: &Processes,
    services: &[Service],
) -> Result<()> {
    let window = arguments.window();
    // Hosts are known to their VMs before.
    let warm = Instant::now() + window / 5;
    let end = warm + window;
    let all = AtomicUsize::new(0);
    let before = processes.spent()?;
    let outcomes: Vec<Result<Samples>> = thread::scope(|scope| {
        let threads: Vec<_> = services
            .iter()
            .map(|service| {
                let ask = || asked(service, warm, end, &all);
                thread::Builder::new()
                    .stack_size(STACK)
                    .spawn_scoped(scope, ask)
            })
            .collect();
        let joined = threads.into_iter().map(|thread| {
            let outcome = thread.context("starting a thread")?.join();
            outcome.map_err(|_| anyhow!("a thread that asks panicked"))?
        });
        joined.collect()
    });
    let after = processes.spent()?;
    let mut took = Samples::default();
    for outcome in outcomes {
        took.extend(outcome?.into_values());
    }
    let rate = f64::from(u32::try_from(took.count())?) / window.as_secs_f64();
    report.alone("host_evidence_per_s", rate, "answers/s", took.count());
    report.alone(
        "host_evidence_p99_ms",
        took.percentile(99)?,
        "ms",
        took.count(),
    );
    before.report_until(&after, report, "host_evidence", all.into_inner())
}

/// How long each answer took that one VM's service got between `warm` and `end`; `all` counts the others,
/// too.
fn asked(service: &Service, warm: Instant, end: Instant, all: &AtomicUsize) -> Result<Samples> {
    let host = HostBelow::of(&service.vm);
    let mut took = Samples::default();
    while Instant::now() < end {
        let request = RequestDigest(Digest32::of(uuid::Uuid::new_v4().as_bytes()));
        let begin = Instant::now();
        host.layer(&request)?;
        let now = Instant::now();
        all.fetch_add(1, Ordering::Relaxed);
        if now >= warm && now < end {
            took.add_ms(now - begin);
        }
    }
    Ok(took)
}
