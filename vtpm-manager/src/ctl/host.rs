//! Commands about the host.

use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use cert_chain::enrolment::{Answer, Certificate, Challenge, Message, Request};
use cert_chain::policy::PcrValues;

use super::arguments::{HostCommand, PolicyCommand};
use super::client::Client;
use super::issuer::message;
use super::output::{Output, Table};
use super::{CtlError, read, write};
use crate::anchor::{Approval, PolicyKey};
use crate::api::wire::{
    AuditView, EnrolmentRequest, HostView, InitRequest, PolicyView, RecoverRequest, RecoveryView,
};
use crate::audit;
use crate::causes::WithCauses;
use crate::issuer::IssuerFolder;

const REQUEST: &str = "/v1/host/enrolment/request";
const ANSWER: &str = "/v1/host/enrolment/answer";
const CERTIFICATE: &str = "/v1/host/enrolment/certificate";
const RECOVER: &str = "/v1/host/recover";
const POLICY: &str = "/v1/host/policy";
const APPROVALS: &str = "/v1/host/policy/approvals";
/// Where `host init` keeps a key for a trial, in the manager's state folder.
const TRIAL_KEY: &str = "policy-key.pem";

pub(super) fn run(command: &HostCommand, client: &Client, output: &Output) -> Result<(), CtlError> {
    match command {
        HostCommand::Init { policy_key } => init(policy_key.as_deref(), client, output),
        HostCommand::Show => {
            let host: HostView = client.get("/v1/host")?;
            output.result(&host, || describe(&host));
            Ok(())
        }
        HostCommand::Enrol { name, issuer } => enrol(name, issuer, client, output),
        HostCommand::Request { name, out } => {
            let body = EnrolmentRequest { name: name.clone() };
            let request: Vec<u8> = client.post_message(REQUEST, json(&body)?)?;
            write(out, &request)?;
            say_written(output, "take this to the issuer", out);
            Ok(())
        }
        HostCommand::Answer { challenge, out } => {
            let challenge: Challenge = message(challenge)?;
            write(out, &client.post_message(ANSWER, challenge.to_json())?)?;
            say_written(output, "take this to the issuer", out);
            Ok(())
        }
        HostCommand::Install { certificate } => {
            let certificate: Certificate = message(certificate)?;
            let host: HostView = parse(&client.post_message(CERTIFICATE, certificate.to_json())?)?;
            output.result(&host, || describe(&host));
            Ok(())
        }
        HostCommand::Recover { accept, yes } => {
            if !yes {
                confirm(accept, client, output)?;
            }
            recover(accept, client, output)
        }
        HostCommand::Policy { command } => policy(command, client, output),
    }
}

/// Keys, and the first approval. A host that was approved before is not approved again.
fn init(policy_key: Option<&Path>, client: &Client, output: &Output) -> Result<(), CtlError> {
    let before: HostView = client.get("/v1/host")?;
    let path = policy_key.map_or_else(|| before.state_dir.join(TRIAL_KEY), Path::to_owned);
    let key = if path.exists() {
        PolicyKey::load(&path)?
    } else {
        make_key(&path)?
    };
    if policy_key.is_none() {
        output.warn(&format!(
            "the operator's key is on this host, in `{}`: whoever rules the host can approve what \
             it boots. For more than a trial, make one elsewhere (`vtpmctl host policy keygen`)",
            path.display()
        ));
    }
    output.progress("making the host's keys in the physical TPM");
    let request = InitRequest {
        policy_key: hex::encode(key.public().as_bytes()),
    };
    let mut host: HostView = client.post("/v1/host/init", &request)?;
    let policy: PolicyView = client.get(POLICY)?;
    if policy.approvals.is_empty() {
        output.progress("approving what the host booted");
        let approval = key.approve("present values at host init", policy.pcrs)?;
        client.post_message(APPROVALS, approval.to_json())?;
        // The approval is what opens the store.
        host = client.get("/v1/host")?;
    } else if !policy.satisfied {
        return Err(CtlError::PolicyNotSatisfied);
    }
    output.result(&host, || describe(&host));
    Ok(())
}

