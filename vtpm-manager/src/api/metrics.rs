//! Metrics in the text format of Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use program_output::log;

use crate::backend::Isolation;
use crate::evidence::HostLogProblem;
use crate::manager::{Counter, Manager, Orphans, StoreState};

/// Metrics for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "manager",
    responses((status = 200, content_type = "text/plain", body = String)))]
pub(super) async fn serve(State(manager): State<Arc<Manager>>) -> impl IntoResponse {
    let media_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    let orphans = manager.orphans().await;
    let event_log = manager.evidence().log().check().await;
    (media_type, render(&manager, orphans, &event_log))
}

fn render(manager: &Manager, orphans: Orphans, event_log: &Result<(), HostLogProblem>) -> String {
    let mut text = Text::default();
    let mut states =
        BTreeMap::from(["assigned", "running", "suspended", "stopped"].map(|state| (state, 0)));
    let (mut attached, mut degraded, mut lost) = (0, orphans.degraded, 0);
    for vrot in manager.registry().all() {
        let record = vrot.record();
        *states.entry(record.lifecycle.name()).or_insert(0) += 1;
        lost += u64::from(record.state_loss.is_some());
        if let Some(observed) = vrot.observed() {
            attached += u64::from(observed.attached);
            degraded += u64::from(observed.degraded);
        }
    }
    text.head("vrot_vrots", "gauge", "vRoTs by state.");
    for (state, count) in states {
        text.labelled("vrot_vrots", &format!("state=\"{state}\""), count);
    }
    text.gauge(
        "vrot_pool_ready",
        "vRoTs made ahead that wait for a VM.",
        manager.pool().ready(),
    );
    text.gauge("vrot_attached", "vRoTs with a VMM attached.", attached);
    text.gauge(
        "vrot_degraded",
        "vRoTs that answered a command before its state was durable.",
        degraded,
    );
    text.gauge(
        "vrot_state_lost",
        "vRoTs that may have lost state with a degraded backend, in their present generation.",
        lost,
    );
    text.gauge(
        "vrot_deletions_unfinished",
        "Deleted vRoTs whose line in the audit log, or whose end in the store, is still to come.",
        manager.burials().unfinished(),
    );
    text.gauge(
        "vrot_unadopted",
        "Backends that go on without a manager, because the store is not open.",
        orphans.backends,
    );
    text.gauge(
        "vrot_isolation_degraded",
        "1 if backends share the manager's user, 0 if each has its own.",
        u8::from(matches!(manager.isolation(), Isolation::SharedUser)),
    );
    text.head("vrot_events_total", "counter", "What happened to vRoTs.");
    for counter in Counter::ALL {
        let event = match counter {
            Counter::Created => "created",
            Counter::Started => "started",
            Counter::Stopped => "stopped",
            Counter::Deleted => "deleted",
            Counter::BackendsEnded => "backend-ended",
            Counter::Refused => "refused",
        };
        text.labelled(
            "vrot_events_total",
            &format!("event=\"{event}\""),
            manager.counters().count(counter),
        );
    }
    let renewals = manager.renewals();
    text.counter(
        "vrot_certificate_renewals_total",
        "New certificates for identity keys.",
        renewals.done(),
    );
    text.counter(
        "vrot_certificate_renewal_failures_total",
        "Attempts at a new certificate that failed.",
        renewals.failures(),
    );
    text.gauge(
        "vrot_certificate_renewals_overdue",
        "vRoTs whose last attempt at a new certificate failed.",
        renewals.overdue(),
    );
    let store = manager.journal().metrics();
    text.counter(
        "vrot_store_commits_total",
        "Batches made durable.",
        store.commits(),
    );
    text.counter(
        "vrot_store_changes_total",
        "Changes made durable, several in one batch.",
        store.changes(),
    );
    text.counter(
        "vrot_store_held_back_total",
        "Changes that waited because their vRoT had used its share of the disk.",
        store.held_back(),
    );
    text.counter(
        "vrot_store_failures_total",
        "Batches that the disk did not take.",
        store.failures(),
    );
    text.counter(
        "vrot_store_commit_seconds_total",
        "Time spent waiting for the disk.",
        store.seconds(),
    );
    text.counter(
        "vrot_store_syncs_total",
        "How often the store waited for the disk: at least once in each batch.",
        manager.journal().store().syncs(),
    );
    text.counter(
        "vrot_store_written_bytes_total",
        "Bytes that the store wrote to its disk.",
        manager.journal().store().written(),
    );
    text.gauge(
        "vrot_store_open",
        "1 if the physical TPM vouches for the store, else 0.",
        u8::from(matches!(manager.store_state(), StoreState::Open { .. })),
    );
    let anchor = manager.host().anchor();
    text.gauge(
        "vrot_tpm_silent_seconds",
        "How long the physical TPM has not answered, if that is longer than it may take; 0 if it answers.",
        anchor.silence().unwrap_or_default().as_secs_f64(),
    );
    text.counter(
        "vrot_tpm_requests_given_up_total",
        "Requests that were given up because the physical TPM did not answer.",
        anchor.given_up(),
    );
    let trouble = manager.journal().trouble();
    text.gauge(
        "vrot_store_stalled_seconds",
        "Time since when nothing became durable although something should; 0 if all is well.",
        trouble.map_or(0.0, |trouble| trouble.since.elapsed().as_secs_f64()),
    );
    if let Some(rollback) = manager.journal().rollback_status() {
        text.gauge(
            "vrot_rollback_batch",
            "Number of the newest batch.",
            rollback.epoch,
        );
        text.gauge(
            "vrot_rollback_window_batches",
            "Batches of changes that a loss of power could cut off unseen.",
            rollback.window.batches,
        );
        text.gauge(
            "vrot_rollback_window_seconds",
            "Age of the oldest of them.",
            rollback.exposure().as_secs_f64(),
        );
        text.gauge(
            "vrot_rollback_window_limit_seconds",
            "How old it may become by policy.",
            rollback.window.limit.as_secs(),
        );
        text.head(
            "vrot_rollback_policy",
            "gauge",
            "When the physical TPM vouches durably for what is new.",
        );
        let policy = format!("policy=\"{}\"", rollback.policy.name());
        text.labelled("vrot_rollback_policy", &policy, 1);
        let loss = rollback.power_loss;
        text.gauge(
            "vrot_rollback_power_loss_batch",
            "The first batch after the last loss of power that may have cut off state; 0 if none. It rises with each such loss.",
            loss.map_or(0, |loss| loss.batch.number()),
        );
        text.gauge(
            "vrot_rollback_power_loss_time_seconds",
            "When that was by the host's clock, since 1970, for people to read; 0 if none.",
            loss.map_or(0, |loss| loss.time.number()),
        );
        text.gauge(
            "vrot_rollback_power_loss_window_seconds",
            "How much of the time before may be missing.",
            loss.map_or(0, |loss| loss.window.seconds()),
        );
    }
    if let StoreState::Open { boot } = manager.store_state() {
        text.head("vrot_rollback_boot", "gauge", "How the host came up.");
        text.labelled(
            "vrot_rollback_boot",
            &format!("boot=\"{}\"", boot.name()),
            1,
        );
    }
    text.gauge(
        "vrot_host_event_log_usable",
        "1 if the host's event log accounts for the host's PCRs, 0 if devices refuse every VM of this host.",
        u8::from(event_log.is_ok()),
    );
    text.head(
        "vrot_host_event_log_unaccounted",
        "gauge",
        "Quoted PCRs of the host that its event log does not account for.",
    );
    for pcr in event_log
        .as_ref()
        .err()
        .map_or(&[][..], HostLogProblem::pcrs)
    {
        let label = format!("pcr=\"{pcr}\"");
        text.labelled("vrot_host_event_log_unaccounted", &label, 1);
    }
    let evidence = manager.evidence().metrics();
    text.counter(
        "vrot_host_quotes_total",
        "Quotes of the physical TPM.",
        evidence.quotes(),
    );
    text.counter(
        "vrot_host_evidence_total",
        "Requests for host evidence that were answered.",
        evidence.answered(),
    );
    text.counter(
        "vrot_host_evidence_failures_total",
        "Requests for host evidence that failed.",
        evidence.failed(),
    );
    text.counter(
        "vrot_host_evidence_refusals_total",
        "Requests for host evidence beyond the quota of a vRoT.",
        evidence.refused(),
    );
    text.gauge(
        "vrot_manager_fault_time_seconds",
        "When the last manager ended by a fault of its own (a panic), since 1970; 0 if it did not.",
        manager.last_fault().map_or(0, |fault| fault.time.seconds()),
    );
    let missing = log::losses();
    text.head(
        "vrot_log_lines_missing_total",
        "counter",
        "Lines that the manager's log lacks: it could not be written, or they were too many.",
    );
    for (reason, lines) in [("lost", missing.lost), ("left-out", missing.left_out)] {
        let reason = format!("reason=\"{reason}\"");
        text.labelled("vrot_log_lines_missing_total", &reason, lines);
    }
    let audit = manager.audit().end();
    text.counter(
        "vrot_audit_entries_total",
        "Lines in the audit log.",
        audit.entries,
    );
    text.gauge(
        "vrot_audit_bytes",
        "Size of the audit log in all its parts.",
        audit.bytes,
    );
    text.gauge(
        "vrot_audit_parts",
        "Files that the audit log is.",
        audit.parts,
    );
    text.0
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, "gauge", help);
        self.line(format_args!("{name} {value}"));
    }

    fn counter(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, "counter", help);
        self.line(format_args!("{name} {value}"));
    }

    fn labelled(&mut self, name: &str, label: &str, value: impl std::fmt::Display) {
        self.line(format_args!("{name}{{{label}}} {value}"));
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // A String takes every character.
        let _ = writeln!(self.0, "{line}");
    }
}
