//! Attested connections: how many a second, how soon, and what passes on one.
//!
//! Services and devices are the shipped code in this process; the vRoTs below the services are the
//! bench's own, and their VMs have nothing but a TPM ([`BareVm`](crate::bare_vm::BareVm)).

mod all_vms;
mod handshakes;
mod hybrid;
mod reattestation;
mod service;
mod streams;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use attestation::Policy;
use tokio::runtime::Runtime;
use vrot_device::connection::DeviceIdentity;
use vrot_device::{Connector, policy_files};

use super::arguments::Arguments;
use super::fleet::Fleet;
use super::host::BenchHost;
use super::launch::TENANT;
use super::report::Report;
use crate::device::reference_command;
use service::Service;

/// Seconds for which a result holds where none is to end.
const LONG: u64 = 3600;

/// Measures everything about connections to this host's VMs, whose VMMs it takes.
pub(super) fn measure(
    report: &mut Report,
    arguments: &Arguments,
    host: &BenchHost,
    fleet: Fleet,
    folder: &Path,
) -> Result<()> {
    let runtime = Runtime::new()?;
    let count = fleet.count();
    let processes = all_vms::Processes::of(host, fleet.processes)?;
    let mut services = Vec::with_capacity(count);
    for (number, vmm) in fleet.vmms.into_iter().enumerate() {
        let folder = folder.join(number.to_string());
        let service = runtime.block_on(Service::start(vmm, &folder));
        services.push(service.with_context(|| format!("the service of VM {number}"))?);
    }
    let one = services.first().context("there is no VM")?;
    let policies = Policies::write(host, one, folder)?;
    let device = policies.device(LONG)?;

    let outcome = handshakes::idle(report, &runtime, arguments, host.tpm(), one, &device);
    report.part("attested_handshake_p50_ms and its parts", outcome);
    let outcome = handshakes::of_one(report, &runtime, arguments, one, &device);
    report.part("attested_handshakes_per_s", outcome);
    let outcome = all_vms::handshakes(report, &runtime, arguments, &processes, &services, &device);
    report.part("attested_fleet_*", outcome);
    let outcome = all_vms::host_alone(report, arguments, &processes, &services);
    report.part("host_evidence_*", outcome);
    let outcome = streams::measure(report, &runtime, arguments, one, &device);
    report.part("attested_stream_mib_per_s", outcome);
    let often = policies.device(reattestation::LIFETIME);
    let outcome = often.and_then(|often| {
        reattestation::measure(report, &runtime, arguments, one, &often, &device)
    });
    report.part("reattestation_gap_ms", outcome);
    let outcome = hybrid::measure(report, arguments);
    report.part("tls_hybrid_cpu_ratio", outcome);
    Ok(())
}

/// Policies that accept all VMs of the host, which have booted alike.
struct Policies<'f> {
    folder: &'f Path,
    host: String,
    reference: String,
}

impl<'f> Policies<'f> {
    fn write(host: &BenchHost, service: &Service, folder: &'f Path) -> Result<Self> {
        let roots = folder.join("roots.pem");
        std::fs::copy(host.issuer_root(), &roots)?;
        let reference = reference_command(service.challenges, &roots)?.text()?;
        Ok(Self {
            folder,
            host: host.certified_name().to_owned(),
            reference,
        })
    }

    /// A device for which a result holds so many seconds.
    fn device(&self, lifetime: u64) -> Result<Connector> {
        let file = self.folder.join("policy.toml");
        let text = format!(
            "[trust]\nroots = \"roots.pem\"\n\n[expect]\ntenant = \"{TENANT}\"\n\
             hosts = [\"{}\"]\n\n[freshness]\nresult_lifetime_s = {lifetime}\n\n{}",
            self.host, self.reference
        );
        std::fs::write(&file, text)?;
        let policy: Policy = policy_files::load(&file)?;
        Ok(Connector::new(
            Arc::new(policy),
            DeviceIdentity::none(),
            None,
        )?)
    }
}
