//! Results of limited length, whatever evidence and policy have.

use attestation::fixture::{Host, Vm, event_log};
use attestation::result::{MAX_REASONS, Reason};
use attestation::{EventLog, Layer, Verdict, reference_values};
use cert_chain::{Digest32, HashAlgorithm, VmId};

use crate::scene::{host_and_vm, reasons};

const ACTION: u32 = 0x8000_0007;
const FIRMWARE_BLOB: u32 = 0x8000_0008;

/// A log with thousands of events, against a policy that accepts thousands of digests for them.
fn many_unexpected_events() -> (Host, Vm, String) {
    let (host, mut vm) = host_and_vm();
    let accepted: Vec<String> = (0..1_000u32)
        .map(|n| format!("\"{}\"", Digest32::of(&n.to_be_bytes())))
        .collect();
    let text = format!(
        "{}\n[[vm.reference.events]]\nname = \"module\"\npcr = 9\ntype = \"EV_EFI_ACTION\"\ndigests = [{}]\n",
        host.policy_text(&vm),
        accepted.join(",")
    );
    let measured: Vec<[u8; 4]> = (0..2_000u32)
        .map(|n| (n + 1_000_000).to_be_bytes())
        .collect();
    let mut events: Vec<(u32, u32, &[u8])> = vec![(0, FIRMWARE_BLOB, b"guest firmware")];
    events.extend(measured.iter().map(|data| (9, ACTION, data.as_slice())));
    vm.log = event_log(&events);
    (host, vm, text)
}

#[test]
fn a_result_lists_a_few_reasons_and_values_and_counts_the_others() {
    let (host, vm, text) = many_unexpected_events();
    let result = host.appraise(&vm, &host.read_policy(&text).unwrap());
    assert_eq!(result.verdict(), Verdict::Contraindicated);
    let reasons = result.layer(Layer::Vm).reasons();
    assert!(reasons.len() <= MAX_REASONS + 1, "{}", reasons.len());
    let listed = |reason: &&Reason| reason.code == "event-unexpected";
    let text = &reasons.iter().find(listed).unwrap().text;
    assert!(text.contains("or 996 others"), "{text}");
    let last = reasons.last().unwrap();
    assert_eq!(last.code, "reasons-left-out");
    assert_eq!(last.verdict, Verdict::Contraindicated);
    let length = result.to_json().to_string().len();
    assert!(length < 100_000, "{length}");
}

#[test]
fn what_booted_is_compared_only_for_the_vm_that_the_policy_is_about() {
    let (host, vm, text) = many_unexpected_events();
    let other = text.replace(&vm.vm.to_string(), &VmId::random().to_string());
    let result = host.appraise(&vm, &host.read_policy(&other).unwrap());
    assert_eq!(reasons(&result, Layer::Vm), ["vm-unexpected"]);
    assert!(result.layer(Layer::Vm).boot().is_empty());
}

#[test]
fn reference_values_are_the_same_after_they_were_written_as_toml() {
    let (_, vm) = host_and_vm();
    let log = EventLog::parse(&vm.log).unwrap();
    let mut values = reference_values(&log, HashAlgorithm::Sha256, [0, 4, 9]).unwrap();
    values.pcrs.remove(&4);
    values.ignored_pcrs = [1, 5].into();
    values.events[0].name = "a \"name\" = \\ \u{1b}[31m\n[x] \u{202e}\u{e0041}".to_owned();
    values.events[0].optional = true;
    let text = values.to_toml("vm");
    assert_eq!(printable::printable_lines(&text), text);
    let read: toml::Value = toml::from_str(&text).unwrap();
    let read = read["vm"]["reference"].clone();
    let read: attestation::ReferenceValues = read.try_into().unwrap();
    assert_eq!(read, values);
}
