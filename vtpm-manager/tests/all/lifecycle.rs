//! A vRoT's life on a real host: daemon, command line, backend, and swtpm as the physical TPM.

use std::fs;

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use uuid::Uuid;

use crate::support::identity::{der, verified};
use crate::support::vmm::{OWNER, Vmm, command, define_index, nv_read, with_password};
use crate::support::{DOMAIN, Host, TENANT, wait_until};

#[test]
fn a_vrot_is_certified_and_keeps_its_identity_over_a_stop() -> Result<()> {
    let host = Host::enrolled()?;
    let vm = host.create()?;
    let identity = host.json(["identity", &vm])?;
    let chain = verified(&host, &identity)?;
    assert_eq!(chain.claims().vm.to_string(), vm);
    assert_eq!(chain.claims().tenant.as_str(), TENANT);
    assert_eq!(chain.host().to_string(), format!("host-1.{DOMAIN}"));
    assert_eq!(identity["vik"]["name"], chain.claims().vik.to_string());
    assert_eq!(
        identity["manager_digest"],
        chain.claims().manager.to_string()
    );

    host.ctl(["start", &vm])?;
    let certificate = nv_read(&mut Vmm::attach(&host.control(&vm)?)?, 0x01c1_0002)?;
    assert_eq!(
        certificate,
        der(&identity["vik"]["certificate_pem"])?.as_ref()
    );
    let refused = host.refused(["start", &vm])?;
    ensure!(refused.contains("running already"), "{refused}");

    host.ctl(["stop", &vm])?;
    assert_eq!(host.json(["show", &vm])?["state"], "stopped");
    host.ctl(["start", &vm])?;
    assert_eq!(host.json(["identity", &vm])?, identity);
    let again = nv_read(&mut Vmm::attach(&host.control(&vm)?)?, 0x01c1_0002)?;
    assert_eq!(again, certificate);

    let refused = host.refused(["delete", &vm])?;
    ensure!(refused.contains("stop it first"), "{refused}");
    host.ctl(["stop", &vm])?;
    host.ctl(["delete", &vm])?;
    let refused = host.refused(["start", &vm])?;
    ensure!(refused.contains("no vRoT or VM"), "{refused}");
    // The VM may have another one, and that is another one.
    host.ctl(["create", "--vm", &vm, "--tenant", TENANT])?;
    assert_ne!(host.json(["identity", &vm])?["vik"], identity["vik"]);
    host.ctl(["audit", "verify"])?;
    Ok(())
}

#[test]
fn stops_and_starts_of_a_vrot_with_a_full_tpm_cost_its_owner_no_attempt() -> Result<()> {
    const PROTECTED: u32 = 0x0150_0000;
    let host = Host::enrolled()?;
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    // TPMA_NV_AUTHWRITE, TPMA_NV_AUTHREAD: not exempt from protection against dictionary attacks.
    vmm.succeed(&define(PROTECTED, 0x0004_0004, 8))?;
    let mut index = PROTECTED + 1;
    // As many as there is room for, which is more than 128 KiB.
    while vmm.execute(&define(index, 0x0202_0002, 2048))?.0 == 0 {
        index += 1;
    }
    ensure!(index - PROTECTED > 60, "{index:x}");
    for round in 0..3 {
        let data = [&[0, 8][..], &[7; 8], &[0, 0]].concat();
        let write = with_password(0x137, &[PROTECTED, PROTECTED], &data);
        // TPM_RC_RETRY: the first use since the start is noted in NV memory.
        if vmm.execute(&write)?.0 == 0x922 {
            vmm.succeed(&write)?;
        }
        host.ctl(["stop", &vm])?;
        host.ctl(["start", &vm])?;
        vmm = Vmm::attach(&host.control(&vm)?)?;
        // TPM_CAP_TPM_PROPERTIES, TPM_PT_LOCKOUT_COUNTER
        let counter = vmm.succeed(&command(0x17a, &[0, 0, 0, 6, 0, 0, 2, 0x0e, 0, 0, 0, 1]))?;
        ensure!(counter.ends_with(&[0; 4]), "round {round}: {counter:?}");
        vmm.succeed(&command(0x169, &(index - 1).to_be_bytes()))?;
    }
    Ok(())
}

