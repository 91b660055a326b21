//! Metrics in the text format of Prometheus.

use std::fmt::Write;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use guarded_state::ledger::RollbackStatus;
use program_output::log;
use tenant_api::{CountedRequests, Refusal, TenantApi};

use crate::evidence::HostLogProblem;
use crate::manager::{Counter, Manager, Serving, Status, StoreStatus};

/// Metrics for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "manager",
    responses((status = 200, content_type = "text/plain", body = String)))]
pub(super) async fn serve(State(manager): State<Arc<Manager>>) -> impl IntoResponse {
    answer(&manager.status().await)
}

/// The metrics of a manager in this state, as a response.
pub(super) fn answer(status: &Status) -> impl IntoResponse + use<> {
    let media_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (media_type, render(status))
}

fn render(status: &Status) -> String {
    let mut text = Text::default();
    text.gauge(
        "vrot_isolation_degraded",
        "1 if backends share the manager's user, 0 if each has its own.",
        u8::from(status.shares_user),
    );
    text.gauge(
        "vrot_store_open",
        "1 if the physical TPM vouches for the store and what it holds was taken over, else 0.",
        u8::from(status.store.state.is_open()),
    );
    text.gauge(
        "vrot_store_opening",
        "1 while a manager that was just started opens the store, else 0.",
        u8::from(status.store.state.is_opening()),
    );
    if let Some(serving) = &status.serving {
        vrots(&mut text, serving, &status.store);
        store(&mut text, serving, &status.store);
        host(&mut text, serving);
        if let Some(api) = &serving.tenants {
            tenants(&mut text, api);
        }
    }
    text.gauge(
        "vrot_manager_fault_time_seconds",
        "When the last manager ended by a fault of its own (a panic), since 1970; 0 if it did not.",
        (status.last_fault.as_ref()).map_or(0, |fault| fault.time.seconds()),
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
    text.0
}

fn vrots(text: &mut Text, serving: &Serving, store: &StoreStatus) {
    text.head("vrot_vrots", "gauge", "vRoTs by state.");
    for (state, count) in &serving.vrots {
        text.labelled("vrot_vrots", &format!("state=\"{state}\""), count);
    }
    text.gauge(
        "vrot_pool_ready",
        "vRoTs made ahead that wait for a VM.",
        serving.pool_ready,
    );
    text.gauge(
        "vrot_attached",
        "vRoTs with a VMM attached.",
        serving.attached,
    );
    text.gauge(
        "vrot_degraded",
        "vRoTs that answered a command before its state was durable.",
        serving.degraded,
    );
    text.gauge(
        "vrot_state_lost",
        "vRoTs that may have lost state with a degraded backend, in their present generation.",
        serving.lost,
    );
    text.gauge(
        "vrot_deletions_unfinished",
        "Deleted vRoTs whose line in the audit log, or whose end in the store, is still to come.",
        serving.deletions_unfinished,
    );
    text.gauge(
        "vrot_unadopted",
        "Backends that go on without a manager, because the store is not open.",
        store.orphans.backends,
    );
    text.head("vrot_events_total", "counter", "What happened to vRoTs.");
    for (counter, count) in serving.events {
        let event = match counter {
            Counter::Created => "created",
            Counter::Started => "started",
            Counter::Stopped => "stopped",
            Counter::Deleted => "deleted",
            Counter::BackendsEnded => "backend-ended",
            Counter::Refused => "refused",
        };
        text.labelled("vrot_events_total", &format!("event=\"{event}\""), count);
    }
    text.gauge(
        "vrot_event_followers",
        "Streams of events that somebody follows.",
        serving.followers,
    );
    text.counter(
        "vrot_certificate_renewals_total",
        "New certificates for identity keys.",
        serving.renewals.done,
    );
    text.counter(
        "vrot_certificate_renewal_failures_total",
        "Attempts at a new certificate that failed.",
        serving.renewals.failures,
    );
    text.gauge(
        "vrot_certificate_renewals_overdue",
        "vRoTs whose last attempt at a new certificate failed.",
        serving.renewals.overdue,
    );
    text.gauge(
        "vrot_identities_pending",
        "vRoTs whose identity key has no certificate yet.",
        serving.renewals.viks_pending,
    );
    text.gauge(
        "vrot_tls_certificates_pending",
        "vRoTs whose identity key is certified and whose TLS key is not yet.",
        serving.renewals.tls_pending,
    );
    text.gauge(
        "vrot_ek_certificates_pending",
        "vRoTs whose other keys are certified and whose endorsement keys are not yet.",
        serving.renewals.eks_pending,
    );
    text.counter(
        "vrot_certificates_issued_total",
        "First certificates of identity keys, issued beside a launch.",
        serving.renewals.issued,
    );
}

fn store(text: &mut Text, serving: &Serving, store: &StoreStatus) {
    let writer = &serving.writer;
    text.counter(
        "vrot_store_commits_total",
        "Batches made durable.",
        writer.commits,
    );
    text.counter(
        "vrot_store_changes_total",
        "Changes made durable, several in one batch.",
        writer.changes,
    );
    text.counter(
        "vrot_store_held_back_total",
        "Changes that waited because their vRoT had used its share of the disk.",
        writer.held_back,
    );
    text.counter(
        "vrot_store_failures_total",
        "Batches that the disk did not take.",
        writer.failures,
    );
    text.counter(
        "vrot_store_commit_seconds_total",
        "Time spent waiting for the disk.",
        writer.seconds,
    );
    text.counter(
        "vrot_store_syncs_total",
        "How often the store waited for the disk: at least once in each batch.",
        writer.syncs,
    );
    text.counter(
        "vrot_store_written_bytes_total",
        "Bytes that the store wrote to its disk.",
        writer.written,
    );
    text.gauge(
        "vrot_store_stalled_seconds",
        "Time since when nothing became durable although something should; 0 if all is well.",
        (store.stall.as_ref()).map_or(0.0, |stall| stall.since.elapsed().as_secs_f64()),
    );
    if let Some(status) = &store.rollback {
        rollback(text, status);
    }
    if let Some(vouched) = store.state.vouched() {
        text.head("vrot_rollback_boot", "gauge", "How the host came up.");
        let boot = format!("boot=\"{}\"", vouched.boot.name());
        text.labelled("vrot_rollback_boot", &boot, 1);
    }
}

fn rollback(text: &mut Text, rollback: &RollbackStatus) {
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

fn host(text: &mut Text, serving: &Serving) {
    text.gauge(
        "vrot_tpm_silent_seconds",
        "How long the physical TPM has not answered, if that is longer than it may take; 0 if it answers.",
        serving.tpm.silence.unwrap_or_default().as_secs_f64(),
    );
    text.counter(
        "vrot_tpm_requests_given_up_total",
        "Requests that were given up because the physical TPM did not answer.",
        serving.tpm.given_up,
    );
    text.gauge(
        "vrot_host_event_log_usable",
        "1 if the host's event log accounts for the host's PCRs, 0 if devices refuse every VM of this host or it is not known yet.",
        u8::from(serving.event_log.is_ok()),
    );
    text.head(
        "vrot_host_event_log_unaccounted",
        "gauge",
        "Quoted PCRs of the host that its event log does not account for.",
    );
    for pcr in serving
        .event_log
        .as_ref()
        .err()
        .map_or(&[][..], HostLogProblem::pcrs)
    {
        let label = format!("pcr=\"{pcr}\"");
        text.labelled("vrot_host_event_log_unaccounted", &label, 1);
    }
    let evidence = &serving.evidence;
    text.counter(
        "vrot_host_quotes_total",
        "Quotes of the physical TPM.",
        evidence.quotes,
    );
    text.counter(
        "vrot_host_evidence_total",
        "Requests for host evidence that were answered.",
        evidence.answered,
    );
    text.counter(
        "vrot_host_evidence_failures_total",
        "Requests for host evidence that failed.",
        evidence.failed,
    );
    text.counter(
        "vrot_host_evidence_refusals_total",
        "Requests for host evidence beyond the quota of a vRoT.",
        evidence.refused,
    );
    text.counter(
        "vrot_host_evidence_uncertified_total",
        "Requests for host evidence that waited in vain for the identity key's certificate.",
        evidence.uncertified,
    );
    let audit = &serving.audit.written;
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
    text.gauge(
        "vrot_audit_altered",
        "1 if the audit log lacks lines that the physical TPM vouched for and nobody accepted that, else 0.",
        u8::from(serving.audit.is_altered),
    );
    text.gauge(
        "vrot_audit_unvouched_lines",
        "Lines of the audit log that the physical TPM does not vouch for yet.",
        serving.audit.unvouched,
    );
}

/// Of all tenants together: a metric for each would be as many as there are names.
fn tenants(text: &mut Text, api: &TenantApi) {
    text.gauge(
        "vrot_tenant_connections",
        "Connections of tenants.",
        api.connections(),
    );
    let counts = api.counts();
    text.counter(
        "vrot_tenant_admissions_total",
        "Connections that were admitted with a tenant's certificate.",
        counts.admitted(),
    );
    text.head(
        "vrot_tenant_refusals_total",
        "counter",
        "What tenants, or those who were none, did not get, by reason.",
    );
    for refusal in Refusal::ALL {
        let reason = format!("reason=\"{}\"", refusal.name());
        text.labelled(
            "vrot_tenant_refusals_total",
            &reason,
            counts.refused(refusal),
        );
    }
    text.head(
        "vrot_tenant_requests_total",
        "counter",
        "Requests of tenants.",
    );
    for kind in CountedRequests::ALL {
        let label = format!("kind=\"{}\"", kind.name());
        text.labelled("vrot_tenant_requests_total", &label, counts.requested(kind));
    }
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
