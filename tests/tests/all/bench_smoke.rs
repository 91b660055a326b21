//! The bench measures what it promises. How large the figures are is nobody's concern here, unless
//! a figure of that size would mean that nothing was measured, or that something failed.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use test_support::tool::Tool;

/// Every part, on two vRoTs; but the guests, which boot for seconds each.
const EXPECTED: [&str; 141] = [
    "launch_p50_ms",
    "launch_p99_ms",
    "launch_signatures",
    "launch_own_vm_p50_ms",
    "launch_own_vm_p99_ms",
    "launch_own_vm_signatures",
    "launch_certified_p50_ms",
    "launch_certified_p99_ms",
    "launch_own_vm_certified_p50_ms",
    "launch_own_vm_certified_p99_ms",
    "libvirt_hook_first_start_p50_ms",
    "libvirt_hook_start_p50_ms",
    "libvirt_hook_end_p50_ms",
    "command_idle_p50_us",
    "command_idle_p99_us",
    "command_idle_cpu_us",
    "echo_idle_p50_us",
    "command_idle_p50_us_pcr_read",
    "command_idle_p99_us_pcr_read",
    "command_idle_cpu_us_pcr_read",
    "command_idle_p50_us_pcr_extend",
    "command_idle_p99_us_pcr_extend",
    "command_idle_cpu_us_pcr_extend",
    "command_idle_p50_us_quote",
    "command_idle_p99_us_quote",
    "command_idle_cpu_us_quote",
    "command_busy_p50_us",
    "command_busy_p99_us",
    "command_busy_cpu_us",
    "echo_busy_p50_us",
    "command_busy_p50_us_pcr_read",
    "command_busy_p99_us_pcr_read",
    "command_busy_cpu_us_pcr_read",
    "command_busy_p50_us_pcr_extend",
    "command_busy_p99_us_pcr_extend",
    "command_busy_cpu_us_pcr_extend",
    "command_busy_p50_us_quote",
    "command_busy_p99_us_quote",
    "command_busy_cpu_us_quote",
    "command_paced_p50_us",
    "command_paced_cpu_percent",
    "cancel_p50_ms",
    "cancel_p99_ms",
    "cancel_ready_p50_ms",
    "cancel_ready_p99_ms",
    "virtio_tpm_p50_us",
    "virtio_tpm_p99_us",
    "virtio_tpm_cpu_us",
    "boot_overhead_ms",
    "boot_ms",
    "boot_without_tpm_ms",
    "launch_storm_2_cold_s",
    "launch_storm_2_cold_certified_s",
    "launch_storm_2_cold_complete_s",
    "launch_storm_2_s",
    "launch_storm_2_certified_s",
    "launch_storm_2_complete_s",
    "launch_beside_2_p50_ms",
    "launch_beside_2_p99_ms",
    "pss_per_vrot_kib",
    "pss_per_backend_kib",
    "nv_write_durable_p50_us",
    "fsync_p50_us",
    "fsync_same_size_p50_us",
    "tpm_command_p50_us",
    "nv_write_overhead_us",
    "nv_writes_per_s",
    "nv_writes_per_s_beside_fsyncs",
    "fsyncs_per_s",
    "nv_writes_answered_per_s",
    "durable_writes_per_fsync",
    "volatile_anchor_writes_per_s",
    "degraded_vrots_under_load",
    "nv_write_durable_p50_us_tpm_commands_1_ms",
    "nv_writes_per_s_tpm_commands_1_ms",
    "nv_writes_answered_per_s_tpm_commands_1_ms",
    "durable_writes_per_fsync_tpm_commands_1_ms",
    "volatile_anchor_writes_per_s_tpm_commands_1_ms",
    "degraded_vrots_under_load_tpm_commands_1_ms",
    "manager_answers_s",
    "manager_restart_s",
    "manager_restart_until_durable_s",
    "failed_commands",
    "command_p99_ms",
    "command_max_ms",
    "degraded_vrots_across_restart",
    "restart_anchor_writes",
    "planned_restart_anchor_writes",
    "planned_restart_s",
    "planned_restart_until_durable_s",
    "planned_restart_failed_commands",
    "planned_restart_command_p99_ms",
    "planned_restart_command_max_ms",
    "degraded_vrots_across_planned_restart",
    "without_restart_failed_commands",
    "without_restart_command_p99_ms",
    "without_restart_command_max_ms",
    "anchor_writes_per_hour_checkpoints_2_s",
    "anchor_window_s",
    "dashboard_update_ms",
    "events_delivered_ms",
    "tenant_list_2_ms",
    "tenant_evidence_per_s",
    "tenant_evidence_p99_ms",
    "verify_set_per_s",
    "guest_delay_by_tenant_quote_p50_us",
    "guest_delay_by_tenant_quote_us",
    "guest_delay_by_tenant_set_us",
    "signed_readings_per_s",
    "sign_latency_ms",
    "attested_handshake_p50_ms",
    "attested_handshake_tls_ms",
    "attested_handshake_vik_ms",
    "attested_handshake_host_ms",
    "attested_handshake_signature_ms",
    "attested_handshake_verification_ms",
    "attested_handshakes_per_s",
    "attested_handshake_busy_p50_ms",
    "attested_handshake_p99_ms",
    "attested_fleet_first_per_s",
    "attested_fleet_per_s",
    "attested_fleet_p99_ms",
    "attested_fleet_ends_cpu_us",
    "attested_fleet_manager_cpu_us",
    "attested_fleet_backends_cpu_us",
    "host_evidence_per_s",
    "host_evidence_p99_ms",
    "host_evidence_ends_cpu_us",
    "host_evidence_manager_cpu_us",
    "host_evidence_backends_cpu_us",
    "attested_stream_mib_per_s",
    "reattestation_gap_ms",
    "reattestation_slowest_ms",
    "reattestation_trip_p99_ms",
    "tls_hybrid_cpu_ratio",
    "archive_verify_mib_per_s",
    "archive_verify_peak_mib",
    "archive_1000_records_s",
    "archive_1000_records_create_s",
    "archive_1000_records_verify_s",
    "archive_1000_records_verify_peak_mib",
];

