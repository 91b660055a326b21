//! The operator's part: keys, and approvals of what hosts boot.
//!
//! The operator's private key is read by `host policy sign` alone, on the operator's machine. The
//! host gets the public half and approvals.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use api_types::DEFAULT_SOCKET;
use api_types::wire::{HostView, PolicyView};
use cert_chain::json_texts::read_strictly;
use cert_chain::operator::{Approval, InsufficientPcrs, PolicyKey, PolicyKeyPublic};
use cert_chain::{HashAlgorithm, PcrValues};

use crate::arguments::{PolicyCommand, SignArguments};
use crate::client::{Client, HOST, parse, store_is_not_refused};
use crate::error::CtlError;
use crate::files::{make, not_needed, read, read_secret_text, write};
use crate::output::{Output, Table};

pub(crate) const POLICY: &str = "/v1/host/policy";
pub(crate) const APPROVALS: &str = "/v1/host/policy/approvals";
/// Ending of the file with a key's public half.
const PUBLIC: &str = ".pub";

pub(crate) fn run(
    command: &PolicyCommand,
    client: &Client,
    output: &Output,
) -> Result<(), CtlError> {
    match command {
        PolicyCommand::Keygen { out, public } => {
            let public = match public {
                Some(path) => path.clone(),
                None => PathBuf::from(format!("{}{PUBLIC}", out.display())),
            };
            keygen(out, &public, output)
        }
        PolicyCommand::Show => {
            let policy: PolicyView = client.get(POLICY)?;
            output.result(&policy, || describe(&policy))?;
            Ok(())
        }
        PolicyCommand::Sign(arguments) => sign(arguments, client, output),
        PolicyCommand::Approve { approval } => {
            let parsed = Approval::from_json(&read(approval)?)
                .map_err(|error| not_needed(approval, error.into()))?;
            approve(&parsed, client, output)
        }
    }
}

fn keygen(out: &Path, public: &Path, output: &Output) -> Result<(), CtlError> {
    // Before there is a private key without its public half.
    if public.exists() {
        return Err(CtlError::File {
            path: public.to_owned(),
            action: "made",
            source: std::io::ErrorKind::AlreadyExists.into(),
        });
    }
    let key = make_key(out)?;
    make(public, key.public().to_pem().as_bytes(), 0o644)?;
    let name = key.public().name();
    let result = serde_json::json!({ "policy_key": name, "file": out, "public": public });
    output.result(&result, || {
        let mut table = Table::default();
        table.row(["operator's key", &name.to_string()]);
        table.row(["private, stays here", &out.display().to_string()]);
        table.row([
            "public, for hosts and issuers",
            &public.display().to_string(),
        ]);
        table.render()
    })?;
    Ok(())
}

fn sign(arguments: &SignArguments, client: &Client, output: &Output) -> Result<(), CtlError> {
    let key = read_key(&arguments.key)?;
    let values = match &arguments.values.pcrs {
        Some(path) => values_in(path)?,
        None => client
            .get::<PolicyView>(POLICY)?
            .values()
            .map_err(|error| CtlError::Response(error.into()))?,
    };
    sufficient(&values, arguments, output)?;
    let approval = key.approve(&arguments.label, values)?;
    let Some(out) = &arguments.destination.out else {
        return approve(&approval, client, output);
    };
    write(out, approval.to_json().as_bytes())?;
    let result = serde_json::json!({
        "file": out,
        "bank": approval.pcrs.bank(),
        "pcrs": approval.pcrs.to_hex(),
    });
    output.result(&result, || {
        let mut table = Table::default();
        table.row(["operator's key", &approval.policy_key.to_string()]);
        let bank = approval.pcrs.bank();
        for (pcr, value) in approval.pcrs.iter() {
            table.row([format!("PCR {pcr} ({bank})"), value.to_string()]);
        }
        table.row(["approval", &out.display().to_string()]);
        table.render()
    })?;
    output.next(&format!(
        "on the host:  vtpmctl host policy approve {}",
        out.display()
    ));
    Ok(())
}

/// Whether the values say what the host booted, by what the key's owner requires.
fn sufficient(
    values: &PcrValues,
    arguments: &SignArguments,
    output: &Output,
) -> Result<(), CtlError> {
    let refused = |error: InsufficientPcrs| match &arguments.values.pcrs {
        Some(path) => not_needed(path, error.into()),
        None => CtlError::Argument(error.to_string()),
    };
    arguments.require_pcrs.check(values).map_err(refused)?;
    match arguments.require_pcrs.unextended(values) {
        None => Ok(()),
        // A host that has the key at hand is on trial: it may have no firmware at all.
        Some(found) if arguments.accept_unextended || arguments.values.from_host => {
            output.warn(&found.to_string());
            Ok(())
        }
        Some(found) => Err(refused(found)),
    }
}

