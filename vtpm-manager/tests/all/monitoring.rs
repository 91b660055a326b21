//! Metrics as Prometheus gets them, and the alert rules and the dashboard of the package: they name
//! metrics that there are, and Prometheus takes them.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use test_support::programs::{target_folder, workspace_folder};

use crate::support::{Host, said};

fn packaged(name: &str) -> Result<String> {
    let folder = workspace_folder()?.join("vtpm-manager/packaging/vrot-host/monitoring");
    Ok(fs::read_to_string(folder.join(name))?)
}

/// Our metrics in a text.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("vrot_")).collect()
}

/// The metrics of a host, by the lines that say what they are.
fn metrics_of(text: &str) -> BTreeSet<&str> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.filter_map(|line| line.split(' ').next()).collect()
}

fn promtool() -> Result<PathBuf> {
    let path = target_folder()?.join("peers/promtool");
    ensure!(
        path.is_file(),
        "{} is missing: `make peers` fetches it",
        path.display()
    );
    Ok(path)
}

#[test]
fn alerts_and_dashboard_name_metrics_that_a_host_has_and_prometheus_takes_both() -> Result<()> {
    let mut host = Host::enrolled()?;
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    let text = host.ctl(["metrics"])?;
    let known = metrics_of(&text);
    let checked = Command::new(promtool()?)
        .args(["check", "metrics"])
        .stdin(fs::File::open({
            let path = host.path("metrics.prom");
            host.ctl(["metrics", "--out", &path])?;
            path
        })?)
        .output()?;
    let complaints = String::from_utf8(checked.stderr)?;
    assert!(checked.status.success(), "{complaints}");

    let dashboard: Value = serde_json::from_str(&packaged("grafana-dashboard.json")?)?;
    let mut named = BTreeSet::new();
    let mut shown = 0;
    for panel in dashboard["panels"].as_array().context("no panels")? {
        for target in panel["targets"].as_array().into_iter().flatten() {
            named.extend(metrics_in(
                target["expr"].as_str().context("no expression")?,
            ));
            shown += 1;
        }
    }
    ensure!(shown > 20, "{shown} expressions");
    let rules = packaged("prometheus-rules.yml")?;
    let expressions = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr: "));
    named.extend(expressions.flat_map(metrics_in));
    let unknown: Vec<_> = named.difference(&known).collect();
    assert!(unknown.is_empty(), "{unknown:?}");

    // One that does not answer is told, and what is old is replaced.
    host.signal(Signal::SIGSTOP)?;
    let file = host.path("metrics.prom");
    let refused = host.refused(["metrics", "--out", &file])?;
    host.signal(Signal::SIGCONT)?;
    ensure!(refused.contains("no sign of life"), "{refused}");
    let written = fs::read_to_string(&file)?;
    ensure!(written.contains("\nvrot_manager_up 0\n"), "{written}");
    assert_eq!(metrics_of(&written).len(), 2, "{written}");
    host.shut_down()?;
    host.refused(["metrics", "--out", &file])?;
    Ok(())
}

/// Series of a host that is well, and their values a minute apart.
const WELL: [(&str, &str); 26] = [
    ("vrot_manager_up", "1x90"),
    ("vrot_metrics_time_seconds", "0+60x90"),
    ("vrot_store_open", "1x90"),
    ("vrot_store_opening", "0x90"),
    ("vrot_store_stalled_seconds", "5x90"),
    ("vrot_unadopted", "0x90"),
    ("vrot_degraded", "0x90"),
    ("vrot_state_lost", "0x90"),
    ("vrot_rollback_window_seconds", "70x90"),
    ("vrot_rollback_window_limit_seconds", "40x90"),
    ("vrot_rollback_power_loss_batch", "7x90"),
    ("vrot_audit_altered", "0x90"),
    ("vrot_audit_unvouched_lines", "0x90"),
    ("vrot_tpm_silent_seconds", "0x90"),
    ("vrot_tpm_requests_given_up_total", "7x90"),
    ("vrot_host_certificate_end_seconds", "2600000x90"),
    ("vrot_certificate_renewals_overdue", "0x90"),
    ("vrot_identities_pending", "0x90"),
    ("vrot_host_event_log_usable", "1x90"),
    ("vrot_host_evidence_failures_total", "7x90"),
    ("vrot_state_disk_free_bytes", "1100000000x90"),
    ("vrot_deletions_unfinished", "0x90"),
    ("vrot_isolation_degraded", "0x90"),
    ("vrot_manager_fault_time_seconds", "0x90"),
    ("vrot_log_lines_missing_total", "7x90"),
    // Not of ours.
    ("up", "1x90"),
];

