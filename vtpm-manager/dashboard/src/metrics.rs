//! The counters and gauges of a manager that the page draws.

use std::collections::BTreeMap;

/// Names in the manager's metrics, and those by which the page knows them.
const WANTED: [(&str, &str); 12] = [
    ("vrot_host_evidence_total", "evidence"),
    ("vrot_host_quotes_total", "quotes"),
    ("vrot_host_evidence_failures_total", "evidenceFailed"),
    ("vrot_host_evidence_refusals_total", "evidenceRefused"),
    ("vrot_events_total{event=\"refused\"}", "refused"),
    (
        "vrot_events_total{event=\"backend-ended\"}",
        "backendsEnded",
    ),
    ("vrot_store_changes_total", "changes"),
    ("vrot_store_commits_total", "commits"),
    ("vrot_store_stalled_seconds", "stalled"),
    ("vrot_tpm_silent_seconds", "tpmSilent"),
    ("vrot_pool_ready", "poolReady"),
    ("vrot_certificate_renewals_total", "renewals"),
];

/// Those of them that the manager has, from its text for Prometheus. What is no number is left out.
pub(crate) fn sample(text: &str) -> BTreeMap<&'static str, f64> {
    let values = text.lines().filter(|line| !line.starts_with('#'));
    values
        .filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            let (_, short) = WANTED.iter().find(|(wanted, _)| *wanted == name)?;
            let value: f64 = value.parse().ok()?;
            value.is_finite().then_some((*short, value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_page_draws_is_found_by_name_and_label() {
        let text = "# HELP vrot_host_evidence_total Requests.\nvrot_host_evidence_total 7\n\
                    vrot_events_total{event=\"created\"} 2\nvrot_events_total{event=\"refused\"} 3\n\
                    vrot_pool_ready NaN\nvrot_tpm_silent_seconds much\n\n";
        let expected = BTreeMap::from([("evidence", 7.0), ("refused", 3.0)]);
        assert_eq!(sample(text), expected);
    }
}