fn enrol(name: &str, folder: &Path, client: &Client, output: &Output) -> Result<(), CtlError> {
    let issuer = IssuerFolder::open(folder)?;
    let understood = |error: cert_chain::enrolment::MessageError| CtlError::Response(error.into());
    output.progress("1/4 request: endorsement key, its certificate, identity key");
    let body = EnrolmentRequest {
        name: name.to_owned(),
    };
    let request = client.post_message(REQUEST, json(&body)?)?;
    let request = Request::from_json(&request).map_err(understood)?;
    output.progress("2/4 challenge: a secret that only a TPM with both keys can read");
    let (challenge, _) = issuer.challenge(&request)?;
    output.progress("3/4 answer: the TPM activates the credential");
    let answer = client.post_message(ANSWER, challenge.to_json())?;
    let answer = Answer::from_json(&answer).map_err(understood)?;
    output.progress("4/4 certificate");
    let certificate = issuer.certify(&answer)?;
    let host: HostView = parse(&client.post_message(CERTIFICATE, certificate.to_json())?)?;
    output.result(&host, || describe(&host));
    Ok(())
}

/// Says what was found, and has the operator repeat its name.
fn confirm(accept: &str, client: &Client, output: &Output) -> Result<(), CtlError> {
    if !io::stdin().is_terminal() {
        return Err(CtlError::Argument(
            "this is no terminal, so nobody can be asked: add --yes".to_owned(),
        ));
    }
    let host: HostView = client.get("/v1/host")?;
    if let Some(problem) = &host.store.problem {
        output.warn(problem);
    }
    output.warn("what a newer store held is given up, and verifiers will see a new generation");
    output.ask(&format!("type `{accept}` to accept the present store"));
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    if read.is_ok() && answer.trim() == accept {
        Ok(())
    } else {
        Err(CtlError::Argument(
            "not confirmed: nothing was changed".to_owned(),
        ))
    }
}

fn recover(accept: &str, client: &Client, output: &Output) -> Result<(), CtlError> {
    let request = RecoverRequest {
        accept: accept.to_owned(),
    };
    let recovery: RecoveryView = client.post(RECOVER, &request)?;
    output.result(&recovery, || {
        let mut table = Table::default();
        table.row(["accepted", &recovery.accepted]);
        table.row(["batch", &recovery.batch.to_string()]);
        table.row(["new generation", &recovery.generation.to_string()]);
        for (what, vrots) in [
            ("raised to it", &recovery.raised),
            ("deleted again", &recovery.discarded),
            ("lost", &recovery.lost),
        ] {
            for vrot in vrots {
                table.row([what, &vrot.to_string()]);
            }
        }
        table.render()
    });
    Ok(())
}

fn policy(command: &PolicyCommand, client: &Client, output: &Output) -> Result<(), CtlError> {
    match command {
        PolicyCommand::Keygen { out } => {
            let key = make_key(out)?;
            let made = serde_json::json!({ "policy_key": key.public().name(), "file": out });
            output.result(&made, || {
                format!("operator's key {}\n{}", key.public().name(), out.display())
            });
        }
        PolicyCommand::Show => {
            let policy: PolicyView = client.get(POLICY)?;
            output.result(&policy, || describe_policy(&policy));
        }
        PolicyCommand::Sign {
            policy_key,
            label,
            pcrs,
            out,
        } => {
            let key = PolicyKey::load(policy_key)?;
            let values: PcrValues = match pcrs {
                Some(path) => {
                    serde_json::from_slice(&read(path)?).map_err(|error| CtlError::Input {
                        path: path.clone(),
                        source: error.into(),
                    })?
                }
                None => client.get::<PolicyView>(POLICY)?.pcrs,
            };
            let approval = key.approve(label, values)?;
            match out {
                Some(out) => {
                    write(out, approval.to_json().as_bytes())?;
                    say_written(
                        output,
                        "hand it over with `vtpmctl host policy approve`",
                        out,
                    );
                }
                None => approve(&approval, client, output)?,
            }
        }
        PolicyCommand::Approve { approval } => {
            let parsed =
                Approval::from_json(&read(approval)?).map_err(|error| CtlError::Input {
                    path: approval.clone(),
                    source: error.into(),
                })?;
            approve(&parsed, client, output)?;
        }
    }
    Ok(())
}

fn approve(approval: &Approval, client: &Client, output: &Output) -> Result<(), CtlError> {
    let policy: PolicyView = parse(&client.post_message(APPROVALS, approval.to_json())?)?;
    output.result(&policy, || describe_policy(&policy));
    Ok(())
}

