//! `make bench`: what a virtualized root of trust costs, beside swtpm, on this machine.
//!
//! Ours and the peer take turns within one run. The physical TPM is swtpm behind
//! `slow_tpm::SlowTpm`, which signs as slowly as a real part and counts writes to its flash. Its
//! other commands are as fast as swtpm, except for a second measurement of NV writes.

mod anchor;
mod api;
mod archive;
mod arguments;
mod boot;
mod commands;
mod connection;
mod dashboard;
mod disk;
mod fleet;
mod guest;
mod hook;
mod host;
mod launch;
mod launches;
mod load;
mod memory;
mod peer;
mod pool;
mod processor_time;
mod progress;
mod report;
mod restart;
mod samples;
mod signing;
mod slow_tpm;
mod tenants;
mod writes;

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use test_support::programs::target_folder;
use test_support::run_folder::RunFolder;

use disk::Disk;
use fleet::Fleet;
use host::BenchHost;
use launch::Launched;
use peer::Peer;
use pool::Pool;
use report::Report;

pub use arguments::{Arguments, Part};

const FILE: &str = if cfg!(debug_assertions) {
    "bench-debug.json"
} else {
    "bench.json"
};
/// How many launches are timed beside a full host.
const LAUNCHES_BESIDE: u32 = 50;
/// How often one vRoT is started and stopped beside a page that shows all.
const PAGE_CHANGES: u32 = 50;
/// How many writes of one VM are timed with a slow physical TPM.
const SLOWED_WRITES: u32 = 100;

/// Measures everything that is asked for, writes the file, prints the table. Fails if anything
/// could not be measured.
pub fn run(arguments: &Arguments) -> Result<()> {
    if arguments.echo {
        return commands::echo::serve();
    }
    allow_for(arguments)?;
    let out = match &arguments.out {
        Some(out) => out.clone(),
        None => target_folder()?.join(FILE),
    };
    let begin = Instant::now();
    let run = RunFolder::with_logs(out.with_extension("logs"))?;
    let disk = Disk::create()?;
    let mut report = Report::default();
    let measured = measure(arguments, &run, &disk, &mut report);
    report.part("what follows", measured);
    report.write(&out)?;
    if cfg!(debug_assertions) {
        println!("\nTHIS IS A DEBUG BUILD: these figures show only that they can be measured.");
    }
    println!(
        "\n{}\n{} ({} s; logs in {})",
        report.table(),
        out.display(),
        begin.elapsed().as_secs(),
        run.logs().display()
    );
    report.complete()
}

