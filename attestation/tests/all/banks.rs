//! PCR banks: which one a quote is of, which values count for it, and which banks say nothing.

use attestation::event_log::EventType;
use attestation::event_log::writer::LogWriter;
use attestation::fixture::{
    Host, Vm, event_log_in, image_load_event, nonce, now, pcrs_of, quote, sign,
};
use attestation::result::Reason;
use attestation::{
    AttestationResult, BOOT_PCRS, Binding, EventLog, Layer, Purpose, ReferenceError, Refusal,
    Verdict, VerifiedEvidence, accounted_bank, reference_values,
};
use cert_chain::HashAlgorithm::{self, Sha1, Sha256, Sha384, Sha512};
use cert_chain::pcr::BANKS;
use cert_chain::{Digest32, PcrSelection, PcrValues};
use printable::WithCauses;

use crate::scene::anchors;

const SEPARATOR: u32 = 0x0000_0004;
const APPLICATION: u32 = 0x8000_0003;
const FIRMWARE_BLOB: u32 = 0x8000_0008;

/// A boot that is measured into these banks.
fn boot(banks: &[HashAlgorithm]) -> Vec<u8> {
    event_log_in(
        banks,
        &[
            (0, FIRMWARE_BLOB, b"firmware"),
            (7, SEPARATOR, &[0; 4]),
            (4, APPLICATION, &image_load_event("kernel", 1)),
        ],
    )
}

/// Host and VM whose TPMs have these banks and quote the one that is named.
fn host_and_vm(host_bank: HashAlgorithm, vm_bank: HashAlgorithm) -> (Host, Vm) {
    let mut host = Host::new("host-1");
    let mut vm = host.vm();
    (host.log, host.bank) = (boot(&[host_bank]), host_bank);
    (vm.log, vm.bank) = (boot(&[vm_bank]), vm_bank);
    (host, vm)
}

fn verified(host: &Host, vm: &Vm) -> Result<VerifiedEvidence, Refusal> {
    let anchors = anchors(host);
    host.evidence(vm, &nonce(), Binding::None).verify(
        &nonce(),
        &Purpose::Challenge,
        &anchors,
        now(),
    )
}

fn reasons(result: &AttestationResult, layer: Layer) -> &[Reason] {
    result.layer(layer).reasons()
}

fn boot_pcrs() -> PcrSelection {
    PcrSelection::new(BOOT_PCRS).unwrap()
}

#[test]
fn each_layer_is_appraised_in_the_bank_that_its_tpm_quotes_and_results_name_it() {
    for (host_bank, vm_bank) in [(Sha384, Sha384), (Sha384, Sha256), (Sha256, Sha512)] {
        let (host, vm) = host_and_vm(host_bank, vm_bank);
        let result = host.appraise(&vm, &host.policy(&vm));
        assert_eq!(result.verdict(), Verdict::Affirming);
        let ear = result.to_json();
        for (layer, bank) in [("host", host_bank), ("vm", vm_bank)] {
            let layer = &ear["submods"][layer];
            assert_eq!(
                layer["ear_attester_claims"]["pcr-bank"],
                bank.name(),
                "{ear:#}"
            );
        }
        assert!(ear.to_string().contains(&format!("kernel: {vm_bank}:")));
    }
}

#[test]
fn what_differs_is_told_with_its_bank() {
    let (host, mut vm) = host_and_vm(Sha384, Sha384);
    let policy = host.policy(&vm);
    vm.log = event_log_in(
        &[Sha384],
        &[
            (0, FIRMWARE_BLOB, b"firmware"),
            (7, SEPARATOR, &[0; 4]),
            (4, APPLICATION, &image_load_event("kernel", 2)),
        ],
    );
    let result = host.appraise(&vm, &policy);
    let reasons = reasons(&result, Layer::Vm);
    let other = Sha384.hash(&[&image_load_event("kernel", 2)]);
    let accepted = Sha384.hash(&[&image_load_event("kernel", 1)]);
    assert_eq!(
        reasons[0].text,
        format!(
            "kernel: found {other}, accepted {accepted} (EV_EFI_BOOT_SERVICES_APPLICATION in PCR \
             4, sha384)"
        )
    );
    assert_eq!(reasons[1].code, "pcr-unexpected");
    assert!(reasons[1].text.starts_with("PCR 4 (sha384, "));
}