/// Verifies a log: the given file, or the manager's own by the manager itself.
pub(super) fn verify_audit_log(
    log: Option<&Path>,
    client: &Client,
    output: &Output,
) -> Result<(), CtlError> {
    let view = match log {
        None => client.get("/v1/audit")?,
        Some(path) => {
            let checked = audit::verify(path);
            if let Err(audit::AuditError::File { source, .. }) = checked {
                return Err(CtlError::File {
                    path: path.to_owned(),
                    action: "read",
                    source,
                });
            }
            let (end, problem) = match checked {
                Ok(end) => (Some(end), None),
                Err(error) => (None, Some(WithCauses(&error).to_string())),
            };
            AuditView {
                log: path.to_owned(),
                entries: end.map_or(0, |end| end.entries),
                head: end.map_or(cert_chain::Digest32::new([0; 32]), |end| end.head),
                intact: problem.is_none(),
                problem,
            }
        }
    };
    match &view.problem {
        None => {
            output.result(&view, || {
                format!(
                    "{}: {} lines, unaltered\nnewest hash {}",
                    view.log.display(),
                    view.entries,
                    view.head
                )
            });
            Ok(())
        }
        Some(problem) => Err(CtlError::LogAltered {
            problem: problem.clone(),
        }),
    }
}

/// Makes a key in a file that only its owner can read, and that is not there yet.
fn make_key(path: &Path) -> Result<PolicyKey, CtlError> {
    let key = PolicyKey::generate()?;
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| {
            file.write_all(key.to_pem().as_bytes())?;
            file.sync_all()
        });
    written.map_err(|source| CtlError::File {
        path: path.to_owned(),
        action: "made",
        source,
    })?;
    Ok(key)
}

fn describe(host: &HostView) -> String {
    let mut table = Table::default();
    table.row(["physical TPM", &host.tpm]);
    match &host.keys {
        None => table.row(["keys", "none yet: run `vtpmctl host init`"]),
        Some(keys) => {
            table.row(["endorsement key", &keys.ek.to_string()]);
            table.row(["identity key (IK)", &keys.ik.to_string()]);
            table.row(["operator's key", &keys.policy_key.to_string()]);
        }
    }
    let isolation = match host.isolation.as_str() {
        "shared-user" => {
            "DEGRADED: all backends run as the manager's user (its capabilities are missing)"
        }
        other => other,
    };
    table.row(["isolation of backends", isolation]);
    table.row(["store", &host.store.state]);
    if let Some(problem) = &host.store.problem {
        table.row(["", problem]);
    }
    if let (Some(batches), Some(window)) = (host.store.uncovered_batches, host.store.window_s) {
        let text = format!("{batches} batches, younger than {window} s");
        table.row(["loss of power may cut off", &text]);
    }
    match &host.enrolment {
        None => table.row(["certificate", "none yet: run `vtpmctl host enrol`"]),
        Some(enrolment) => {
            table.row(["host", &enrolment.host.to_string()]);
            table.row(["certified by", &enrolment.issuer]);
            table.row(["valid until", &enrolment.not_after.to_string()]);
        }
    }
    table.render()
}

fn describe_policy(policy: &PolicyView) -> String {
    let mut table = Table::default();
    table.row(["operator's key", &policy.policy_key.to_string()]);
    for object in &policy.objects {
        table.row(["bound to it", object]);
    }
    for (pcr, value) in &policy.pcrs {
        table.row([format!("PCR {pcr} now"), value.to_string()]);
    }
    let state = if policy.satisfied {
        "approved"
    } else {
        "NOT APPROVED: keys cannot be used; `vtpmctl host policy sign` approves the present values"
    };
    table.row(["state", state]);
    for approval in &policy.approvals {
        let differences: Vec<String> = approval
            .differences
            .iter()
            .map(|difference| match difference.approved {
                Some(approved) => format!("PCR {} is approved as {approved}", difference.pcr),
                None => format!("PCR {} is not covered", difference.pcr),
            })
            .collect();
        let text = if differences.is_empty() {
            format!("\"{}\": in force", approval.label)
        } else {
            format!("\"{}\": {}", approval.label, differences.join("; "))
        };
        table.row(["approval", &text]);
    }
    table.render()
}

fn say_written(output: &Output, what_next: &str, file: &PathBuf) {
    let written = serde_json::json!({ "file": file });
    output.result(&written, || format!("{}\n{what_next}", file.display()));
}

fn json(body: &impl serde::Serialize) -> Result<Vec<u8>, CtlError> {
    serde_json::to_vec(body).map_err(|error| CtlError::Response(error.into()))
}

fn parse<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T, CtlError> {
    serde_json::from_slice(json).map_err(|error| CtlError::Response(error.into()))
}