fn measure(arguments: &Arguments, run: &RunFolder, disk: &Disk, report: &mut Report) -> Result<()> {
    step("the peer: swtpm with certificates of its own maker");
    let peer = Peer::create(run, disk)?;
    if arguments.wants(Part::Launch) {
        step("launches one by one");
        let pool = Pool::filling(1);
        let host = start_host(arguments, run, disk, "host-1", &pool.settings())?;
        let outcome = launches::measure(report, &host, &pool, &peer, arguments.launches);
        report.part("launch_*, launch_own_vm_*", outcome);
        step("libvirt's hook");
        let count = arguments.launches.div_ceil(3);
        let outcome = hook::measure(report, run, &host, &pool, &peer, count);
        report.part("libvirt_hook_*", outcome);
    }
    if arguments.wants(Part::Commands) {
        step("commands one by one");
        let host = start_host(arguments, run, disk, "host-3", &Pool::filling(1).settings())?;
        let outcome = commands::measure(report, &host, &peer, arguments.commands);
        report.part("command_*", outcome);
        let outcome = commands::cancel::measure(report, &host, &peer, arguments.commands);
        report.part("cancel_*", outcome);
        let outcome = commands::measure_queue(report, &host, arguments.commands);
        report.part("virtio_tpm_*", outcome);
    }
    if arguments.wants(Part::Boot) {
        step("boots");
        let settings = Pool::filling(1).settings();
        let host = start_host(arguments, run, disk, "host-4", &settings)?;
        let outcome = boot::measure(report, run, &host, &peer, arguments.rounds);
        report.part("boot_*", outcome);
    }
    if arguments.wants(Part::Guest) {
        step("commands in guests");
        let settings = Pool::filling(1).settings();
        let host = start_host(arguments, run, disk, "host-5", &settings)?;
        guest::measure(report, run, &host, &peer, arguments.commands);
    }
    let count = arguments.count();
    step(&format!("{count} launches at once"));
    let mut host = start_host(arguments, run, disk, "host-2", &policy(arguments))?;
    let launched = launch_fleet(arguments, report, &mut host)?;
    let mut ours = Fleet::attach(launched).context("attaching VMMs to vRoTs")?;
    if arguments.wants(Part::Launch) {
        step(&format!("launches beside {count}"));
        let outcome = launch_beside(arguments, report, &mut host);
        report.part(&format!("launch_beside_{count}_*"), outcome);
    }
    let has_peers = arguments.wants(Part::Memory) || arguments.wants(Part::Writes);
    let mut peers = Fleet::default();
    if has_peers {
        step(&format!("{count} swtpm beside them"));
        peers = Fleet::of_peers(&peer, count).context("starting swtpm")?;
    }
    if arguments.wants(Part::Memory) {
        step("memory");
        let outcome = memory::measure(report, &host, &mut ours, &mut peers, arguments.rounds);
        report.part("pss_per_vrot_kib", outcome);
    }
    let busy_since = Instant::now();
    if arguments.wants(Part::Writes) {
        step("durable NV writes of one VM");
        let outcome =
            writes::measure_one(report, &host, disk, &mut ours, &mut peers, arguments.writes);
        report.part("nv_write_durable_p50_us", outcome);
        step(&format!("durable NV writes of {count} VMs"));
        let outcome = writes::measure_all(report, arguments, &host, disk, &mut ours, &mut peers);
        report.part("nv_writes_per_s, volatile_anchor_writes_per_s", outcome);
    }
    drop(peers);
    if let Some(command) = arguments.command()
        && arguments.wants(Part::Writes)
    {
        step(&format!(
            "the same, and each command of the physical TPM takes {} ms",
            command.as_millis()
        ));
        let count = arguments.writes.min(SLOWED_WRITES);
        let outcome = writes::measure_one_slowed(report, &host, &mut ours, command, count);
        report.part("nv_write_durable_p50_us_tpm_commands_*", outcome);
        let window = arguments.window();
        let outcome = writes::measure_all_slowed(report, &host, &mut ours, window, command);
        report.part("nv_writes_per_s_tpm_commands_*", outcome);
    }
    // Before the restarts, which write it as well.
    if arguments.wants(Part::Anchor) {
        step("writes of the physical TPM's flash");
        let outcome = anchor::measure(report, &host, &mut ours, arguments, busy_since);
        report.part("anchor_writes_per_hour", outcome);
    }
    if arguments.wants(Part::Restart) {
        step("the manager is killed, and restarted as planned, under load");
        let outcome = restart::measure(report, &mut host, &mut ours, arguments);
        report.part(
            "manager_restart_s, failed_commands, planned_restart_*",
            outcome,
        );
    }
    if arguments.wants(Part::Dashboard) || arguments.wants(Part::Tenants) {
        step("until all certificates are there");
        launch::wait_until_all_are_complete(host.api())?;
    }
    if arguments.wants(Part::Dashboard) {
        step(&format!("a page that shows {count}"));
        let outcome = dashboard::measure(report, run, &host, arguments.launches.min(PAGE_CHANGES));
        report.part("dashboard_update_ms", outcome);
    }
    if arguments.wants(Part::Tenants) {
        step("tenants and followers");
        let outcome = tenants::measure(report, run, &mut host, &policy(arguments));
        report.part("events_delivered_ms, tenant_*, guest_delay_*", outcome);
    }
    if arguments.wants(Part::Signing) {
        step("readings that a VM signs");
        let outcome = signing::measure(report, arguments, run, &host);
        report.part("signed_readings_per_s, sign_latency_ms", outcome);
    }
    if arguments.wants(Part::Connection) {
        step("attested connections");
        let folder = disk.join("connections");
        let outcome = connection::measure(report, arguments, &host, ours, &folder);
        report.part("attested_*", outcome);
    }
    if arguments.wants(Part::Archive) {
        step("archives");
        let outcome = archive::measure(report, arguments, &disk.join("archive"));
        report.part("archive_*", outcome);
    }
    Ok(())
}

