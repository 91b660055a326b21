//! What the manager says of its host, its store and its vRoTs.

use api_types::wire::{HostView, PolicyView};
use nix::errno::Errno;

use super::Examination;
use super::finding::{Check, Finding};

/// What the manager said to the three questions that are put to it.
#[derive(Debug)]
pub struct ManagerSaid {
    /// To `GET /v1/host`.
    pub host: Result<HostView, NotSaid>,
    /// To `GET /v1/host/policy`.
    pub policy: Result<PolicyView, NotSaid>,
    /// To `GET /metrics`.
    pub metrics: Option<String>,
    /// The process that listens.
    pub process: Option<i32>,
}

/// Why it said nothing.
#[derive(Clone, Debug)]
pub struct NotSaid {
    /// In words.
    pub reason: String,
    /// What the operating system said, if nobody was reached at the socket.
    pub errno: Option<i32>,
}

/// What a metric has to be, if it is there.
struct Expectation {
    metric: &'static str,
    /// What is said of a value that is not 0.
    found: &'static str,
    remedy: &'static str,
}

/// The store's state while a manager starts.
const OPENING: &str = "opening";
/// What is to be done about it.
const AGAIN: &str = "look again in a moment";

const EXPECTATIONS: [Expectation; 6] = [
    Expectation {
        metric: "vrot_degraded",
        found: "vRoTs answered commands whose state is not durable yet",
        remedy: "look at the disk and the physical TPM: `vtpmctl host show`, `vtpmctl list`",
    },
    Expectation {
        metric: "vrot_state_lost",
        found: "vRoTs may have lost state with a backend that ended",
        remedy: "`vtpmctl list` says which; their relying parties have to accept it, or delete them",
    },
    Expectation {
        metric: "vrot_certificate_renewals_overdue",
        found: "vRoTs could not get their next certificate",
        remedy: "`vtpmctl show UUID` gives the reason; `vtpmctl identity UUID --renew` tries again",
    },
    Expectation {
        metric: "vrot_deletions_unfinished",
        found: "deletions are not finished",
        remedy: "`vtpmctl delete UUID` once more says what is in the way",
    },
    Expectation {
        metric: "vrot_tpm_silent_seconds",
        found: "seconds have passed in which the physical TPM did not answer",
        remedy: "look into the kernel's log for the TPM's driver; a TPM that stays silent needs a power cycle",
    },
    Expectation {
        metric: "vrot_store_stalled_seconds",
        found: "seconds have passed in which nothing became durable",
        remedy: "look at the disk of the state folder and at the physical TPM",
    },
];

pub(crate) fn check(examined: &Examination<'_>, findings: &mut Vec<Finding>) {
    let host = match &examined.manager.host {
        Ok(host) => host,
        Err(reason) => {
            unreached(reason, &mut Check::new("manager", findings));
            return;
        }
    };
    let mut check = Check::new("manager", findings);
    match &host.last_fault {
        Some(fault) => check.warning(
            format!(
                "it runs; the last one ended by a fault of its own, at {} ({})",
                fault.time, fault.place
            ),
            "report it, with the journal of that time",
        ),
        None => check.ok("it runs"),
    }
    if host.log.lost > 0 {
        check.warning(
            format!("{} lines of its log could not be written", host.log.lost),
            "look at what takes its standard error: `journalctl -u vtpm-managerd`",
        );
    }
    if host.isolation == "shared-user" {
        check.failed(
            "all backends run as the manager's user",
            "start it by its packaged unit, which lets it give each backend a user of its own",
        );
    }
    keys(host, examined.manager, &mut Check::new("keys", findings));
    event_log(host, &mut Check::new("event-log", findings));
    store(host, &mut Check::new("store", findings));
    if let Some(problem) = &host.audit_problem {
        let remedy =
            "look into it with copies that are kept elsewhere, then `vtpmctl audit accept HASH`";
        Check::new("audit-log", findings).failed(problem, remedy);
    }
    if let Some(metrics) = &examined.manager.metrics {
        vrots(host, metrics, &mut Check::new("vrots", findings));
    }
}

fn unreached(reason: &NotSaid, check: &mut Check<'_>) {
    let found = reason.reason.clone();
    match reason.errno.map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::ECONNREFUSED) => check.failed(
            found,
            "`systemctl start vtpm-managerd`; `journalctl -u vtpm-managerd` says why one does not run",
        ),
        Some(Errno::EACCES) => check.unseen(
            found,
            "look as root, or as a member of the group vrot that `allowed_uids` names",
        ),
        Some(_) => check.failed(found, "`journalctl -u vtpm-managerd` may say more"),
        None => check.unseen(found, "look as root, or as a user that `allowed_uids` names"),
    }
}