/// Of a log, a quote verifies the digests of its own bank. Whoever writes the log can put the
/// digest of the good kernel into every other bank's place.
#[test]
fn of_an_event_only_the_digest_in_the_quoted_bank_counts() {
    let (host, mut vm) = host_and_vm(Sha256, Sha384);
    let good = image_load_event("kernel", 1);
    let evil = image_load_event("kernel", 2);
    let mut log = LogWriter::crypto_agile(&[Sha256, Sha384]);
    log.measure(0, EventType::EFI_PLATFORM_FIRMWARE_BLOB, b"firmware");
    log.event(
        4,
        EventType::EFI_BOOT_SERVICES_APPLICATION,
        &[
            (Sha256.identifier(), Sha256.hash(&[&good]).as_bytes().into()),
            (Sha384.identifier(), Sha384.hash(&[&evil]).as_bytes().into()),
        ],
        &good,
    );
    vm.log = log.bytes().to_vec();

    let firmware = Sha384.hash(&[b"firmware"]);
    let kernel = Sha256.hash(&[&good]);
    let reference = |name: &str, pcr: u8, event_type: &str, digest: &str| {
        format!(
            "[[vm.reference.events]]\nname = \"{name}\"\npcr = {pcr}\ntype = \"{event_type}\"\n\
             digests = [\"{digest}\"]\n"
        )
    };
    let text = host.policy_text(&vm);
    let (before, _) = text.split_once("[vm.reference]").unwrap();
    let text = format!(
        "{before}[vm.reference]\nignored_pcrs = [1, 2, 3, 5, 6, 7, 8, 9, 11, 12, 13, 14]\n{}{}",
        reference(
            "firmware",
            0,
            "EV_EFI_PLATFORM_FIRMWARE_BLOB",
            &format!("sha384:{firmware}")
        ),
        reference(
            "kernel",
            4,
            "EV_EFI_BOOT_SERVICES_APPLICATION",
            &format!("sha256:{kernel}")
        ),
    );
    let result = host.appraise(&vm, &host.read_policy(&text).unwrap());
    let codes: Vec<&str> = reasons(&result, Layer::Vm).iter().map(|r| r.code).collect();
    assert_eq!(codes, ["event-unexpected"]);
    let told = &reasons(&result, Layer::Vm)[0].text;
    let found = format!("kernel: found {}", Sha384.hash(&[&evil]));
    assert!(told.starts_with(&found), "{told}");

    // The same log under a quote of the other bank is the good kernel's.
    vm.bank = Sha256;
    let text = text.replace(
        &format!("sha384:{firmware}"),
        &format!("sha256:{}", Sha256.hash(&[b"firmware"])),
    );
    let result = host.appraise(&vm, &host.read_policy(&text).unwrap());
    assert_eq!(result.verdict(), Verdict::Affirming);
}

#[test]
fn a_quote_of_a_bank_that_the_policy_does_not_speak_of_is_contraindicated_once() {
    let (host, mut vm) = host_and_vm(Sha256, Sha256);
    let policy = host.policy(&vm);
    (vm.log, vm.bank) = (boot(&[Sha384]), Sha384);
    let result = host.appraise(&vm, &policy);
    let [reason] = reasons(&result, Layer::Vm) else {
        panic!("{:?}", reasons(&result, Layer::Vm));
    };
    assert_eq!(reason.code, "bank-without-reference");
    assert_eq!(reason.verdict, Verdict::Contraindicated);
    assert!(reason.text.contains("sha384") && reason.text.contains("sha256"));
}

