//! vRoTs that are made ahead.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use uuid::Uuid;

use crate::support::http::ask;
use crate::support::identity::{der, verified};
use crate::support::vmm::{Vmm, nv_read};
use crate::support::{Host, TENANT, wait_until};

const POOL: &str = "[pool]\nsize = 2\ntenants = [\"acme\"]\nrefill_per_minute = 6000\n";

#[test]
fn a_vm_without_a_number_gets_a_certified_vrot_at_once() -> Result<()> {
    let host = with_full_pool()?;
    assert_eq!(host.json(["list"])?["vrots"], Value::Array(vec![]));
    let made = ids_of(&host, "vrot-manufactured")?;
    let vrot = host.json(["create", "--tenant", TENANT, "--start"])?;
    ensure!(made.contains(&vrot["vrot"].as_str().context("id")?.to_owned()));
    assert_eq!(vrot["state"], "running");
    // No new certificate was needed.
    assert_eq!(ids_of(&host, "certificate-renewed")?, [] as [String; 0]);

    let vm = vrot["vm"].as_str().context("a VM")?;
    let identity = host.json(["identity", vm])?;
    let chain = verified(&host, &identity)?;
    assert_eq!(chain.claims().vm.to_string(), vm);
    let mut vmm = Vmm::attach(&host.control(vm)?)?;
    assert_eq!(
        nv_read(&mut vmm, 0x01c1_0002)?,
        der(&identity["vik"]["certificate_pem"])?.as_ref()
    );
    // What the guest does from now on is kept.
    drop(vmm);
    host.ctl(["stop", vm])?;
    host.ctl(["start", vm])?;
    assert_eq!(host.json(["identity", vm])?, identity);
    // And the next one is being made.
    full(&host)
}

#[test]
fn a_vm_with_a_number_of_its_own_gets_a_certificate_for_it() -> Result<()> {
    let host = with_full_pool()?;
    let made = ids_of(&host, "vrot-manufactured")?;
    // The number of one that waits would lead to either.
    for vm in &made {
        let refused = host.refused(["create", "--vm", vm, "--tenant", TENANT])?;
        ensure!(refused.contains("has a vRoT"), "{refused}");
    }
    for tenant in [TENANT, "another.one"] {
        let vm = Uuid::new_v4().to_string();
        let vrot = host.json(["create", "--vm", &vm, "--tenant", tenant, "--start"])?;
        ensure!(made.contains(&vrot["vrot"].as_str().context("id")?.to_owned()));
        wait_until("its certificate", || {
            Ok(host.json(["show", &vm])?["vik_certificate"] == "issued")
        })?;
        let identity = host.json(["identity", &vm])?;
        let chain = verified(&host, &identity)?;
        assert_eq!(chain.claims().vm.to_string(), vm);
        assert_eq!(chain.claims().tenant.as_str(), tenant);
        let mut vmm = Vmm::attach(&host.control(&vm)?)?;
        let certificate = nv_read(&mut vmm, 0x01c1_0002)?;
        let expected = der(&identity["vik"]["certificate_pem"])?;
        assert_eq!(certificate.get(..expected.len()), Some(expected.as_ref()));
    }
    Ok(())
}

#[test]
fn an_empty_pool_only_costs_time() -> Result<()> {
    let host = with_full_pool()?;
    for _ in 0..4 {
        let vrot = host.json(["create", "--tenant", TENANT])?;
        assert_eq!(vrot["state"], "assigned");
        host.ctl(["start", vrot["vm"].as_str().context("a VM")?])?;
    }
    host.ctl(["audit", "verify"])?;
    Ok(())
}

#[test]
fn the_pool_outlives_its_manager() -> Result<()> {
    let mut host = with_full_pool()?;
    let made = ids_of(&host, "vrot-manufactured")?;
    host.crash()?;
    host.start_again()?;
    full(&host)?;
    assert_eq!(ids_of(&host, "vrot-manufactured")?, made);
    host.shut_down()?;
    host.start_again()?;
    full(&host)?;
    assert_eq!(ids_of(&host, "vrot-manufactured")?, made);
    let vrot = host.json(["create", "--tenant", TENANT, "--start"])?;
    Vmm::attach(&host.control(vrot["vm"].as_str().context("a VM")?)?)?;
    Ok(())
}

#[test]
fn a_member_whose_backend_died_is_not_given_away() -> Result<()> {
    let host = with_full_pool()?;
    let made = ids_of(&host, "vrot-manufactured")?;
    host.kill_backends()?;
    wait_until("new members", || {
        Ok(ids_of(&host, "vrot-manufactured")?.len() >= made.len() + 2)
    })?;
    let vrot = host.json(["create", "--tenant", TENANT, "--start"])?;
    ensure!(!made.contains(&vrot["vrot"].as_str().context("id")?.to_owned()));
    Ok(())
}

fn with_full_pool() -> Result<Host> {
    let host = Host::enrolled_with(POOL)?;
    full(&host)?;
    Ok(host)
}

fn full(host: &Host) -> Result<()> {
    wait_until("a full pool", || {
        let metrics = ask(&host.socket(), "GET", "/metrics", "")?.body;
        Ok(metrics.lines().any(|line| line == "vrot_pool_ready 2"))
    })
}

/// The vRoTs of which the audit log says this.
fn ids_of(host: &Host, event: &str) -> Result<Vec<String>> {
    let log = fs::read_to_string(host.path("state/audit.jsonl"))?;
    let mut ids = Vec::new();
    for line in log.lines() {
        let line: Value = serde_json::from_str(line)?;
        if line["event"] == event {
            ids.push(line["vrot"].as_str().context("an id")?.to_owned());
        }
    }
    Ok(ids)
}
