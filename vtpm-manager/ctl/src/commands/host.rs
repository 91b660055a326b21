//! Commands about the host.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use api_types::Timestamp;
use api_types::wire::{
    EnrolmentRequest, HostView, InitRequest, LogView, PolicyView, RecoverRequest, RecoveryView,
};
use cert_chain::enrolment::{Answer, Certificate, Challenge, Message, Request};
use cert_chain::operator::PolicyKey;

use crate::arguments::{HostCommand, InitArguments};
use crate::client::{Client, HOST, parse, store_is_not_refused};
use crate::error::CtlError;
use crate::files::{read_message, write};
use crate::issuer::{IssuerFolder, OperatorKeyChange};
use crate::output::{Output, Table};

use super::policy;

const REQUEST: &str = "/v1/host/enrolment/request";
const ANSWER: &str = "/v1/host/enrolment/answer";
const CERTIFICATE: &str = "/v1/host/enrolment/certificate";
const RECOVER: &str = "/v1/host/recover";
/// Where `host init` keeps a key for a trial, in the manager's state folder.
const TRIAL_KEY: &str = "policy-key.pem";

pub(crate) fn run(command: &HostCommand, client: &Client, output: &Output) -> Result<(), CtlError> {
    match command {
        HostCommand::Init(arguments) => init(arguments, client, output),
        HostCommand::Show => {
            let host: HostView = client.get(HOST)?;
            output.result(&host, || describe(&host))?;
            Ok(())
        }
        HostCommand::Enrol {
            name,
            issuer,
            change,
        } => enrol(name, issuer, change.change(), client, output),
        HostCommand::Request { name, out } => {
            let body = EnrolmentRequest { name: name.clone() };
            let request: Vec<u8> = client.post_message(REQUEST, json(&body)?)?;
            write(out, &request)?;
            say_written(output, "take this to the issuer", out)
        }
        HostCommand::Answer { challenge, out } => {
            let challenge: Challenge = read_message(challenge)?;
            write(out, &client.post_message(ANSWER, challenge.to_json())?)?;
            say_written(output, "take this to the issuer", out)
        }
        HostCommand::Install { certificate } => {
            let certificate: Certificate = read_message(certificate)?;
            let host: HostView = parse(&client.post_message(CERTIFICATE, certificate.to_json())?)?;
            output.result(&host, || describe(&host))?;
            Ok(())
        }
        HostCommand::Recover { accept, yes } => {
            if !yes {
                confirm(accept, client, output)?;
            }
            recover(accept, client, output)
        }
        HostCommand::Policy { command } => policy::run(command, client, output),
    }
}

/// Makes the host's keys. A host that was approved before needs no other approval.
fn init(arguments: &InitArguments, client: &Client, output: &Output) -> Result<(), CtlError> {
    let (public, trial) = match &arguments.policy_key {
        Some(path) => (policy::read_public_key(path)?, None),
        None => {
            let key = trial_key(client, output)?;
            (key.public().clone(), Some(key))
        }
    };
    output.progress("making the host's keys in the physical TPM");
    let request = InitRequest {
        policy_key: hex::encode(public.as_bytes()),
    };
    let mut host: HostView = client.post("/v1/host/init", &request)?;
    let policy: PolicyView = client.get(policy::POLICY)?;
    let waits = policy.approvals.is_empty();
    if let Some(key) = trial.filter(|_| waits) {
        output.progress("approving what the host booted");
        let values = policy
            .values()
            .map_err(|error| CtlError::Response(error.into()))?;
        let approval = key.approve("present values at host init", values)?;
        client.post_message(policy::APPROVALS, approval.to_json())?;
        // The approval is what opens the store.
        host = client.get(HOST)?;
    } else if !waits && !policy.satisfied {
        return Err(CtlError::PolicyNotSatisfied);
    }
    output.result(&host, || describe(&host))?;
    if let Some(path) = arguments.policy_key.as_ref().filter(|_| waits) {
        output.next(&policy::how_to_approve(client, path));
    }
    store_is_not_refused(&host)
}

/// The operator's key of a host that is on trial; it is made the first time.
fn trial_key(client: &Client, output: &Output) -> Result<PolicyKey, CtlError> {
    let host: HostView = client.get(HOST)?;
    let path = host.state_dir.join(TRIAL_KEY);
    output.warn(&format!(
        "the operator's key is on this host, in `{}`: whoever rules the host can approve what \
         it boots. For more than a trial, make one elsewhere (`vtpmctl host policy keygen`)",
        path.display()
    ));
    if path.exists() {
        policy::read_key(&path)
    } else {
        policy::make_key(&path)
    }
}

