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

/// A host on which this series has these values, a minute apart, and the alert that it fires.
const CASES: [(&str, &str, &str); 8] = [
    ("vrot_manager_up", "1 0 0 0 0 0", "VrotManagerDown"),
    ("vrot_degraded", "0 3 3 3 3 3", "VrotDegraded"),
    ("vrot_audit_altered", "0 0 0 0 0 1", "VrotAuditAltered"),
    (
        "vrot_store_stalled_seconds",
        "0 0 0 0 0 60",
        "VrotStoreStalled",
    ),
    (
        "vrot_host_certificate_end_seconds",
        "1x5",
        "VrotHostCertificateEnded",
    ),
    (
        "vrot_tpm_requests_given_up_total",
        "0 0 0 0 0 4",
        "VrotTpmSlow",
    ),
    (
        "vrot_rollback_power_loss_batch",
        "7 7 7 7 9 9",
        "VrotPowerLoss",
    ),
    ("vrot_state_lost", "0 0 0 0 0 1", "VrotStateLost"),
];

#[test]
fn alerts_fire_for_what_is_wrong_and_for_nothing_else() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let rules = packaged("prometheus-rules.yml")?;
    fs::write(folder.path().join("rules.yml"), &rules)?;
    let promtool = promtool()?;
    let checked = said(
        Command::new(&promtool)
            .args(["check", "rules", "rules.yml"])
            .current_dir(&folder),
    )?;
    assert_eq!(checked.status, 0, "{}{}", checked.out, checked.err);

    let alerts: Vec<&str> = (rules.lines())
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    let mut tests = "rule_files: [rules.yml]\nevaluation_interval: 1m\ntests:\n".to_owned();
    for (series, values, fires) in CASES {
        ensure!(alerts.contains(&fires), "there is no {fires}");
        tests += &format!(
            "- interval: 1m\n  input_series:\n  - series: '{series}{{instance=\"a\"}}'\n    values: '{values}'\n"
        );
        let well = "  - series: 'vrot_store_open{instance=\"a\"}'\n    values: '1x5'\n";
        tests += well;
        tests += "  promql_expr_test:\n";
        for alert in &alerts {
            let samples = match *alert == fires {
                true => "\n      exp_samples: [{labels: 'ALERTS{}', value: 1}]",
                false => "",
            };
            tests += &format!(
                "  - expr: 'sum(ALERTS{{alertname=\"{alert}\",alertstate=\"firing\"}})'\n    eval_time: 5m\n"
            );
            tests += &samples
                .replace("ALERTS{}", "{}")
                .replace("      exp", "    exp");
            tests += "\n";
        }
    }
    fs::write(folder.path().join("tests.yml"), &tests)?;
    let judged = said(
        Command::new(&promtool)
            .args(["test", "rules", "tests.yml"])
            .current_dir(&folder),
    )?;
    assert_eq!(judged.status, 0, "{}{}", judged.out, judged.err);
    Ok(())
}