#[test]
fn a_policy_may_have_values_of_several_banks_for_the_same_boot() {
    let (host, mut vm) = host_and_vm(Sha256, Sha256);
    vm.log = boot(&[Sha256, Sha384]);
    let log = EventLog::parse(&vm.log).unwrap();
    let of = |bank| reference_values(&log, bank, BOOT_PCRS).unwrap();
    let both = of(Sha256).or(of(Sha384));
    let text = host
        .policy_text(&vm)
        .replace(&of(Sha256).to_toml("vm"), &both.to_toml("vm"));
    let policy = host.read_policy(&text).unwrap();
    assert_eq!(policy.vm_reference(), Some(&both));
    for bank in [Sha256, Sha384] {
        vm.bank = bank;
        let result = host.appraise(&vm, &policy);
        assert_eq!(result.verdict(), Verdict::Affirming, "{bank}");
    }
}

#[test]
fn a_quote_of_a_bank_that_no_boot_was_measured_into_is_never_affirmed() {
    // The log has nothing of the quoted bank.
    let (host, mut vm) = host_and_vm(Sha256, Sha256);
    vm.bank = Sha384;
    let refusal = verified(&host, &vm).unwrap_err();
    assert_eq!(refusal.code(), "event-log-bank");
    assert!(refusal.to_string().contains("sha384"), "{refusal}");

    // Or only what software extended after the boot.
    let mut only_software = LogWriter::crypto_agile(&[Sha384]);
    only_software.measure(8, EventType::IPL, b"anything");
    (vm.log, vm.bank) = (only_software.bytes().to_vec(), Sha384);
    let value = pcrs_of(Sha384, &vm.log, &[8]).get(8).unwrap();
    let (host_again, vm_again) = host_and_vm(Sha256, Sha256);
    let text = host_again.policy_text(&vm_again);
    let (before, _) = text.split_once("[vm.reference]").unwrap();
    let text = format!(
        "{before}[vm.reference]\nignored_pcrs = [0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 12, 13, 14]\n\
         pcrs = {{ 8 = [\"sha384:{value}\"] }}\n"
    )
    .replace(&vm_again.vm.to_string(), &vm.vm.to_string());
    let result = host.appraise(&vm, &host.read_policy(&text).unwrap());
    assert_eq!(reasons(&result, Layer::Vm)[0].code, "bank-not-extended");
    assert_eq!(result.layer(Layer::Vm).verdict(), Verdict::Contraindicated);
}

#[test]
fn a_quote_of_a_weak_or_of_no_single_bank_is_refused_by_name() {
    let (host, vm) = host_and_vm(Sha256, Sha256);
    let anchors = anchors(&host);
    let refused = |attest: Vec<u8>| {
        let mut evidence = host.evidence(&vm, &nonce(), Binding::None);
        evidence.vm.signature = sign(&vm.key, &attest);
        evidence.vm.attest = attest.into();
        let refusal = evidence
            .verify(&nonce(), &Purpose::Challenge, &anchors, now())
            .unwrap_err();
        assert_eq!(refusal.code(), "quote");
        refusal.explanation()
    };
    let text = refused(quote(
        &pcrs_of(Sha1, &boot(&[Sha1]), &BOOT_PCRS),
        &Digest32::of(b"x"),
    ));
    assert!(text.contains("sha1 bank"), "{text}");

    // TPML_PCR_SELECTION and digest stand at the end.
    let pcrs = PcrValues::new(Sha256);
    let mut attest = quote(&pcrs, &Digest32::of(b"x"));
    let digest = attest.split_off(attest.len() - 34);
    attest.truncate(attest.len() - 10);
    attest.extend([0, 0, 0, 2, 0, 0x0b, 3, 1, 0, 0, 0, 0x0c, 3, 1, 0, 0]);
    attest.extend(digest);
    let text = refused(attest);
    assert!(text.contains("one bank, and not of 2"), "{text}");
}