/// TPM2_NV_DefineSpace in the owner hierarchy.
fn define(index: u32, attributes: u32, size: u16) -> Vec<u8> {
    let area = [
        &[0, 0, 0, 14][..],
        &index.to_be_bytes(),
        &[0, 0x0b],
        &attributes.to_be_bytes(),
        &[0, 0],
        &size.to_be_bytes(),
    ]
    .concat();
    with_password(0x12a, &[OWNER], &area)
}

#[test]
fn a_deleted_vrot_does_not_come_back_whatever_else_was_asked_for() -> Result<()> {
    let mut host = Host::enrolled()?;
    for _ in 0..5 {
        let vm = host.create()?;
        host.ctl(["start", &vm])?;
        drop(Vmm::attach(&host.control(&vm)?)?);
        host.ctl(["suspend", &vm])?;
        let mut orders = Vec::new();
        for order in ["delete", "stop", "resume", "stop", "delete", "start"] {
            orders.push(host.vtpmctl([order, &vm]).spawn()?);
        }
        for mut order in orders {
            order.wait()?;
        }
        // Whichever came first, the last word is this one.
        let _ = host.vtpmctl(["stop", &vm]).status()?;
        let _ = host.vtpmctl(["delete", &vm]).status()?;
    }
    host.crash()?;
    host.start_again()?;
    assert_eq!(host.json(["list"])?["vrots"], serde_json::json!([]));
    Ok(())
}

#[test]
fn a_store_in_use_is_not_recovered_from() -> Result<()> {
    let host = Host::enrolled()?;
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    let refused = host.refused(["host", "recover", "--accept", "stale-records", "--yes"])?;
    ensure!(refused.contains("nothing to recover from"), "{refused}");
    drop(Vmm::attach(&host.control(&vm)?)?);
    Ok(())
}

#[test]
fn what_a_guest_writes_outlasts_its_vrots_stop() -> Result<()> {
    let host = Host::enrolled()?;
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    define_index(&mut vmm, 0x0150_0001)?;
    drop(vmm);
    host.ctl(["stop", &vm])?;
    host.ctl(["start", &vm])?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    // TPM2_NV_ReadPublic
    vmm.succeed(&command(0x169, &0x0150_0001u32.to_be_bytes()))?;
    Ok(())
}

#[test]
fn a_restarted_manager_takes_running_vrots_over() -> Result<()> {
    let mut host = Host::enrolled()?;
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    let backend = host.backend(&vm)?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    for graceful in [false, true] {
        if graceful {
            assert_eq!(host.shut_down()?.code(), Some(0));
        } else {
            host.crash()?;
        }
        // TPM2_GetRandom: the guest notices nothing.
        vmm.succeed(&command(0x17b, &[0, 8]))?;
        host.start_again()?;
        assert_eq!(host.backend(&vm)?, backend);
        assert_eq!(host.json(["show", &vm])?["state"], "running");
    }
    // What is written now becomes durable with the new manager.
    define_index(&mut vmm, 0x0150_0002)?;
    drop(vmm);
    host.ctl(["stop", &vm])?;
    host.ctl(["start", &vm])?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    vmm.succeed(&command(0x169, &0x0150_0002u32.to_be_bytes()))?;
    Ok(())
}

#[test]
fn what_a_guest_writes_without_a_manager_is_not_lost() -> Result<()> {
    let mut host = Host::enrolled()?;
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    host.crash()?;
    define_index(&mut vmm, 0x0150_0003)?;
    host.start_again()?;
    drop(vmm);
    host.ctl(["stop", &vm])?;
    host.ctl(["start", &vm])?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    vmm.succeed(&command(0x169, &0x0150_0003u32.to_be_bytes()))?;
    Ok(())
}

#[test]
fn the_end_of_a_backend_is_noticed_and_recorded() -> Result<()> {
    let host = Host::enrolled_with("backend_restarts_per_hour = 0\n")?;
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    kill(Pid::from_raw(host.backend(&vm)?), Signal::SIGKILL)?;
    wait_until("the end to be noticed", || {
        Ok(host.json(["show", &vm])?["state"] == "stopped")
    })?;
    let note = host.json(["show", &vm])?["note"].clone();
    assert_eq!(note, "its backend ended by itself");
    let log = fs::read_to_string(host.path("state/audit.jsonl"))?;
    ensure!(log.contains("\"event\":\"backend-ended\""), "{log}");
    host.ctl(["start", &vm])?;
    Ok(())
}

