//! The bench measures what it promises. How large the figures are is nobody's concern here.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde_json::Value;
use vrot_tests::tool::Tool;

/// Every part that takes seconds, on two vRoTs. The storm from a warm pool and the anchor take
/// longer.
const EXPECTED: [&str; 13] = [
    "launch_p50_ms",
    "launch_p99_ms",
    "pss_per_vrot_kib",
    "pss_per_vrot_with_manager_kib",
    "nv_write_durable_p50_us",
    "fsync_p50_us",
    "nv_writes_per_s",
    "fsyncs_per_s",
    "nv_writes_per_fsync",
    "nv_writes_per_s_over_fsyncs_per_s",
    "volatile_anchor_writes_per_s",
    "manager_restart_s",
    "failed_commands",
];

#[test]
fn a_small_bench_writes_a_figure_for_each_name() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("figures.json");
    let said = Tool::new(env!("CARGO_BIN_EXE_bench"))
        .args(["--vrots", "2", "--launches", "1", "--writes", "20"])
        .args(["--rounds", "1", "--window-s", "1"])
        .args(["--signature-ms", "0", "--skip", "storm,anchor"])
        .arg("--out")
        .arg(&out)
        .text()?;
    let figures: Vec<Value> = serde_json::from_slice(&std::fs::read(&out)?)?;
    let mut names = BTreeSet::new();
    for figure in &figures {
        let name = figure["name"].as_str().context("a name")?;
        names.insert(name);
        assert!(said.contains(name), "the table lacks {name}:\n{said}");
        let value = figure["value"].as_f64().context("a value")?;
        assert!(figure["unit"].is_string(), "{figure}");
        assert!(figure["n"].as_u64().is_some_and(|n| n > 0), "{figure}");
        match figure["peer"].as_f64() {
            Some(peer) => {
                let ratio = figure["ratio"].as_f64().context("a ratio")?;
                assert!((ratio * peer - value).abs() <= 1e-9 * value, "{figure}");
            }
            None => assert!(figure["ratio"].is_null(), "{figure}"),
        }
    }
    for name in EXPECTED {
        assert!(names.contains(name), "{name} is missing: {said}");
    }
    Ok(())
}