fn keys(host: &HostView, said: &ManagerSaid, check: &mut Check<'_>) {
    if host.store.state == OPENING {
        check.unseen("the manager has not asked its TPM yet", AGAIN);
        return;
    }
    if let Some(problem) = &host.tpm_problem {
        let remedy = "it is tried again; look into the kernel's log for the TPM's driver";
        check.failed(
            format!("the physical TPM cannot be used: {problem}"),
            remedy,
        );
    }
    let Some(keys) = &host.keys else {
        if host.tpm_problem.is_none() {
            check.failed(
                "the host has no keys in its physical TPM",
                "`vtpmctl host init --policy-key operator-key.pem.pub`, with the public half of the operator's key",
            );
        }
        return;
    };
    check.ok(format!("identity key {}", keys.ik));
    match &said.policy {
        Ok(policy) if policy.satisfied => check.ok("what the host booted is approved"),
        Ok(policy) => {
            let newest = policy.approvals.last();
            let found = match newest.map(|approval| &approval.differences) {
                None => "the operator has approved no boot of this host".to_owned(),
                Some(differences) if differences.is_empty() => "no approval is in force".to_owned(),
                Some(differences) => {
                    let pcrs = differences
                        .iter()
                        .map(|difference| difference.pcr.to_string());
                    let pcrs: Vec<String> = pcrs.collect();
                    format!(
                        "what the host booted is not what was approved: PCR {}",
                        pcrs.join(", ")
                    )
                }
            };
            check.failed(
                found,
                "if the present boot is as it ought to be: `vtpmctl host policy show --output json` to the \
                 operator, who signs it (`vtpmctl host policy sign`), and `vtpmctl host policy approve FILE`",
            );
        }
        Err(reason) => check.unseen(
            format!("whether the boot is approved: {}", reason.reason),
            "`vtpmctl host policy show`",
        ),
    }
}

fn event_log(host: &HostView, check: &mut Check<'_>) {
    let log = &host.event_log;
    match (&log.problem, &log.unchecked) {
        (Some(problem), _) => check.failed(
            format!("devices refuse every VM of this host: {problem}"),
            "if it is an earlier boot's log, `systemctl restart vtpm-managerd` copies it anew; PCRs that are \
             extended after the boot are left out of `quoted_pcrs`",
        ),
        // Looked at without the manager.
        (None, Some(_)) => {}
        (None, None) => {
            check.ok(format!("`{}` accounts for the quoted PCRs", log.path.display()));
        }
    }
}

fn store(host: &HostView, check: &mut Check<'_>) {
    let store = &host.store;
    let problem = store.problem.clone().unwrap_or_default();
    match store.state.as_str() {
        "open" if store.problem.is_none() => check.ok("the physical TPM vouches for it"),
        "open" => check.failed(
            problem,
            "look at the disk of the state folder and at the physical TPM",
        ),
        OPENING => check.unseen(problem, AGAIN),
        "blank" => check.failed(
            "it is not set up",
            "`vtpmctl host init`, and the operator's approval",
        ),
        "refused" => {
            let code = store.refusal.as_deref().unwrap_or("REFUSAL");
            check.failed(
                problem,
                format!(
                    "put the newest store back if there is one; if not, an operator accepts this one: \
                     `vtpmctl host recover --accept {code}`"
                ),
            );
        }
        state => check.failed(
            format!("{state}: {problem}"),
            "it is tried again every few seconds",
        ),
    }
    if let (Some(age), Some(limit)) = (store.window_age_s, store.window_s)
        && limit > 0
        && age > limit.saturating_mul(2)
    {
        check.failed(
            format!("changes of the last {age} s could be cut off by a loss of power: {limit} s is the limit"),
            "the physical TPM does not take what it is to note in its flash: look into the manager's journal",
        );
    }
    if store.unadopted > 0 {
        check.failed(
            format!("{} backends run without a manager", store.unadopted),
            "open the store: they become durable then",
        );
    }
}

fn vrots(host: &HostView, metrics: &str, check: &mut Check<'_>) {
    if host.store.state != "open" {
        check.unseen(
            "the manager knows its vRoTs once its store is open",
            "look again then",
        );
        return;
    }
    let value = |name: &str| {
        let mut lines = metrics.lines().filter_map(|line| line.split_once(' '));
        let (_, value) = lines.find(|(found, _)| *found == name)?;
        value.parse::<f64>().ok()
    };
    let mut well = true;
    for Expectation {
        metric,
        found,
        remedy,
    } in EXPECTATIONS
    {
        match value(metric) {
            Some(value) if value > 0.0 => check.warning(format!("{value:.0} {found}"), remedy),
            Some(_) => continue,
            None => check.unseen(format!("the manager does not tell `{metric}`"), AGAIN),
        }
        well = false;
    }
    if well {
        check.ok("all are durable, and have their certificates");
    }
}