#[test]
fn a_vrot_whose_backend_died_is_started_again_but_not_for_ever() -> Result<()> {
    let host = Host::enrolled_with("backend_restarts_per_hour = 2\n")?;
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    define_index(&mut vmm, 0x0150_0004)?;
    for _ in 0..2 {
        let dead = host.backend(&vm)?;
        kill(Pid::from_raw(dead), Signal::SIGKILL)?;
        wait_until("another backend", || {
            Ok(host.backend(&vm).is_ok_and(|process| process != dead))
        })?;
        // The guest that was there gets no answers from a TPM whose PCRs are empty.
        ensure!(vmm.execute(&command(0x17b, &[0, 8])).is_err());
        vmm = Vmm::attach(&host.control(&vm)?)?;
        vmm.succeed(&command(0x169, &0x0150_0004u32.to_be_bytes()))?;
    }
    kill(Pid::from_raw(host.backend(&vm)?), Signal::SIGKILL)?;
    wait_until("it to stay stopped", || {
        Ok(host.log().contains("its backend ended too often"))
    })?;
    assert_eq!(host.json(["show", &vm])?["state"], "stopped");
    Ok(())
}

#[test]
fn a_vm_has_one_vrot() -> Result<()> {
    let host = Host::enrolled()?;
    let vm = host.create()?;
    let refused = host.refused(["create", "--vm", &vm, "--tenant", TENANT])?;
    ensure!(refused.contains("has a vRoT"), "{refused}");
    Ok(())
}

#[test]
fn nothing_is_created_before_the_host_is_enrolled() -> Result<()> {
    let host = Host::start()?;
    let vm = Uuid::new_v4().to_string();
    let create = ["create", "--vm", &vm, "--tenant", TENANT];
    let refused = host.refused(create)?;
    ensure!(refused.contains("vtpmctl host"), "{refused}");
    let refused = host.refused(["host", "policy", "show"])?;
    ensure!(refused.contains("vtpmctl host init"), "{refused}");
    host.ctl(["host", "init", "--trial"])?;
    let refused = host.refused(create)?;
    ensure!(refused.contains("vtpmctl host enrol"), "{refused}");
    assert_eq!(host.json(["list"])?["vrots"], Value::Array(vec![]));
    Ok(())
}

#[test]
fn a_vrot_starts_again_after_its_host_lost_everything_but_the_state_folder() -> Result<()> {
    let mut host = Host::enrolled()?;
    let vm = host.create()?;
    let identity = host.json(["identity", &vm])?;
    host.shut_down()?;
    fs::remove_dir_all(host.path("run"))?;
    host.start_again()?;
    host.ctl(["start", &vm])?;
    assert_eq!(host.json(["identity", &vm])?, identity);
    Ok(())
}

#[test]
fn a_second_manager_does_not_get_the_store() -> Result<()> {
    let host = Host::start()?;
    let second = crate::support::said(
        std::process::Command::new(env!("CARGO_BIN_EXE_vtpm-managerd"))
            .arg("--config")
            .arg(host.path("config.toml")),
    )?;
    assert_eq!(second.status, 1);
    ensure!(
        second.err.contains("another manager has the state"),
        "{}",
        second.err
    );
    host.ctl(["list"])?;
    // Nor does one that would listen elsewhere.
    let config = std::fs::read_to_string(host.path("config.toml"))?;
    let other = host.path("other.sock");
    std::fs::write(
        host.path("other.toml"),
        format!("socket = \"{other}\"\n{config}"),
    )?;
    let second = crate::support::said(
        std::process::Command::new(env!("CARGO_BIN_EXE_vtpm-managerd"))
            .arg("--config")
            .arg(host.path("other.toml")),
    )?;
    assert_eq!(second.status, 1);
    ensure!(!std::path::Path::new(&other).exists(), "it listened");
    Ok(())
}