/// A series of a host that is otherwise well, its values a minute apart, and after how many minutes
/// which alert fires. What an alert waits for has not gone on for long enough a minute before.
const CASES: [(&str, &str, u32, Option<&str>); 32] = [
    ("up", "1x90", 90, None),
    ("vrot_manager_up", "1 0x90", 3, Some("VrotManagerDown")),
    ("vrot_manager_up", "1 0x90", 2, None),
    (
        "vrot_metrics_time_seconds",
        "0x90",
        6,
        Some("VrotMetricsMissing"),
    ),
    ("vrot_store_open", "0x90", 2, Some("VrotStoreNotOpen")),
    ("vrot_store_open", "0x90", 1, None),
    (
        "vrot_store_stalled_seconds",
        "0x4 11",
        5,
        Some("VrotStoreStalled"),
    ),
    (
        "vrot_unadopted",
        "1x90",
        5,
        Some("VrotBackendsWithoutManager"),
    ),
    ("vrot_unadopted", "1x90", 4, None),
    ("vrot_degraded", "3x90", 2, Some("VrotDegraded")),
    ("vrot_degraded", "3x90", 1, None),
    ("vrot_state_lost", "0x4 1", 5, Some("VrotStateLost")),
    (
        "vrot_rollback_window_seconds",
        "81x90",
        5,
        Some("VrotRollbackWindow"),
    ),
    // Nothing is to be noted at intervals there.
    ("vrot_rollback_window_limit_seconds", "0x90", 90, None),
    (
        "vrot_rollback_power_loss_batch",
        "7x4 9x90",
        30,
        Some("VrotPowerLoss"),
    ),
    ("vrot_audit_altered", "0x4 1", 5, Some("VrotAuditAltered")),
    (
        "vrot_audit_unvouched_lines",
        "1x90",
        60,
        Some("VrotAuditUnvouched"),
    ),
    ("vrot_tpm_silent_seconds", "1x90", 1, Some("VrotTpmSilent")),
    (
        "vrot_tpm_requests_given_up_total",
        "7x4 8x90",
        10,
        Some("VrotTpmSlow"),
    ),
    (
        "vrot_host_certificate_end_seconds",
        "2590000x90",
        60,
        Some("VrotHostCertificateEnds"),
    ),
    (
        "vrot_host_certificate_end_seconds",
        "1x90",
        5,
        Some("VrotHostCertificateEnded"),
    ),
    // A host that was never enrolled has none.
    ("vrot_host_certificate_end_seconds", "0x90", 90, None),
    (
        "vrot_certificate_renewals_overdue",
        "1x90",
        30,
        Some("VrotRenewalsOverdue"),
    ),
    (
        "vrot_identities_pending",
        "1x90",
        30,
        Some("VrotIdentitiesPending"),
    ),
    (
        "vrot_host_event_log_usable",
        "0x90",
        5,
        Some("VrotEventLogUnusable"),
    ),
    (
        "vrot_host_evidence_failures_total",
        "7x4 8x90",
        10,
        Some("VrotEvidenceFails"),
    ),
    (
        "vrot_state_disk_free_bytes",
        "900000000x90",
        10,
        Some("VrotDiskLow"),
    ),
    (
        "vrot_state_disk_free_bytes",
        "60000000x90",
        1,
        Some("VrotDiskFull"),
    ),
    (
        "vrot_deletions_unfinished",
        "1x90",
        30,
        Some("VrotDeletionsUnfinished"),
    ),
    (
        "vrot_isolation_degraded",
        "0x4 1",
        5,
        Some("VrotIsolationDegraded"),
    ),
    (
        "vrot_manager_fault_time_seconds",
        "0x4 60x90",
        30,
        Some("VrotManagerFault"),
    ),
    (
        "vrot_log_lines_missing_total",
        "7x4 8x90",
        30,
        Some("VrotLogLinesMissing"),
    ),
];

/// One host that is well but for this series, and all that fires there.
fn case((series, values, minutes, fires): (&str, &str, u32, Option<&str>)) -> String {
    let mut case = "- interval: 1m\n  input_series:\n".to_owned();
    for (name, well) in WELL {
        let values = if name == series { values } else { well };
        case += &format!("  - series: '{name}{{instance=\"a\"}}'\n    values: '{values}'\n");
    }
    let samples = fires.map(|alert| format!("{{labels: '{{alertname=\"{alert}\"}}', value: 1}}"));
    case += &format!(
        "  promql_expr_test:\n  - expr: 'sum by (alertname) (ALERTS{{alertstate=\"firing\"}})'\n    \
         eval_time: {minutes}m\n    exp_samples: [{}]\n",
        samples.unwrap_or_default()
    );
    case
}

#[test]
fn each_alert_fires_for_what_is_wrong_and_for_nothing_else() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let rules = packaged("prometheus-rules.yml")?;
    fs::write(folder.path().join("rules.yml"), &rules)?;
    let run = |arguments: &[&str]| {
        let mut promtool = Command::new(promtool()?);
        said(promtool.args(arguments).current_dir(&folder))
    };
    let checked = run(&["check", "rules", "rules.yml"])?;
    assert_eq!(checked.status, 0, "{}{}", checked.out, checked.err);

    let alerts: BTreeSet<&str> = (rules.lines())
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    let told: BTreeSet<&str> = CASES.iter().filter_map(|(.., fires)| *fires).collect();
    assert_eq!(alerts, told, "each alert has a case in which it fires");
    let series: BTreeSet<&str> = WELL.iter().map(|(series, _)| *series).collect();
    let named = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr: "));
    let unknown: Vec<&str> = (named.flat_map(metrics_in))
        .filter(|metric| !series.contains(metric))
        .collect();
    assert!(unknown.is_empty(), "no values are stated for {unknown:?}");
    let tests = "rule_files: [rules.yml]\nevaluation_interval: 1m\ntests:\n".to_owned();
    let tests = tests + &CASES.map(case).concat();
    fs::write(folder.path().join("tests.yml"), &tests)?;
    let judged = run(&["test", "rules", "tests.yml"])?;
    assert_eq!(judged.status, 0, "{}{}", judged.out, judged.err);
    Ok(())
}
