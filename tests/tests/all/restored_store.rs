//! A store that was put back from a backup, against the physical TPM's rollback anchor.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use test_support::deadline::wait_for;
use uuid::Uuid;
use vrot_tests::host::Host;
use vrot_tests::scene::{Scene, TENANT};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_restored_store_is_refused_until_an_operator_accepts_it() -> Result<()> {
    let mut scene = Scene::set("restored-store")?;
    let (kept, deleted) = (Uuid::new_v4(), Uuid::new_v4());
    scene.host.create(kept, TENANT)?;
    scene.host.create(deleted, TENANT)?;
    let vik = scene.host.identity(kept)?["vik"].clone();
    let mut backup = Vec::new();
    scene.host.restart_manager_after(|state| {
        backup = fs::read(state.join("store.redb"))?;
        Ok(())
    })?;
    assert_eq!(host(&scene.host)?["store"]["state"], "open");
    let delete = scene.host.vtpmctl(["delete", &deleted.to_string()])?;
    delete.run()?;

    scene
        .host
        .restart_manager_after(|state| Ok(fs::write(state.join("store.redb"), &backup)?))?;
    let refused = host(&scene.host)?;
    assert_eq!(refused["store"]["state"], "refused");
    assert_eq!(refused["store"]["refusal"], "restored-store");
    for command in ["start", "show", "delete"] {
        let said = failure(&scene.host, &[command, &kept.to_string()])?;
        ensure!(said.contains("this is an old store"), "{command}: {said}");
        ensure!(
            said.contains("--accept restored-store"),
            "{command}: {said}"
        );
    }
    // Started again, it is refused again: nothing was changed.
    scene.host.crash_manager()?;
    assert_eq!(host(&scene.host)?["store"]["refusal"], "restored-store");

    let recover = ["host", "recover", "--accept", "restored-store"];
    let said = failure(&scene.host, &recover)?;
    ensure!(said.contains("--yes"), "{said}");
    let said = failure(
        &scene.host,
        &["host", "recover", "--accept", "cleared-tpm", "--yes"],
    )?;
    ensure!(said.contains("--accept restored-store"), "{said}");
    let recovery = json(&scene.host, &[recover.as_slice(), &["--yes"]].concat())?;
    // What was deleted stays deleted, although the old store had its key.
    assert_eq!(recovery["raised"].as_array().map(Vec::len), Some(1));
    let said = failure(&scene.host, &["show", &deleted.to_string()])?;
    ensure!(said.contains("no vRoT"), "{said}");
    assert_eq!(recovery["generation"], 2);
    assert_eq!(host(&scene.host)?["store"]["state"], "open");

    // The same keys in a new generation, which the next start's certificate carries.
    scene.host.start_vrot(kept)?;
    let identity = scene.host.identity(kept)?;
    assert_eq!(identity["generation"], 2);
    assert_eq!(identity["vik"]["name"], vik["name"]);
    ensure!(identity["vik"]["certificate_pem"] != vik["certificate_pem"]);
    scene.host.stop_vrot(kept)?;
    scene.host.crash_manager()?;
    assert_eq!(host(&scene.host)?["store"]["state"], "open");

    let log = fs::read_to_string(scene.host.folder().join("state/audit.jsonl"))?;
    for event in ["store-refused", "recovery-ordered", "store-recovered"] {
        ensure!(log.contains(event), "{event} is not in the audit log");
    }
    scene.host.vtpmctl(["audit", "verify"])?.run()?;
    Ok(())
}

/// The host, once its store is not being opened any more.
fn host(host: &Host) -> Result<Value> {
    wait_for("the store to be opened or refused", PATIENCE, || {
        let shown = json(host, &["host", "show"])?;
        Ok((shown["store"]["state"] != "opening").then_some(shown))
    })
}

fn json(host: &Host, arguments: &[&str]) -> Result<Value> {
    let text = host.vtpmctl(["--output", "json"])?.args(arguments).run()?;
    Ok(serde_json::from_slice(&text)?)
}

/// What a command that has to fail says.
fn failure(host: &Host, arguments: &[&str]) -> Result<String> {
    let error = host.vtpmctl(arguments)?.run().err();
    Ok(format!("{:#}", error.context("it did not fail")?))
}
