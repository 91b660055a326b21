//! What an operator's key signs, and how a host shows what was signed.

use std::fs;

use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};

use crate::support::{Host, said};

/// PCR values of a boot: SHA-256 digests of nothing in particular.
fn measured(pcrs: impl IntoIterator<Item = u8>) -> Map<String, Value> {
    let value = |pcr: u8| json!(format!("{:02x}", pcr ^ 0xa5).repeat(32));
    pcrs.into_iter()
        .map(|pcr| (pcr.to_string(), value(pcr)))
        .collect()
}

#[test]
fn the_operators_key_signs_nothing_that_fits_every_boot() -> Result<()> {
    let host = Host::start()?;
    host.make_operator_key()?;
    let [key, pcrs, out] = ["operator.pem", "pcrs.json", "approval.json"].map(|f| host.path(f));
    let sign = |values: &Map<String, Value>, more: &[&str]| {
        fs::write(&pcrs, json!({ "pcrs": values }).to_string())?;
        let mut command = vec![
            "host", "policy", "sign", "--key", &key, "--pcrs", &pcrs, "--out", &out,
        ];
        command.extend(more);
        said(&mut host.vtpmctl(command))
    };
    let mut half = measured(0..8);
    half.insert("4".to_owned(), json!("00".repeat(32)));
    let ones = |pcr: u8| (pcr.to_string(), json!("ff".repeat(32)));
    for (values, why) in [
        (measured([16]), "PCRs 0,1,2,3,4,5,6,7 are not covered"),
        (measured([16, 23]), "are not covered"),
        (measured([0, 4, 7]), "PCRs 1,2,3,5,6 are not covered"),
        (half, "PCRs 4 (sha256) have the value"),
        ((0..8).map(ones).collect(), "would fit any boot"),
    ] {
        let refused = sign(&values, &[])?;
        ensure!(refused.status == 2, "{why}: {}", refused.err);
        ensure!(refused.err.contains(why), "{why}: {}", refused.err);
        ensure!(!fs::exists(&out)?, "{why}");
    }
    // The operator may require other ones, but none that any program sets.
    for list in ["16", "7,23"] {
        let refused = sign(&measured([7, 16, 23]), &["--require-pcrs", list])?;
        ensure!(refused.status == 2, "{}", refused.err);
        ensure!(refused.err.contains("can reset it"), "{}", refused.err);
    }
    let signed = sign(&measured([0, 4, 7]), &["--require-pcrs", "0,4,7"])?;
    ensure!(signed.status == 0, "{}", signed.err);
    ensure!(sign(&measured(0..10), &[])?.status == 0);
    Ok(())
}

#[test]
fn the_note_in_an_approval_is_not_shown_as_signed() -> Result<()> {
    let host = Host::start()?;
    host.make_operator_key()?;
    let public = host.path("operator.pem.pub");
    host.ctl(["host", "init", "--policy-key", &public])?;
    let out = host.signed_approval(&["--from-host", "--label", "release 7"])?;
    let signed = fs::read_to_string(&out)?;
    fs::write(&out, signed.replace("release 7", "anything"))?;
    let shown = said(&mut host.vtpmctl(["host", "policy", "approve", &out]))?;
    ensure!(shown.status == 0, "{}", shown.err);
    ensure!(
        shown
            .out
            .contains("in force (its unsigned note says \"anything\")"),
        "{}",
        shown.out
    );
    Ok(())
}

#[test]
fn values_by_hand_are_read_as_policies_write_them_and_none_of_them_twice() -> Result<()> {
    let host = Host::start()?;
    host.make_operator_key()?;
    let [key, pcrs, out] = ["operator.pem", "pcrs.json", "approval.json"].map(|f| host.path(f));
    let sign = |values: &str, more: &[&str]| {
        fs::write(&pcrs, values)?;
        let mut command = vec![
            "host", "policy", "sign", "--key", &key, "--pcrs", &pcrs, "--out", &out,
        ];
        command.extend(more);
        said(&mut host.vtpmctl(command))
    };
    let plain = json!({ "pcrs": measured(0..8) }).to_string();
    ensure!(sign(&plain, &[])?.status == 0);
    let approved: Value = serde_json::from_slice(&fs::read(&out)?)?;
    let named: Map<String, Value> = measured(0..8)
        .into_iter()
        .map(|(pcr, value)| {
            (
                pcr,
                json!(format!("sha256:{}", value.as_str().unwrap_or_default())),
            )
        })
        .collect();
    for same in [
        json!(named).to_string(),
        format!("\u{feff}{plain}"),
        plain.replace(',', ",\r\n"),
    ] {
        let signed = sign(&same, &[])?;
        ensure!(signed.status == 0, "{same}: {}", signed.err);
        let again: Value = serde_json::from_slice(&fs::read(&out)?)?;
        ensure!(again["pcrs"] == approved["pcrs"], "{same}");
    }
    let twice = plain.replacen("\"0\":", "\"0\":\"00\",\"0\":", 1);
    let other_bank = plain.replacen("\"0\":\"", "\"0\":\"sha384:", 1);
    for (values, more, why) in [
        (&twice, &[][..], "stands there twice"),
        (&other_bank, &[], "no sha384 value"),
        (
            &plain,
            &["--require-pcrs", "7-0"],
            "`7-0` is no list of PCRs",
        ),
    ] {
        let refused = sign(values, more)?;
        ensure!(
            refused.status == 2 && refused.err.contains(why),
            "{why}: {}",
            refused.err
        );
    }
    let before = fs::read(&key)?;
    fs::write(&pcrs, &plain)?;
    for (lost, what) in [(&key, "PRIVATE KEY"), (&pcrs, "JSON without a type")] {
        let refused = said(&mut host.vtpmctl([
            "host", "policy", "sign", "--key", &key, "--pcrs", &pcrs, "--out", lost,
        ]))?;
        ensure!(
            refused.status == 2 && refused.err.contains(what),
            "{}",
            refused.err
        );
    }
    ensure!(fs::read(&key)? == before && fs::read_to_string(&pcrs)? == plain);
    Ok(())
}
