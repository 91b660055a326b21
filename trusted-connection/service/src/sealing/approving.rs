//! `vrot-service boot-values` and `approve-boot`: which boots open data that are sealed to approved ones.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use bounded_file::{read_bounded, read_bounded_text};
use cert_chain::json_texts::read_strictly;
use cert_chain::operator::{Approval, InsufficientPcrs, PolicyKey, SealedData};
use cert_chain::{HashAlgorithm, PcrSelection, PcrValues};
use program_output::console::print;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::SealingTpm;
use super::commands::MAX_FILE;
use crate::command_line::{ApproveOptions, BootOptions};
use crate::evidence_file::write_bytes;

/// PCR values as they travel from the VM to whoever approves them.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BootValues {
    bank: HashAlgorithm,
    pcrs: BTreeMap<u8, String>,
}

/// Prints what the PCRs hold.
pub fn boot_values(options: &BootOptions) -> Result<()> {
    let pcrs =
        PcrSelection::new(options.pcrs.pcrs.iter().copied()).context("--pcrs cannot be used")?;
    let values = SealingTpm::open(&options.tpm)?.boot(pcrs, options.pcrs.pcr_bank)?;
    let told = BootValues {
        bank: values.bank(),
        pcrs: values.to_hex(),
    };
    let text = serde_json::to_string_pretty(&told)? + "\n";
    print(&text).context("standard output cannot be written")
}

/// Signs an approval.
pub fn approve(options: &ApproveOptions) -> Result<()> {
    let key = read_key(&options.key)?;
    let path = options.values.display();
    let values = read_bounded(&options.values, MAX_FILE)
        .with_context(|| format!("{path} cannot be read"))?;
    let values = parse(&values).with_context(|| format!("{path} holds no PCR values"))?;
    match options.require_pcrs.check(&values) {
        Err(InsufficientPcrs::Missing { missing, .. }) => bail!(
            "{path} lacks PCRs {missing}: have `boot-values` print them (--pcrs), or require others \
             (--require-pcrs)"
        ),
        checked => checked?,
    }
    if let Some(InsufficientPcrs::Unextended { unextended, bank }) =
        options.require_pcrs.unextended(&values)
    {
        bail!(
            "{path}: PCRs {unextended} ({bank}) are as before anything is measured, so an approval of them \
             would fit any boot"
        );
    }
    let approval: Approval<SealedData> = key.approve_for(&options.label, values)?;
    write_bytes(approval.to_json().as_bytes(), Some(&options.to))
}

fn parse(json: &[u8]) -> Result<PcrValues> {
    let values: BootValues = serde_json::from_value(read_strictly(json)?)?;
    let pcrs = values
        .pcrs
        .iter()
        .map(|(pcr, value)| (*pcr, value.as_str()));
    Ok(PcrValues::from_hex(values.bank, pcrs)?)
}

fn read_key(path: &Path) -> Result<PolicyKey> {
    let shown = path.display();
    let mode = fs::metadata(path).map(|metadata| metadata.permissions().mode());
    if mode.with_context(|| format!("{shown} cannot be read"))? & 0o007 != 0 {
        bail!("{shown} is a private key that everybody can use: chmod 600 {shown}");
    }
    let pem = read_bounded_text(path, MAX_FILE).map(Zeroizing::new);
    let pem = pem.with_context(|| format!("{shown} cannot be read"))?;
    PolicyKey::from_pem(&pem).with_context(|| format!("{shown} cannot be used"))
}