#[test]
fn a_policy_that_pins_a_bank_nothing_was_measured_into_is_no_policy() {
    let (host, vm) = host_and_vm(Sha256, Sha256);
    let text = host.policy_text(&vm);
    let (before, _) = text.split_once("[vm.reference]").unwrap();
    let pinned = |pcrs: &str| {
        let text = format!("{before}[vm.reference]\npcrs = {{ {pcrs} }}\n");
        host.read_policy(&text)
            .map_err(|error| WithCauses(&error).to_string())
    };
    let value = |bank: HashAlgorithm, byte| format!("{bank}:{}", bank.filled(byte));
    let locality = Sha384.filled(0).with_last_byte(3);
    for (pcrs, parts) in [
        (
            format!("0 = [\"{}\"]", value(Sha256, 0)),
            ["PCRs 0 to 7 (sha256)", "VM"],
        ),
        // A value without its bank is one of SHA-256.
        (
            format!("0 = [\"{}\"]", "0".repeat(64)),
            ["PCRs 0 to 7 (sha256)", "vrot-device reference"],
        ),
        (
            format!(
                "0 = [\"sha384:{locality}\"], 7 = [\"{}\"]",
                value(Sha384, 0)
            ),
            ["PCRs 0 to 7 (sha384)", "reset"],
        ),
        // Values of another bank beside it do not help.
        (
            format!("0 = [\"{}\", \"{}\"]", value(Sha256, 7), value(Sha512, 0)),
            ["PCRs 0 to 7 (sha512)", "reset"],
        ),
        (
            format!("0 = [\"{}\"]", value(Sha1, 7)),
            ["sha1", "sha256, sha384 or sha512"],
        ),
    ] {
        let error = pinned(&pcrs).unwrap_err();
        for part in parts {
            assert!(
                error.to_lowercase().contains(&part.to_lowercase()),
                "{error}"
            );
        }
    }
    let some = format!(
        "0 = [\"{}\"], 1 = [\"{}\"]",
        value(Sha384, 7),
        value(Sha384, 0)
    );
    assert!(pinned(&some).is_ok());
}

#[test]
fn references_are_made_of_the_first_bank_that_a_log_accounts_for() {
    let bank_of = |log: &[u8]| accounted_bank(&EventLog::parse(log).unwrap(), &BANKS, boot_pcrs());
    for (banks, bank) in [
        (&[Sha384][..], Sha384),
        (&[Sha1, Sha256], Sha256),
        (&[Sha512, Sha384, Sha256], Sha256),
        (&[Sha1, Sha512], Sha512),
    ] {
        assert_eq!(bank_of(&boot(banks)), Ok(bank));
    }
    // An event without a digest of one bank leaves the other.
    let mut log = LogWriter::crypto_agile(&[Sha256, Sha384]);
    log.measure(0, EventType::EFI_PLATFORM_FIRMWARE_BLOB, b"firmware");
    log.measure_in(&[Sha384], 4, EventType::IPL, b"boot loader");
    assert_eq!(bank_of(log.bytes()), Ok(Sha384));

    // No bank that counts, or none that firmware measured into.
    let error = bank_of(&boot(&[Sha1])).unwrap_err();
    assert!(error.to_string().contains("it has sha1"), "{error}");
    let mut log = LogWriter::crypto_agile(&[Sha256]);
    log.measure(8, EventType::IPL, b"by software");
    let read = EventLog::parse(log.bytes()).unwrap();
    assert!(matches!(
        accounted_bank(&read, &BANKS, boot_pcrs()),
        Err(ReferenceError::Bank { .. })
    ));
    let error = reference_values(&read, Sha256, BOOT_PCRS).unwrap_err();
    assert!(error.to_string().contains("sha256"), "{error}");
    let sha1 = EventLog::parse(&boot(&[Sha1])).unwrap();
    assert!(reference_values(&sha1, Sha1, BOOT_PCRS).is_err());
}
