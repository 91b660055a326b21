//! Commands of the identity issuer.

use std::path::Path;

use cert_chain::enrolment::{Message, MessageError};

use super::arguments::IssuerCommand;
use super::output::{Output, Table};
use super::{CtlError, read, write};
use crate::issuer::IssuerFolder;

pub(super) fn run(command: &IssuerCommand, output: &Output) -> Result<(), CtlError> {
    match command {
        IssuerCommand::Init {
            directory,
            domain,
            tpm_roots,
        } => {
            let issuer = IssuerFolder::init(directory, domain.clone(), tpm_roots)?;
            let root = issuer.root();
            let made = serde_json::json!({ "domain": issuer.domain(), "root": root });
            output.result(&made, || {
                format!(
                    "issuer for hosts in {}\nverifiers trust {}",
                    issuer.domain(),
                    root.display()
                )
            });
        }
        IssuerCommand::Challenge {
            directory,
            request,
            out,
        } => {
            let request = message(request)?;
            let (challenge, pending) = IssuerFolder::open(directory)?.challenge(&request)?;
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
            });
        }
        IssuerCommand::Certify {
            directory,
            answer,
            out,
        } => {
            let answer = message(answer)?;
            let certificate = IssuerFolder::open(directory)?.certify(&answer)?;
            write(out, certificate.to_json().as_bytes())?;
            let made = serde_json::json!({ "host": certificate.host, "certificate": out });
            output.result(&made, || {
                format!("certified {}: {}", certificate.host, out.display())
            });
        }
    }
    Ok(())
}

/// Reads a message of an enrolment from a file.
pub(super) fn message<M: Message>(path: &Path) -> Result<M, CtlError> {
    M::from_json(&read(path)?).map_err(|source: MessageError| CtlError::Input {
        path: path.to_owned(),
        source: source.into(),
    })
}
