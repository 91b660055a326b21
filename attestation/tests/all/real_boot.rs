//! The log of a real boot (see `data/README.md`), against the PCRs that the TPM had.

use anyhow::{Context, Result};
use attestation::event_log::EventLogError;
use attestation::fixture::{Host, nonce, now};
use attestation::{BOOT_PCRS, Binding, EventLog, Purpose, Verdict, appraise, reference_values};
use cert_chain::HashAlgorithm;

const LOG: &[u8] = include_bytes!("data/ovmf-linux.eventlog");
const PCRS: &str = include_str!("data/ovmf-linux.pcrs");

fn log() -> Result<EventLog> {
    Ok(EventLog::parse(LOG)?)
}

#[test]
fn the_replay_of_every_bank_gives_the_values_that_the_tpm_had() -> Result<()> {
    let replay = log()?.replay();
    let mut compared = 0;
    for line in PCRS.lines() {
        let (bank, rest) = line.split_once(' ').context("bank")?;
        let (pcr, value) = rest.split_once(' ').context("PCR")?;
        // What the boot did not touch still has its value from reset.
        let replayed = replay.bank(bank.parse()?).context("bank")?;
        let found = replayed.value(pcr.parse()?)?.to_string();
        assert_eq!(found, value, "PCR {pcr} of {bank}");
        compared += 1;
    }
    assert_eq!(compared, 2 * 23);
    Ok(())
}

#[test]
fn firmware_kernel_initramfs_and_command_line_are_called_by_their_names() -> Result<()> {
    let reference = reference_values(&log()?, HashAlgorithm::Sha256, BOOT_PCRS)?;
    let names: Vec<(u8, &str)> = reference
        .events
        .iter()
        .map(|event| (event.pcr, event.name.as_str()))
        .collect();
    assert_eq!(
        names,
        [
            (0, "firmware version"),
            (0, "firmware"),
            (4, "kernel"),
            (4, "firmware action"),
            (9, "kernel command line"),
            (9, "initramfs"),
        ]
    );
    assert_eq!(reference.pcrs.len(), BOOT_PCRS.len());
    Ok(())
}

#[test]
fn every_truncation_of_the_log_is_refused_or_ends_at_an_event() -> Result<()> {
    let events = log()?.events().len();
    let mut complete = 0;
    for length in 0..=LOG.len() {
        match EventLog::parse(LOG.get(..length).context("length")?) {
            Ok(shorter) => {
                complete += 1;
                assert_eq!(shorter.events().len(), complete);
            }
            Err(EventLogError::Truncated { offset, .. }) => assert!(offset < length),
            Err(error) => assert_eq!((length, error), (0, EventLogError::Empty)),
        }
    }
    assert_eq!(complete, events);
    Ok(())
}

#[test]
fn golden_values_affirm_the_boot_they_were_taken_from_by_pcrs_or_by_events_alone() -> Result<()> {
    let host = Host::new("host-1");
    let mut vm = host.vm();
    vm.log = LOG.to_vec();
    let by_pcrs = host.policy_text(&vm);
    let by_events: String = by_pcrs
        .lines()
        .filter(|line| !["4 = ", "9 = "].iter().any(|pcr| line.starts_with(pcr)))
        .map(|line| format!("{line}\n"))
        .collect();
    let evidence = host.evidence(&vm, &nonce(), Binding::None);
    for text in [by_pcrs, by_events] {
        let policy = host.read_policy(&text)?;
        let verified = evidence.verify(&nonce(), &Purpose::Challenge, policy.anchors(), now())?;
        let result = appraise(verified, &policy);
        assert_eq!(result.verdict(), Verdict::Affirming, "{}", result.to_json());
    }
    Ok(())
}
