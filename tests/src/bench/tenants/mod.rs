//! The part "tenants": how long a tenant waits for the list of its VMs and for evidence of them, what their
//! guests notice of that, and how soon followers are told of events.

mod client;
mod delay;
mod events;
mod evidence;

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use test_support::run_folder::RunFolder;

use super::host::BenchHost;
use super::report::Report;
use super::samples::Samples;

use client::Client;

/// How often a list is asked for on one connection.
const LISTS: usize = 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// Followers first, then the tenant, for whose API the manager is restarted. All vRoTs are this tenant's.
pub(super) fn measure(
    report: &mut Report,
    run: &RunFolder,
    host: &mut BenchHost,
    settings: &str,
) -> Result<()> {
    let outcome = events::measure(report, host);
    report.part("events_delivered_ms", outcome);
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    host.restart_with(&format!(
        "{settings}[tenants]\nlisten = [\"127.0.0.1:{port}\"]\nissuer = \"{}\"\n\
         # What the host can do is measured, not a tenant's share of it.\n\
         requests_per_minute = 100000\nevidence_per_minute = 100000\n",
        host.issuer_root().display()
    ))?;
    let outcome = asked(report, run, host, port);
    report.part("tenant_*", outcome);
    host.restart_with(settings)
}

fn asked(report: &mut Report, run: &RunFolder, host: &BenchHost, port: u16) -> Result<()> {
    let client = Client::certified(run, host, port)?;
    let count = lists(report, run, &client)?;
    let outcome = evidence::measure(report, run, &client, count);
    report.part("tenant_evidence_*, verify_set_per_s", outcome);
    let outcome = delay::measure(report, run, host, &client);
    report.part("guest_delay_by_tenant_*", outcome);
    Ok(())
}

/// What it waits for the list, on a connection that it has; how many VMs are in it.
fn lists(report: &mut Report, run: &RunFolder, client: &Client) -> Result<usize> {
    let answer = run.join("vms.json");
    let requests: Vec<_> = (0..LISTS).map(|_| client.list(answer.clone())).collect();
    let mut lists = Samples::default();
    client.ask(&requests, |took| lists.add_ms(took))?;
    let list: Value = serde_json::from_slice(&fs::read(answer)?)?;
    let vms = list.get("vms").and_then(Value::as_array);
    let count = vms.context("a list")?.len();
    let name = format!("tenant_list_{count}_ms");
    report.alone(name, lists.median()?, "ms", lists.count());
    report.spread(&lists)?;
    Ok(count)
}