fn approve(approval: &Approval, client: &Client, output: &Output) -> Result<(), CtlError> {
    let policy: PolicyView = parse(&client.post_message(APPROVALS, approval.to_json())?)?;
    output.result(&policy, || describe(&policy))?;
    store_is_not_refused(&client.get::<HostView>(HOST)?)
}

/// What a host whose operator is elsewhere waits for.
pub(crate) fn how_to_approve(client: &Client, public_key: &Path) -> String {
    let name = public_key.file_name().unwrap_or_default().to_string_lossy();
    let private = name.strip_suffix(PUBLIC).unwrap_or("KEY");
    let mut vtpmctl = "vtpmctl".to_owned();
    if client.socket() != Path::new(DEFAULT_SOCKET) {
        vtpmctl.push_str(&format!(" --socket {}", client.socket().display()));
    }
    format!(
        "This host waits for its operator: until what it booted is approved, its keys cannot be \
         used.\n\
         on this host               {vtpmctl} host policy show --output json > host-pcrs.json\n\
         where the private key is   vtpmctl host policy sign --key {private} --pcrs host-pcrs.json \
         --out approval.json\n\
         on this host               {vtpmctl} host policy approve approval.json"
    )
}

/// Reads a private key; it is never made in place of a missing one.
pub(crate) fn read_key(path: &Path) -> Result<PolicyKey, CtlError> {
    PolicyKey::from_pem(&read_secret_text(path)?).map_err(|error| not_needed(path, error.into()))
}

/// Reads a public key.
pub(crate) fn read_public_key(path: &Path) -> Result<PolicyKeyPublic, CtlError> {
    PolicyKeyPublic::from_pem(&read_secret_text(path)?)
        .map_err(|error| not_needed(path, error.into()))
}

/// Makes a key in a file that only its owner can read, and that is not there yet.
pub(crate) fn make_key(path: &Path) -> Result<PolicyKey, CtlError> {
    let key = PolicyKey::generate()?;
    make(path, key.to_pem().as_bytes(), 0o600)?;
    Ok(key)
}

/// PCR values as they are, which are of SHA-256, or as `host policy show --output json` prints
/// them, with their bank.
fn values_in(path: &Path) -> Result<PcrValues, CtlError> {
    let failed = |error: serde_json::Error| not_needed(path, error.into());
    let mut json = read_strictly(&read(path)?).map_err(failed)?;
    let bank = match json.get_mut("bank") {
        Some(bank) => serde_json::from_value(bank.take()).map_err(failed)?,
        None => HashAlgorithm::Sha256,
    };
    if let Some(values) = json.get_mut("pcrs") {
        json = values.take();
    }
    let values: BTreeMap<u8, String> = serde_json::from_value(json).map_err(failed)?;
    let values = values.iter().map(|(pcr, value)| (*pcr, value.as_str()));
    PcrValues::from_hex(bank, values).map_err(|error| not_needed(path, error.into()))
}

fn describe(policy: &PolicyView) -> String {
    let mut table = Table::default();
    table.row(["operator's key", &policy.policy_key.to_string()]);
    for object in &policy.objects {
        table.row(["bound to it", object]);
    }
    for (pcr, value) in &policy.pcrs {
        table.row([format!("PCR {pcr} ({}) now", policy.bank), value.clone()]);
    }
    let state = if policy.satisfied {
        "approved"
    } else {
        "NOT APPROVED: keys cannot be used until `vtpmctl host policy approve` gets an approval"
    };
    table.row(["state", state]);
    for approval in &policy.approvals {
        let differences: Vec<String> = approval
            .differences
            .iter()
            .map(|difference| match &difference.approved {
                Some(approved) => format!(
                    "PCR {} ({}) is approved as {approved}",
                    difference.pcr, approval.bank
                ),
                None => format!("PCR {} ({}) is not covered", difference.pcr, policy.bank),
            })
            .collect();
        let text = if differences.is_empty() {
            "in force".to_owned()
        } else {
            differences.join("; ")
        };
        // The signature covers the values alone.
        let text = format!("{text} (its unsigned note says \"{}\")", approval.label);
        table.row(["approval", &text]);
    }
    table.render()
}