#[test]
fn a_small_bench_measures_every_part_and_nothing_fails() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("figures.json");
    let said = Tool::new(env!("CARGO_BIN_EXE_bench"))
        .args([
            "--vrots",
            "2",
            "--launches",
            "1",
            "--writes",
            "20",
            "--commands",
            "20",
        ])
        .args(["--rounds", "1", "--window-s", "1", "--think-ms", "100"])
        .args(["--signature-ms", "0", "--command-ms", "1"])
        .args(["--skip", "guest"])
        .args(["--archive-mib", "16", "--records", "1000"])
        .args([
            "--refill-per-minute",
            "6000",
            "--checkpoint-interval-s",
            "2",
        ])
        // How fast this machine answers is not the question.
        .args(["--late-ms", "120000"])
        .arg("--out")
        .arg(&out)
        .text()?;
    let figures: Vec<Value> = serde_json::from_slice(&std::fs::read(&out)?)?;
    let mut values = BTreeMap::new();
    for figure in &figures {
        let name = figure["name"].as_str().context("a name")?;
        let value = well_formed(figure).with_context(|| figure.to_string())?;
        assert!(said.contains(name), "the table lacks {name}:\n{said}");
        assert_eq!(values.insert(name, value), None, "{name} is there twice");
    }
    let names: BTreeSet<&str> = values.keys().copied().collect();
    assert_eq!(names, BTreeSet::from(EXPECTED), "{said}");
    for (name, value) in &values {
        let may_be_none = name.starts_with("degraded_")
            || name.ends_with("failed_commands")
            || name.contains("_cpu_") && name.starts_with("command_")
            || *name == "virtio_tpm_cpu_us"
            || NONE.contains(name);
        assert!(*value > 0.0 || may_be_none, "{name} is {value}");
    }
    for (name, value) in &values {
        ensure!(
            !name.ends_with("failed_commands") || *value == 0.0,
            "{name}: {said}"
        );
    }
    Ok(())
}

/// Figures that are 0 where everything goes well, or is quick, or, as differences of others, where a machine is
/// busy with something else.
const NONE: [&str; 6] = [
    "boot_overhead_ms",
    "dashboard_update_ms",
    "events_delivered_ms",
    "launch_signatures",
    "nv_write_overhead_us",
    "reattestation_gap_ms",
];

/// The value of a figure that has everything a figure has, and nothing else.
fn well_formed(figure: &Value) -> Result<f64> {
    let keys = figure.as_object().context("an object")?.keys();
    let keys: BTreeSet<&str> = keys.map(String::as_str).collect();
    ensure!(keys == BTreeSet::from(["name", "value", "unit", "peer", "ratio", "n"]));
    let value = figure["value"].as_f64().context("a value")?;
    ensure!(figure["unit"].is_string());
    ensure!(figure["n"].as_u64().is_some_and(|n| n > 0));
    match figure["peer"].as_f64() {
        Some(peer) => {
            ensure!(peer > 0.0);
            let ratio = figure["ratio"].as_f64().context("a ratio")?;
            ensure!((ratio * peer - value).abs() <= 1e-9 * value);
        }
        None => ensure!(figure["ratio"].is_null()),
    }
    Ok(value)
}
