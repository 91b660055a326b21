//! A loss of power that may have cut off state is stated in evidence, `vtpmctl host show` and
//! metrics, with the same batch, time and window in each, until another one comes.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use attestation::CutOff;
use serde_json::Value;

use crate::support::Host;
use crate::support::evidence::leaf;
use crate::support::vmm::Vmm;

const WINDOW_S: u16 = 300;

/// What the host states, after checking that it states the same everywhere.
fn stated(host: &Host, vm: &str) -> Result<(u64, u64)> {
    host.ctl(["start", vm])?;
    let leaf = leaf(&mut Vmm::attach(&host.control(vm)?)?)?;
    host.ctl(["stop", vm])?;
    let CutOff::Possible {
        batch,
        time,
        window_s,
    } = leaf.cut_off
    else {
        anyhow::bail!("evidence excludes it: {leaf:?}");
    };
    assert_eq!(window_s, WINDOW_S);

    let shown = &host.json(["host", "show"])?["store"]["power_loss"];
    let expected = serde_json::json!({ "batch": batch, "time": time, "window_s": window_s });
    assert_eq!(*shown, expected);
    let text = host.ctl(["host", "show"])?;
    let line = format!("the last {window_s} s, before batch {batch} of ");
    ensure!(text.contains(&line), "{text}");

    for (name, value) in [
        ("batch", batch),
        ("time_seconds", time),
        ("window_seconds", window_s.into()),
    ] {
        let metric = host.metric(&format!("vrot_rollback_power_loss_{name}"))?;
        assert_eq!(metric.to_string(), value.to_string(), "{name}");
    }
    Ok((batch, time))
}

fn store(host: &Host) -> Result<Value> {
    Ok(host.json(["host", "show"])?["store"].clone())
}

fn newest_batch(host: &Host) -> Result<u64> {
    store(host)?["batch"].as_u64().context("a batch")
}

fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

#[test]
fn a_loss_of_power_is_stated_alike_in_evidence_to_operators_and_in_metrics() -> Result<()> {
    // The vRoT is started by the test alone.
    let mut host = Host::enrolled_with(&format!(
        "checkpoint_interval_s = {WINDOW_S}\nbackend_restarts_per_hour = 0\n"
    ))?;
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    let before = leaf(&mut Vmm::attach(&host.control(&vm)?)?)?;
    assert_eq!(before.cut_off, CutOff::Excluded);
    assert!(store(&host)?["power_loss"].is_null());
    for name in ["batch", "time_seconds", "window_seconds"] {
        assert_eq!(
            host.metric(&format!("vrot_rollback_power_loss_{name}"))?,
            0.0
        );
    }

    let (newest, earliest) = (newest_batch(&host)?, now()?);
    host.lose_power()?;
    assert_eq!(store(&host)?["boot"], "after-power-loss");
    let (batch, time) = stated(&host, &vm)?;
    ensure!(newest < batch && batch <= newest_batch(&host)?, "{batch}");
    ensure!((earliest..=now()?).contains(&time), "{time}");

    // No restart makes it forgotten, whether the TPM is reset or not.
    host.shut_down()?;
    host.start_again()?;
    assert_eq!(stated(&host, &vm)?, (batch, time));
    host.shut_down()?;
    host.reset_tpm()?;
    host.start_again()?;
    assert_eq!(store(&host)?["boot"], "after-shutdown");
    assert_eq!(stated(&host, &vm)?, (batch, time));

    // Another one has a number of its own.
    host.lose_power()?;
    ensure!(stated(&host, &vm)?.0 > batch);
    Ok(())
}
