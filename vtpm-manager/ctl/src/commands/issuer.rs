//! Commands of the identity issuer.

use std::path::Path;

use cert_chain::TpmName;
use cert_chain::enrolment::{Answer, Certificate, Message, MessageError, device};
use cert_chain::operator::PolicyKeyPublic;

use super::{revocation, tenants};
use crate::arguments::{IssuerCommand, OperatorKeyCommand};
use crate::error::CtlError;
use crate::files::{Destination, not_needed, read, read_message, write};
use crate::issuer::IssuerFolder;
use crate::output::{Output, Table};

pub(crate) fn run(command: &IssuerCommand, output: &Output) -> Result<(), CtlError> {
    match command {
        IssuerCommand::Init {
            directory,
            domain,
            tpm_roots,
            operator_keys,
        } => {
            let issuer = IssuerFolder::init(directory, domain.clone(), tpm_roots, operator_keys)?;
            let root = issuer.root();
            let made = serde_json::json!({
                "domain": issuer.domain(),
                "root": root,
                "operator_keys": names(&issuer),
            });
            output.result(&made, || {
                let mut table = Table::default();
                table.row(["issuer for hosts in", issuer.domain().as_str()]);
                table.row(["verifiers trust", &root.display().to_string()]);
                for name in names(&issuer) {
                    table.row(["operator's key", &name.to_string()]);
                }
                table.render()
            })?;
            if issuer.operator_keys().is_empty() {
                output.warn(
                    "no operator key is accepted, so no host is certified yet: name them with \
                     `vtpmctl issuer operator-key add`",
                );
            }
        }
        IssuerCommand::OperatorKey { command } => operator_key(command, output)?,
        IssuerCommand::Tenant { command } => tenants::run(command, output)?,
        IssuerCommand::Revoke(arguments) => revocation::revoke(arguments, output)?,
        IssuerCommand::Crl(arguments) => revocation::crl(arguments, output)?,
        IssuerCommand::Certificates { directory } => revocation::list(directory, output)?,
        IssuerCommand::Challenge {
            directory,
            request,
            device: None,
            out,
            change,
        } => {
            let request = read_message(request)?;
            let (challenge, pending) =
                IssuerFolder::open(directory)?.challenge(&request, change.change())?;
            write(out, challenge.to_json().as_bytes())?;
            let made = serde_json::json!({
                "enrolment": pending.enrolment(),
                "host": pending.host(),
                "ek": pending.ek(),
                "maker": pending.maker(),
                "policy_key": pending.policy_key(),
                "challenge": out,
            });
            output.result(&made, || {
                let mut table = Table::default();
                table.row(["host", &pending.host().to_string()]);
                table.row(["TPM's EK", &pending.ek().to_string()]);
                table.row(["certified by", pending.maker()]);
                table.row(["operator's key", &pending.policy_key().to_string()]);
                table.row(["challenge", &out.display().to_string()]);
                table.render()
            })?;
        }
        IssuerCommand::Challenge {
            directory,
            request,
            device: Some(device),
            out,
            ..
        } => {
            let request = read_message(request)?;
            let (challenge, pending) =
                IssuerFolder::open(directory)?.challenge_device(&request, device)?;
            write(out, challenge.to_json().as_bytes())?;
            let made = serde_json::json!({
                "enrolment": pending.enrolment(),
                "device": pending.device(),
                "ek": pending.ek(),
                "maker": pending.maker(),
                "challenge": out,
            });
            output.result(&made, || {
                let mut table = Table::default();
                table.row(["device", &pending.device().to_string()]);
                table.row(["TPM's EK", &pending.ek().to_string()]);
                table.row(["certified by", pending.maker()]);
                table.row(["challenge", &out.display().to_string()]);
                table.render()
            })?;
        }
        IssuerCommand::Certify {
            directory,
            answer,
            out,
        } => match read_either(answer)? {
            Either::Host(answer) => {
                let place = Destination::for_message::<Certificate>(out)?;
                let certificate = IssuerFolder::open(directory)?.certify(&answer)?;
                place.write(certificate.to_json().as_bytes())?;
                let made = serde_json::json!({ "host": certificate.host, "certificate": out });
                output.result(&made, || {
                    format!("certified {}: {}", certificate.host, out.display())
                })?;
            }
            Either::Device(answer) => {
                let place = Destination::for_message::<device::Certificate>(out)?;
                let certificate = IssuerFolder::open(directory)?.certify_device(&answer)?;
                place.write(certificate.to_json().as_bytes())?;
                let made = serde_json::json!({ "device": certificate.device, "certificate": out });
                output.result(&made, || {
                    format!("certified {}: {}", certificate.device, out.display())
                })?;
            }
        },
    }
    Ok(())
}

/// Whose message it is, its type says.
fn read_either(answer: &Path) -> Result<Either, CtlError> {
    let bytes = read(answer)?;
    let host = match Answer::from_json(&bytes) {
        Err(MessageError::Type { found, .. }) if found == device::Answer::TYPE => {
            device::Answer::from_json(&bytes).map(Either::Device)
        }
        host => host.map(Either::Host),
    };
    host.map_err(|error| not_needed(answer, error.into()))
}

/// An answer to a challenge.
enum Either {
    Host(Answer),
    Device(device::Answer),
}

fn operator_key(command: &OperatorKeyCommand, output: &Output) -> Result<(), CtlError> {
    let issuer = match command {
        OperatorKeyCommand::Add { directory, keys } => {
            let mut issuer = IssuerFolder::open(directory)?;
            issuer.add_operator_keys(keys)?;
            issuer
        }
        OperatorKeyCommand::List { directory } => IssuerFolder::open(directory)?,
        OperatorKeyCommand::Remove {
            directory,
            operator_key,
        } => {
            let mut issuer = IssuerFolder::open(directory)?;
            issuer.remove_operator_key(operator_key)?;
            issuer
        }
    };
    let names = names(&issuer);
    let accepted = serde_json::json!({ "operator_keys": names });
    output.result(&accepted, || {
        if names.is_empty() {
            return "no operator key is accepted, so no host is certified".to_owned();
        }
        let lines: Vec<String> = names.iter().map(ToString::to_string).collect();
        lines.join("\n")
    })?;
    Ok(())
}

fn names(issuer: &IssuerFolder) -> Vec<TpmName> {
    issuer
        .operator_keys()
        .iter()
        .map(PolicyKeyPublic::name)
        .collect()
}
