//! Answers as people read them. What hosts say is shown on one line each; whoever prints
//! escapes what a terminal would obey.

use std::fmt::Write as _;

use api_types::wire::{IdentityView, TenantVmDetails, TenantVmList, TenantVmView};
use attestation::evidence_set::{SetResult, VmOutcome};
use attestation::{Layer, Verdict};
use cert_chain::{HostName, VmId};
use printable::Printable;

use crate::attestations::{Attestation, SetOutcome};
use crate::error::HostError;
use crate::events::Told;
use crate::tenant::FromHost;
use crate::watching::{FromStream, Happening};

/// The VMs of each host.
pub(crate) fn vms(told: &[FromHost<TenantVmList>]) -> String {
    let mut text = String::new();
    for from in told {
        match &from.answer {
            Ok(list) if list.vms.is_empty() => {
                let _ = writeln!(text, "{}: no VM of yours", from.host);
            }
            Ok(list) => {
                let _ = writeln!(text, "{}:", from.host);
                for vm in &list.vms {
                    let _ = writeln!(text, "  {}", one_line(vm));
                }
            }
            Err(error) => failed(&mut text, &from.host, error),
        }
    }
    text
}

/// One VM, of the hosts that have it.
pub(crate) fn vm(vm: &VmId, told: &[FromHost<Option<TenantVmDetails>>]) -> String {
    let mut text = String::new();
    let mut is_found = false;
    for from in told {
        match &from.answer {
            Ok(None) => {}
            Ok(Some(details)) => {
                is_found = true;
                let _ = writeln!(text, "{}:", from.host);
                let _ = writeln!(text, "  {}", one_line(&details.vm));
                let _ = writeln!(text, "  {:<24}  {}", "vRoT", details.vm.vrot);
                list_keys(&mut text, &details.keys);
            }
            Err(error) => failed(&mut text, &from.host, error),
        }
    }
    if !is_found {
        let _ = writeln!(text, "No host that answered has VM {vm} of yours.");
    }
    text
}

/// Names of keys, and until when they are certified. Keys and certificates themselves are for programs.
fn list_keys(text: &mut String, identity: &IdentityView) {
    let keys = [
        ("identity key (vIK)", Some(&identity.vik)),
        ("TLS key", identity.tls.as_ref()),
        ("endorsement key, RSA", Some(&identity.ek_rsa)),
        ("endorsement key, P-256", Some(&identity.ek_p256)),
    ];
    for (what, key) in keys {
        let Some(key) = key else { continue };
        let end = match &key.not_after {
            Some(end) => format!("certified until {end}"),
            None => "not certified yet".to_owned(),
        };
        let _ = writeln!(text, "  {what:<24}  {}  ({end})", key.name);
    }
    for (what, digest) in [
        ("certified by manager", identity.manager_digest),
        ("beside backend", identity.backend_digest),
    ] {
        let _ = writeln!(text, "  {what:<24}  program with SHA-256 {digest}");
    }
    let _ = writeln!(text, "  Certificates and public keys: --output json");
}

fn one_line(vm: &TenantVmView) -> String {
    let mut text = format!("{}  {:<9}", vm.vm, Printable(&vm.state).to_string());
    let _ = write!(text, "  generation {}", vm.generation);
    if let Some(name) = &vm.name {
        let _ = write!(text, "  {}", Printable(name));
    }
    let mut notes = vec![match &vm.not_after {
        Some(end) => format!("certified until {end}"),
        None => "not certified yet".to_owned(),
    }];
    for (is_so, note) in [
        (vm.degraded, "state not durable yet"),
        (vm.state_loss.is_some(), "state may have been lost"),
        (vm.imported, "its TPM had its life elsewhere before"),
    ] {
        if is_so {
            notes.push(note.to_owned());
        }
    }
    let _ = write!(text, "  ({})", notes.join(", "));
    text
}

/// A line for each VM, with the reasons below it; the last line is `verdict: …`.
pub(crate) fn attestation(told: &Attestation) -> String {
    let mut text = String::new();
    for from in &told.hosts {
        match &from.answer {
            Err(error) => failed(&mut text, &from.host, error),
            Ok(judged) => match &judged.outcome {
                SetOutcome::Nothing => {
                    let _ = writeln!(text, "{}: none of these VMs", from.host);
                }
                SetOutcome::Refused(refusal) => {
                    let why = refusal.to_string();
                    let _ = writeln!(text, "{}:", from.host);
                    let _ = writeln!(
                        text,
                        "  ✗ all evidence is refused: {} ({})\n    What to do: {}.",
                        Printable(&why),
                        refusal.code(),
                        refusal.remedy()
                    );
                }
                SetOutcome::Appraised(results) => {
                    let _ = writeln!(text, "{}:", from.host);
                    results
                        .iter()
                        .for_each(|result| describe(&mut text, result));
                }
            },
        }
    }
    for vm in &told.missing {
        let _ = writeln!(text, "! VM {vm}: no host that answered has it");
    }
    let verdict = told.verdict();
    let verdict = verdict.map_or_else(|| "none: nothing was judged".to_owned(), |v| v.to_string());
    let _ = writeln!(text, "\nverdict: {verdict}");
    text
}

fn describe(text: &mut String, result: &SetResult) {
    for outcome in result.vms() {
        let vm = (outcome.vm()).map_or_else(|| "of no number".to_owned(), |vm| vm.to_string());
        let verdict = outcome.verdict();
        let _ = writeln!(text, "  {} VM {vm}  {verdict}", mark(verdict));
        match outcome {
            VmOutcome::Appraised(result) => {
                for layer in [Layer::Host, Layer::Vm] {
                    for reason in result.layer(layer).reasons() {
                        let (why, code) = (Printable(&reason.text), reason.code);
                        let _ = writeln!(text, "      {layer}: {why} ({code})");
                    }
                }
            }
            VmOutcome::Refused(refused) => {
                let (why, code) = (refused.refusal.explanation(), refused.refusal.code());
                let _ = writeln!(text, "      refused: {} ({code})", Printable(&why));
            }
        }
    }
    for unquoted in result.unquoted() {
        let _ = writeln!(text, "  ! {}", Printable(&unquoted.to_string()));
    }
}

fn mark(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Affirming => "✓",
        Verdict::Warning => "!",
        Verdict::Contraindicated => "✗",
    }
}

fn failed(text: &mut String, host: &HostName, error: &HostError) {
    let why = error.explanation();
    let _ = writeln!(text, "{host}: no answer: {}", Printable(&why));
}

/// What a stream told, on one line.
pub(crate) fn happening(from: &FromStream) -> String {
    let host = &from.host;
    let event = match &from.what {
        Happening::Told(Told::Following) => return format!("--- {host}: following"),
        Happening::Told(Told::Restarted { after }) => {
            return format!(
                "--- {host}: the manager was started again: what happened between event {after} and its end \
                 is not told"
            );
        }
        Happening::Told(Told::Missed { from, to }) => {
            return format!("--- {host}: events {from} to {to} were missed");
        }
        Happening::Lost(error) => return format!("--- {host}: {}: waiting …", error.explanation()),
        Happening::Ended => {
            return format!(
                "--- {host}: the manager has ended the stream: it ends, or your certificate does not count \
                 any more: waiting …"
            );
        }
        Happening::Told(Told::Event(event)) => event,
    };
    let mut text = format!("{}  {host}  {:<18}", event.at, event.kind.name());
    if let Some(vm) = &event.vm {
        let _ = write!(text, "  VM {vm}");
    }
    if !event.details.is_empty() {
        let _ = write!(text, "  ({})", event.details);
    }
    text.trim_end().to_owned()
}