/// All launches at once: without a pool first, then from a full one. Whatever fails of it, the
/// fleet is complete in the end, and there is no pool that is filled beside what follows.
fn launch_fleet(
    arguments: &Arguments,
    report: &mut Report,
    host: &mut BenchHost,
) -> Result<Vec<Launched>> {
    let count = arguments.count();
    let mut launched = Vec::new();
    if arguments.wants(Part::Storm) {
        let cold = fleet::storm(host.api(), count, &mut launched);
        report_storm(report, &format!("launch_storm_{count}_cold"), count, cold);
        for launched in launched.drain(..) {
            launch::remove(host.api(), launched)?;
        }
        println!("   filling a pool of {count}");
        let filled = fill_pool(arguments, host);
        let outcome = filled.and_then(|()| fleet::storm(host.api(), count, &mut launched));
        report_storm(report, &format!("launch_storm_{count}"), count, outcome);
        host.restart_with(&policy(arguments))?;
    }
    fleet::fill(host.api(), count, &mut launched)?;
    Ok(launched)
}

fn report_storm(report: &mut Report, name: &str, count: usize, storm: Result<fleet::Storm>) {
    match storm {
        Ok(storm) => {
            for (until, took) in [
                ("s", storm.launched),
                ("certified_s", storm.certified),
                ("complete_s", storm.complete),
            ] {
                report.alone(format!("{name}_{until}"), took.as_secs_f64(), "s", count);
            }
        }
        Err(error) => report.missing(&format!("{name}_s"), &error),
    }
}

/// A pool for all, made as fast as possible; from then on it is refilled as the manager does by
/// itself, which happens beside the storm.
fn fill_pool(arguments: &Arguments, host: &mut BenchHost) -> Result<()> {
    for pool in [
        Pool::filling(arguments.vrots),
        arguments.pool(arguments.vrots),
    ] {
        host.restart_with(&(policy(arguments) + &pool.settings()))?;
        pool.wait_until_full(host.api())?;
    }
    Ok(())
}

/// Launches from a pool of one, which is gone again afterwards.
fn launch_beside(arguments: &Arguments, report: &mut Report, host: &mut BenchHost) -> Result<()> {
    let pool = Pool::filling(1);
    host.restart_with(&(policy(arguments) + &pool.settings()))?;
    let count = arguments.launches.min(LAUNCHES_BESIDE);
    let measured = launches::measure_beside(report, host, &pool, arguments.count(), count);
    host.restart_with(&policy(arguments))?;
    measured
}

fn start_host(
    arguments: &Arguments,
    run: &RunFolder,
    disk: &Disk,
    name: &str,
    settings: &str,
) -> Result<BenchHost> {
    BenchHost::start(run, disk, name, arguments.signature(), settings)
        .with_context(|| format!("starting {name}"))
}

fn policy(arguments: &Arguments) -> String {
    arguments
        .checkpoint_interval_s
        .map(|seconds| format!("checkpoint_interval_s = {seconds}\n"))
        .unwrap_or_default()
}

fn step(what: &str) {
    println!("== {what}");
}

/// Raises what this process and its children may have open, as far as it goes.
fn allow_for(arguments: &Arguments) -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    // Here two connections to each vRoT and to each swtpm, and the storm's; in the manager two
    // or three for each vRoT; for each VM's service two ports, its listeners, and its connections to
    // the TPM.
    let files = u64::from(arguments.vrots) * 16 + 2000;
    ensure!(
        hard >= files,
        "{files} open files are needed, and the hard limit is {hard}: raise it (`ulimit -n`), \
         or take fewer --vrots"
    );
    let (_, processes) = getrlimit(Resource::RLIMIT_NPROC)?;
    setrlimit(Resource::RLIMIT_NPROC, processes, processes)?;
    let needed = u64::from(arguments.vrots) * 16 + 500;
    ensure!(
        processes >= needed,
        "{needed} processes and threads are needed, and the hard limit is {processes}: raise it \
         (`ulimit -u`), or take fewer --vrots"
    );
    Ok(())
}