fn enrol(
    name: &str,
    folder: &Path,
    change: OperatorKeyChange,
    client: &Client,
    output: &Output,
) -> Result<(), CtlError> {
    let issuer = IssuerFolder::open(folder)?;
    let understood = |error: cert_chain::enrolment::MessageError| CtlError::Response(error.into());
    output.progress("1/4 request: endorsement key, its certificate, identity key");
    let body = EnrolmentRequest {
        name: name.to_owned(),
    };
    let request = client.post_message(REQUEST, json(&body)?)?;
    let request = Request::from_json(&request).map_err(understood)?;
    output.progress("2/4 challenge: a secret that only a TPM with both keys can read");
    let (challenge, _) = issuer.challenge(&request, change)?;
    output.progress("3/4 answer: the TPM activates the credential");
    let answer = client.post_message(ANSWER, challenge.to_json())?;
    let answer = Answer::from_json(&answer).map_err(understood)?;
    output.progress("4/4 certificate");
    let certificate = issuer.certify(&answer)?;
    let host: HostView = parse(&client.post_message(CERTIFICATE, certificate.to_json())?)?;
    output.result(&host, || describe(&host))?;
    Ok(())
}

/// Says what was found, and has the operator repeat its name.
fn confirm(accept: &str, client: &Client, output: &Output) -> Result<(), CtlError> {
    if !io::stdin().is_terminal() {
        return Err(CtlError::Argument(
            "this is no terminal, so nobody can be asked: add --yes".to_owned(),
        ));
    }
    let host: HostView = client.get(HOST)?;
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
    })?;
    Ok(())
}

fn describe(host: &HostView) -> String {
    let mut table = Table::default();
    table.row(["physical TPM", &host.tpm]);
    if let Some(problem) = &host.tpm_problem {
        table.row(["", problem]);
    }
    match &host.keys {
        None if host.tpm_problem.is_some() => table.row(["keys", "not known at the moment"]),
        None => table.row(["keys", "none yet: run `vtpmctl host init`"]),
        Some(keys) => {
            table.row(["endorsement key", &keys.ek.to_string()]);
            table.row(["identity key (IK)", &keys.ik.to_string()]);
            table.row(["operator's key", &keys.policy_key.to_string()]);
        }
    }
    match (&host.event_log.problem, &host.event_log.unchecked) {
        (None, Some(unchecked)) => {
            let path = host.event_log.path.display();
            table.row(["event log", &format!("{path}, unchecked: {unchecked}")]);
        }
        (None, None) => table.row(["event log", &host.event_log.path.display().to_string()]),
        (Some(problem), _) => table.row(["event log", &format!("VMS ARE REFUSED: {problem}")]),
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
    if host.store.unadopted > 0 {
        let (all, degraded) = (host.store.unadopted, host.store.unadopted_degraded);
        let text = format!("{all} backends, {degraded} of them degraded");
        table.row(["running without a manager", &text]);
    }
    if let (Some(batches), Some(window)) = (host.store.uncovered_batches, host.store.window_s) {
        let text = format!("{batches} batches, younger than {window} s");
        table.row(["loss of power may cut off", &text]);
    }
    if let Some(loss) = &host.store.power_loss {
        let text = format!(
            "the last {} s, before batch {} of {}",
            loss.window_s,
            loss.batch,
            Timestamp::new(loss.time)
        );
        table.row(["and may have, last", &text]);
    }
    if let Some(fault) = &host.last_fault {
        let text = format!("of its own, at {} ({}): report it", fault.time, fault.place);
        table.row(["the last manager ended by a fault", &text]);
    }
    if let Some(problem) = &host.audit_problem {
        table.row(["audit log", &format!("ALTERED: {problem}")]);
    }
    if host.log != LogView::default() {
        let LogView { lost, left_out } = host.log;
        let text = format!("{lost} lines could not be written, {left_out} were too many of a kind");
        table.row(["missing from the log", &text]);
    }
    match &host.enrolment {
        None if host.store.state == "opening" => {
            table.row(["certificate", "not known at the moment"]);
        }
        None => table.row(["certificate", "none yet: run `vtpmctl host enrol`"]),
        Some(enrolment) => {
            table.row(["host", &enrolment.host.to_string()]);
            table.row(["certified by", &enrolment.issuer]);
            table.row(["valid until", &enrolment.not_after.to_string()]);
        }
    }
    table.render()
}

pub(crate) fn say_written(
    output: &Output,
    what_next: &str,
    file: &PathBuf,
) -> Result<(), CtlError> {
    let written = serde_json::json!({ "file": file });
    output.result(&written, || format!("{}\n{what_next}", file.display()))
}

fn json(body: &impl serde::Serialize) -> Result<Vec<u8>, CtlError> {
    serde_json::to_vec(body).map_err(|error| CtlError::Response(error.into()))
}
