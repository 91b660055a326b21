//! What a guest's boot measured.

use std::fs;

use anyhow::{Result, ensure};
use test_support::run_folder::RunFolder;
use test_support::tool::Tool;
use vrot_tests::guest::Guest;

/// The PCRs that the boot measured into, after a check that the event log accounts for them.
pub(crate) fn measured(guest: &Guest, folder: &RunFolder) -> Result<Vec<String>> {
    let mut shell = guest.shell()?;
    let read = shell.text("tpm2_pcrread sha256:0,1,2,3,4,5,6,7,9")?;
    let log = folder.join("event-log");
    fs::write(
        &log,
        shell.read_file("/sys/kernel/security/tpm0/binary_bios_measurements")?,
    )?;
    let replayed = Tool::new("tpm2_eventlog").arg(&log).text()?;
    let values: Vec<String> = read
        .lines()
        .filter_map(|line| line.split_once(": 0x"))
        .map(|(_, value)| value.trim().to_lowercase())
        .collect();
    ensure!(values.len() == 9, "{read}");
    for value in &values {
        ensure!(
            replayed.contains(value),
            "{value} is not replayed:\n{replayed}"
        );
    }
    Ok(values)
}
