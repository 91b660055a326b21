//! Evidence that tenants have over TLS: of their own VMs, and of no others.

use std::fs;

use anyhow::{Result, ensure};
use attestation::{EvidenceSet, QuotePurpose};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::Host;
use crate::support::evidence::{NONCE, empty_log_into, leaf, verified};
use crate::support::tenant::{Tenant, serve_tenants};
use crate::support::vmm::Vmm;

fn serving(more: &str) -> Result<Host> {
    let mut host = Host::enrolled()?;
    empty_log_into(&host)?;
    serve_tenants(&mut host, more)?;
    Ok(host)
}

/// A VM whose guest has its TPM.
fn started(host: &Host, tenant: &str) -> Result<(String, Vmm)> {
    let vm = host.create_for(tenant)?;
    host.ctl(["start", &vm])?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    leaf(&mut vmm)?;
    Ok((vm, vmm))
}

/// The status of the answer, and its body in any form.
fn ask(host: &Host, tenant: &Tenant, body: &Value) -> Result<(u16, Vec<u8>)> {
    let into = host.path("answer");
    let status = tenant.evidence(body, &into)?;
    Ok((status, fs::read(into)?))
}

fn quotes(host: &Host) -> Result<f64> {
    host.metric("vrot_host_quotes_total")
}

#[test]
fn a_tenant_s_evidence_is_of_exactly_its_own_vms() -> Result<()> {
    let host = serving("")?;
    let (acme, other) = (
        Tenant::certified(&host, "acme")?,
        Tenant::certified(&host, "other")?,
    );
    let (own, _own) = started(&host, "acme")?;
    let (own_too, _own_too) = started(&host, "acme")?;
    let (foreign, _foreign) = started(&host, "other")?;
    let stopped = host.create_for("acme")?;
    let foreign_stopped = host.create_for("other")?;
    let of = |tenant: &Tenant, body: &Value| {
        let (status, set) = ask(&host, tenant, body)?;
        ensure!(status == 200, "{status}: {}", String::from_utf8_lossy(&set));
        let checked = verified(&host, &EvidenceSet::from_cbor(&set)?)?;
        let mut quoted = Vec::new();
        for vm in checked.vms() {
            let vm = vm.as_ref().map_err(|error| anyhow::anyhow!("{error:?}"))?;
            assert_eq!(vm.leaf().purpose, QuotePurpose::Tenant);
            quoted.push(vm.leaf().vm.to_string());
        }
        quoted.sort();
        let unquoted = checked.unquoted().iter();
        Ok((
            quoted,
            unquoted.map(|vm| vm.vm.to_string()).collect::<Vec<_>>(),
        ))
    };
    let mut both = vec![own.clone(), own_too.clone()];
    both.sort();
    let all = json!({ "nonce": NONCE });
    assert_eq!(of(&acme, &all)?, (both, vec![stopped]));
    assert_eq!(
        of(&other, &all)?,
        (vec![foreign.clone()], vec![foreign_stopped.clone()])
    );
    // Named again and again, it quotes once.
    let again = json!({ "nonce": NONCE, "vms": vec![&own; 4096] });
    assert_eq!(of(&acme, &again)?, (vec![own.clone()], vec![]));

    let before = quotes(&host)?;
    let named = |vms: &[&str]| ask(&host, &acme, &json!({ "nonce": NONCE, "vms": vms }));
    let unknown = Uuid::new_v4().to_string();
    let none = named(&[&own, &unknown])?;
    assert_eq!(none.0, 404);
    for not_own in [&foreign, &foreign_stopped] {
        assert_eq!(named(&[&own, not_own])?, none);
        assert_eq!(named(&[not_own, &own])?, none);
        assert_eq!(named(&[not_own])?, none);
    }
    // Of no VM, nothing is signed either.
    assert_eq!(named(&[])?.0, 400);
    let third = Tenant::certified(&host, "third")?;
    let (status, problem) = ask(&host, &third, &all)?;
    let problem = String::from_utf8(problem)?;
    ensure!(status == 404 && problem.contains("no-vms"), "{problem}");
    assert_eq!(quotes(&host)?, before);
    Ok(())
}

#[test]
fn a_tenant_has_evidence_as_often_as_is_configured_and_others_theirs() -> Result<()> {
    let host = serving("evidence_per_minute = 8\n")?;
    let (acme, other) = (
        Tenant::certified(&host, "acme")?,
        Tenant::certified(&host, "other")?,
    );
    for tenant in ["acme", "other"] {
        host.create_for(tenant)?;
    }
    let all = json!({ "nonce": NONCE });
    let before = quotes(&host)?;
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(ask(&host, &acme, &all)?.0);
    }
    ensure!(statuses.starts_with(&[200, 200]), "{statuses:?}");
    ensure!(statuses.contains(&429), "{statuses:?}");
    let made = statuses.iter().filter(|status| **status == 200).count();
    assert_eq!(quotes(&host)?, before + f64::from(u32::try_from(made)?));
    // Other requests are none for evidence.
    assert_eq!(acme.vms()?.len(), 1);
    assert_eq!(ask(&host, &other, &all)?.0, 200);
    Ok(())
}
