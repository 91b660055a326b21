//! What a policy makes of verified evidence.

use attestation::fixture::{Host, Vm, event_log, image_load_event, initramfs_event, nonce, now};
use attestation::policy::PolicyError;
use attestation::{
    Anchoring, AttestationResult, BOOT_PCRS, Binding, CutOff, Durability, EventLog, Evidence,
    HostLeaf, Layer, Purpose, StateLoss, Verdict, appraise, reference_values,
};
use cert_chain::{Digest32, HashAlgorithm, VmId, VrotId};

use crate::scene::{host_and_vm, reasons};

const SEPARATOR: u32 = 0x0000_0004;
const TAG: u32 = 0x0000_0006;
const APPLICATION: u32 = 0x8000_0003;
const ACTION: u32 = 0x8000_0007;
const FIRMWARE_BLOB: u32 = 0x8000_0008;

#[test]
fn what_the_policy_expects_is_affirmed() {
    let (host, vm) = host_and_vm();
    let result = host.appraise(&vm, &host.policy(&vm));
    assert_eq!(result.verdict(), Verdict::Affirming);
    assert_eq!(result.expires_at().as_secs(), now().as_secs() + 300);
    let booted = result.layer(Layer::Vm).boot();
    assert!(booted.iter().any(|(name, _)| name == "kernel"));
}

#[test]
fn a_changed_kernel_is_named_with_what_was_found_and_what_is_accepted() {
    let (host, mut vm) = host_and_vm();
    let policy = host.policy(&vm);
    let accepted = Digest32::of(&image_load_event("kernel", 14_186_432));
    let other = image_load_event("kernel", 1);
    vm.log = event_log(&[
        (0, FIRMWARE_BLOB, b"guest firmware"),
        (4, APPLICATION, &other),
        (4, SEPARATOR, &[0; 4]),
        (9, TAG, &initramfs_event()),
    ]);
    let result = host.appraise(&vm, &policy);
    assert_eq!(result.verdict(), Verdict::Contraindicated);
    assert_eq!(result.layer(Layer::Host).verdict(), Verdict::Affirming);
    assert_eq!(
        result.layer(Layer::Vm).reasons()[0].text,
        format!(
            "kernel: found {}, accepted {accepted} (EV_EFI_BOOT_SERVICES_APPLICATION in PCR 4, sha256)",
            Digest32::of(&other)
        )
    );
    // Said once, and the PCR shows it too.
    assert_eq!(
        reasons(&result, Layer::Vm),
        ["event-unexpected", "pcr-unexpected"]
    );
}

#[test]
fn a_boot_without_the_initramfs_says_so() {
    let (host, mut vm) = host_and_vm();
    let policy = host.policy(&vm);
    vm.log = event_log(&[
        (0, FIRMWARE_BLOB, b"guest firmware"),
        (4, APPLICATION, &image_load_event("kernel", 14_186_432)),
        (4, SEPARATOR, &[0; 4]),
    ]);
    let result = host.appraise(&vm, &policy);
    let reason = &result.layer(Layer::Vm).reasons()[0];
    assert_eq!(reason.code, "event-missing");
    assert!(
        reason
            .text
            .starts_with("initramfs: nothing was measured, accepted"),
        "{}",
        reason.text
    );
}

/// Neither types nor data of events are measured. Who owns the guest can boot its own kernel,
/// then extend the digest of the good one, and call its own whatever it likes in the log.
#[test]
fn a_kernel_under_a_false_label_is_not_overlooked_where_events_vouch_for_the_pcr() {
    let (host, mut vm) = host_and_vm();
    let text = without(&host.policy_text(&vm), "4 = ");
    let ignoring = text.replace("[vm.reference]\n", "[vm.reference]\nignored_pcrs = [4]\n");
    assert_ne!(text, ignoring);
    for label in [SEPARATOR, ACTION] {
        vm.log = event_log(&[
            (0, FIRMWARE_BLOB, b"guest firmware"),
            (4, label, b"rootkit"),
            (4, APPLICATION, &image_load_event("kernel", 14_186_432)),
            (4, SEPARATOR, &[0; 4]),
            (9, TAG, &initramfs_event()),
        ]);
        for text in [&text, &ignoring] {
            let result = host.appraise(&vm, &host.read_policy(text).unwrap());
            assert_eq!(result.verdict(), Verdict::Warning);
            assert_eq!(reasons(&result, Layer::Vm), ["event-without-reference"]);
        }
    }
}

#[test]
fn a_vm_is_never_better_than_its_host() {
    let (mut host, vm) = host_and_vm();
    let policy = host.policy(&vm);
    host.log = event_log(&[(0, 0x8000_0008, b"implant")]);
    let result = host.appraise(&vm, &policy);
    assert_eq!(result.layer(Layer::Vm).verdict(), Verdict::Contraindicated);
    assert_eq!(reasons(&result, Layer::Vm), ["host-limits"]);
}

#[test]
fn another_vm_another_tenant_and_another_host_are_contraindicated() {
    let (host, vm) = host_and_vm();
    let text = host.policy_text(&vm);
    let other = VmId::random().to_string();
    for (find, replace, layer, code) in [
        (vm.vm.to_string(), other, Layer::Vm, "vm-unexpected"),
        (
            "acme".into(),
            "umbrella".into(),
            Layer::Vm,
            "tenant-unexpected",
        ),
        (
            "host-1.".into(),
            "host-9.".into(),
            Layer::Host,
            "host-unexpected",
        ),
    ] {
        let policy = host.read_policy(&text.replace(&find, &replace)).unwrap();
        let result = host.appraise(&vm, &policy);
        assert_eq!(result.verdict(), Verdict::Contraindicated);
        assert_eq!(reasons(&result, layer), [code]);
    }
}

#[test]
fn an_older_generation_is_contraindicated() {
    let (host, vm) = host_and_vm();
    let text = host.policy_text(&vm);
    let text = text.replace("tenant = ", "min_generation = 2\ntenant = ");
    let result = host.appraise(&vm, &host.read_policy(&text).unwrap());
    assert_eq!(reasons(&result, Layer::Vm), ["generation-too-low"]);
}

#[test]
fn a_pcr_of_which_the_policy_does_not_speak_earns_a_warning() {
    let (host, vm) = host_and_vm();
    // Nothing was measured into PCR 14, and PCR 4 is covered by its events.
    for line in ["4 = ", "14 = "] {
        let policy = host
            .read_policy(&without(&host.policy_text(&vm), line))
            .unwrap();
        assert_eq!(host.appraise(&vm, &policy).verdict(), Verdict::Affirming);
    }
    let mut vm = vm;
    vm.log = event_log(&[
        (0, FIRMWARE_BLOB, b"guest firmware"),
        (7, 0x8000_0001, b"SecureBoot"),
    ]);
    let policy = host
        .read_policy(&without(&host.policy_text(&vm), "7 = "))
        .unwrap();
    let result = host.appraise(&vm, &policy);
    assert_eq!(result.verdict(), Verdict::Warning);
    assert_eq!(reasons(&result, Layer::Vm), ["pcr-without-reference"]);
}

fn accepted(batch: u64) -> String {
    let (host, _) = host_and_vm();
    format!("power_losses_accepted = {{ \"{}\" = {batch} }}", host.name)
}

/// What a policy with these lines under `[expect]` makes of a leaf with this anchor.
fn anchored(anchoring: Anchoring, cut_off: CutOff, lines: &str) -> AttestationResult {
    stated(
        |_| lines.to_owned(),
        |leaf| {
            (leaf.anchoring, leaf.cut_off) = (anchoring, cut_off);
        },
    )
}

/// What a policy with these lines under `[expect]` makes of a leaf that states this.
fn stated(
    lines: impl FnOnce(&Vm) -> String,
    state: impl FnOnce(&mut HostLeaf),
) -> AttestationResult {
    stated_under(
        |_, vm, text| text.replace("[expect]\n", &format!("[expect]\n{}\n", lines(vm))),
        state,
    )
}

/// The same with the usual policy changed by `change`.
fn stated_under(
    change: impl FnOnce(&Host, &Vm, String) -> String,
    state: impl FnOnce(&mut HostLeaf),
) -> AttestationResult {
    let (host, vm) = host_and_vm();
    let policy = host.read_policy(&change(&host, &vm, host.policy_text(&vm)));
    let policy = policy.unwrap();
    let layer = vm.layer(&host, &nonce(), Binding::None);
    let mut leaf = host.leaf(&vm, &layer);
    state(&mut leaf);
    let verified = Evidence::new(layer, host.layer(&[leaf], 0))
        .verify(&nonce(), &Purpose::Challenge, policy.anchors(), now())
        .unwrap();
    appraise(verified, &policy)
}

#[test]
fn state_that_a_loss_of_power_may_have_cut_off_earns_a_warning_until_it_is_accepted() {
    let cut_off = CutOff::Possible {
        batch: 17,
        time: 1_700_000_000,
        window_s: 600,
    };
    let checkpoint = Anchoring::Checkpoint(600);
    // Whatever the clock of the host said: an acceptance names one loss on one host.
    for lines in [
        String::new(),
        accepted(16),
        accepted(18),
        "power_losses_accepted = {}".to_owned(),
    ] {
        let result = anchored(checkpoint, cut_off, &lines);
        assert_eq!(result.verdict(), Verdict::Warning);
        assert_eq!(reasons(&result, Layer::Vm), ["state-cut-off"]);
        let text = &result.layer(Layer::Vm).reasons()[0].text;
        assert!(
            text.contains("batch 17") && text.contains("1700000000"),
            "{text}"
        );
    }
    let result = anchored(checkpoint, cut_off, &accepted(17));
    assert_eq!(result.verdict(), Verdict::Affirming);
    let claims = result.to_json();
    assert!(
        claims.to_string().contains("possible before batch 17"),
        "{claims}"
    );
}

#[test]
fn a_second_loss_of_power_is_not_the_accepted_one_wherever_the_clock_was_put() {
    for time in [0, 1_699_999_999, 1_700_000_000, 1_700_000_001] {
        let second = CutOff::Possible {
            batch: 23,
            time,
            window_s: 600,
        };
        let result = anchored(Anchoring::Checkpoint(600), second, &accepted(17));
        assert_eq!(reasons(&result, Layer::Vm), ["state-cut-off"]);
    }
}

#[test]
fn a_loss_of_power_is_accepted_on_a_host_of_the_policy_only() {
    let (host, vm) = host_and_vm();
    let line = "power_losses_accepted = { \"host-9.example.org\" = 17 }";
    let text = (host.policy_text(&vm)).replace("[expect]\n", &format!("[expect]\n{line}\n"));
    let refused = host.read_policy(&text);
    assert!(
        matches!(&refused, Err(PolicyError::PowerLossElsewhere { host }) if host.to_string() == "host-9.example.org"),
        "{refused:?}"
    );
}

#[test]
fn an_accepted_loss_of_power_of_one_host_is_none_of_another() {
    let both = |accepted: &str| {
        let accepted = format!("power_losses_accepted = {{ \"{accepted}\" = 17 }}\n");
        stated_under(
            |host, _, text| {
                let hosts = format!("hosts = [\"{}\", \"host-2.example.org\"]", host.name);
                text.replace(&format!("hosts = [\"{}\"]", host.name), &hosts)
                    .replace("[expect]\n", &format!("[expect]\n{accepted}"))
            },
            |leaf| {
                leaf.cut_off = CutOff::Possible {
                    batch: 17,
                    time: 1_700_000_000,
                    window_s: 600,
                };
            },
        )
    };
    let own = host_and_vm().0.name.to_string();
    assert_eq!(both(&own).verdict(), Verdict::Affirming);
    let result = both("host-2.example.org");
    assert_eq!(reasons(&result, Layer::Vm), ["state-cut-off"]);
}

#[test]
fn state_that_a_vrot_may_have_lost_earns_a_warning_until_it_is_accepted() {
    let lost = |lines: fn(&Vm) -> String| {
        stated(lines, |leaf| {
            leaf.state_loss = StateLoss::Possible {
                batch: 17,
                time: 1_700_000_000,
            };
        })
    };
    // Neither an earlier loss nor a later one, nor one of another vRoT is this one.
    let unaccepted: [fn(&Vm) -> String; 4] = [
        |_| String::new(),
        |vm| format!("state_losses_accepted = {{ \"{}\" = 18 }}", vm.vrot),
        |vm| format!("state_losses_accepted = {{ \"{}\" = 16 }}", vm.vrot),
        |_| {
            format!(
                "state_losses_accepted = {{ \"{}\" = 17 }}",
                VrotId::random()
            )
        },
    ];
    for lines in unaccepted {
        let result = lost(lines);
        assert_eq!(result.verdict(), Verdict::Warning);
        assert_eq!(reasons(&result, Layer::Vm), ["state-lost"]);
        let text = &result.layer(Layer::Vm).reasons()[0].text;
        assert!(
            text.contains("batch 17") && text.contains("1700000000"),
            "{text}"
        );
    }
    let result = lost(|vm| format!("state_losses_accepted = {{ \"{}\" = 17 }}", vm.vrot));
    assert_eq!(result.verdict(), Verdict::Affirming);
    let claims = result.to_json().to_string();
    assert!(claims.contains("noted after batch 17"), "{claims}");
}

#[test]
fn a_policy_can_ask_for_a_strict_anchor() {
    let strict = "anchor = \"strict\"";
    let result = anchored(Anchoring::Checkpoint(600), CutOff::Excluded, strict);
    assert_eq!(result.verdict(), Verdict::Contraindicated);
    assert_eq!(reasons(&result, Layer::Vm), ["anchor-not-strict"]);
    let result = anchored(Anchoring::Strict, CutOff::Excluded, strict);
    assert_eq!(result.verdict(), Verdict::Affirming);
    let (host, vm) = host_and_vm();
    let unknown = host
        .policy_text(&vm)
        .replace("[expect]\n", "[expect]\nanchor = \"lax\"\n");
    assert!(matches!(
        host.read_policy(&unknown),
        Err(PolicyError::Toml(_))
    ));
}

#[test]
fn a_vrot_whose_state_is_not_durable_earns_a_warning() {
    let (host, vm) = host_and_vm();
    let policy = host.policy(&vm);
    let layer = vm.layer(&host, &nonce(), Binding::None);
    let mut leaf = host.leaf(&vm, &layer);
    leaf.durability = Durability::Degraded;
    let verified = Evidence::new(layer, host.layer(&[leaf], 0))
        .verify(&nonce(), &Purpose::Challenge, policy.anchors(), now())
        .unwrap();
    let result = appraise(verified, &policy);
    assert_eq!(result.verdict(), Verdict::Warning);
    assert_eq!(reasons(&result, Layer::Vm), ["state-degraded"]);
}

/// The text without the lines that start like this.
fn without(text: &str, start: &str) -> String {
    let lines = text.lines().filter(|line| !line.starts_with(start));
    lines.collect::<Vec<_>>().join("\n")
}

/// Whoever makes a quote chooses its PCRs: who booted what the policy does not speak of would
/// get a warning for it, and nothing at all by leaving that PCR out.
#[test]
fn a_pcr_left_out_of_a_quote_is_contraindicated_whatever_the_policy_says_of_it() {
    let (mut host, mut vm) = host_and_vm();
    let text = host.policy_text(&vm);
    let events_only = without(&without(&text, "0 = "), "4 = ");
    let log = |events: &[(u32, u32, &[u8])]| {
        let kernel = image_load_event("kernel", 14_186_432);
        let initramfs = initramfs_event();
        let mut all: Vec<(u32, u32, &[u8])> = vec![
            (0, FIRMWARE_BLOB, b"guest firmware"),
            (4, APPLICATION, &kernel),
            (4, SEPARATOR, &[0; 4]),
            (9, TAG, &initramfs),
        ];
        all.extend(events);
        event_log(&all)
    };
    let honest = [host.log.clone(), vm.log.clone()];
    for pcr in BOOT_PCRS {
        // The policy is silent about this PCR, except for events of 0 and 4.
        let policy = host
            .read_policy(&without(&events_only, &format!("{pcr} = ")))
            .unwrap();
        let others: Vec<u8> = BOOT_PCRS.into_iter().filter(|of| *of != pcr).collect();

        [host.log, vm.log] = honest.clone();
        vm.log = log(&[(u32::from(pcr), ACTION, b"rootkit")]);
        let result = host.appraise(&vm, &policy);
        assert_ne!(result.verdict(), Verdict::Affirming, "PCR {pcr}");
        vm.quoted.clone_from(&others);
        let result = host.appraise(&vm, &policy);
        assert_eq!(result.verdict(), Verdict::Contraindicated, "PCR {pcr}");
        assert!(reasons(&result, Layer::Vm).contains(&"pcr-not-quoted"));
        vm.quoted = BOOT_PCRS.into();

        [host.log, vm.log] = honest.clone();
        host.quoted = others;
        let result = host.appraise(&vm, &policy);
        assert_eq!(result.verdict(), Verdict::Contraindicated, "PCR {pcr}");
        assert_eq!(reasons(&result, Layer::Host), ["pcr-not-quoted"]);
        assert_eq!(reasons(&result, Layer::Vm), ["host-limits"]);
        host.quoted = BOOT_PCRS.into();
    }
}

#[test]
fn a_quote_of_no_pcr_at_all_is_contraindicated_in_either_layer() {
    for layer in [Layer::Host, Layer::Vm] {
        let (mut host, mut vm) = host_and_vm();
        let policy = host.policy(&vm);
        match layer {
            Layer::Host => host.quoted.clear(),
            Layer::Vm => vm.quoted.clear(),
        }
        let result = host.appraise(&vm, &policy);
        let codes = reasons(&result, layer);
        let missing = codes.iter().filter(|code| **code == "pcr-not-quoted");
        assert_eq!(missing.count(), BOOT_PCRS.len(), "{codes:?}");
    }
}

#[test]
fn a_pcr_that_the_policy_ignores_need_not_be_quoted_unless_it_lists_events_of_it() {
    let (host, mut vm) = host_and_vm();
    let text = host.policy_text(&vm);
    for (pcr, reasons_for_it) in [(11, [].as_slice()), (4, &["pcr-not-quoted"])] {
        let text = without(&text, &format!("{pcr} = ")).replace(
            "[vm.reference]\n",
            &format!("[vm.reference]\nignored_pcrs = [{pcr}]\n"),
        );
        vm.quoted = BOOT_PCRS.into_iter().filter(|of| *of != pcr).collect();
        let result = host.appraise(&vm, &host.read_policy(&text).unwrap());
        assert_eq!(reasons(&result, Layer::Vm), reasons_for_it);
    }
}

#[test]
fn a_pcr_that_the_policy_names_must_be_quoted() {
    let (host, vm) = host_and_vm();
    let text = host.policy_text(&vm);
    let value = "1".repeat(64);
    let text = text.replace(
        "[vm.reference.pcrs]\n",
        &format!("[vm.reference.pcrs]\n10 = [\"{value}\"]\n"),
    );
    let result = host.appraise(&vm, &host.read_policy(&text).unwrap());
    assert_eq!(reasons(&result, Layer::Vm), ["pcr-not-quoted"]);
}

#[test]
fn a_policy_that_pins_too_little_is_no_policy() {
    let (host, vm) = host_and_vm();
    let text = host.policy_text(&vm);
    let nobody = text
        .replace(&format!("vm = \"{}\"\n", vm.vm), "")
        .replace("tenant = \"acme\"\n", "");
    assert!(matches!(
        host.read_policy(&nobody),
        Err(PolicyError::NoSubject)
    ));
    let nowhere = text.replace("hosts = [\"host-1.demo.example\"]", "hosts = []");
    assert!(matches!(
        host.read_policy(&nowhere),
        Err(PolicyError::NoHosts)
    ));
    let anything = "[trust]\nroots = \"r\"\n[expect]\ntenant = \"a\"\nhosts = [\"h.example\"]\n[host.reference]\n[vm.reference]\n";
    assert!(matches!(
        host.read_policy(anything),
        Err(PolicyError::NoReferenceValues { layer: "host" })
    ));
    let value = "1".repeat(64);
    let resettable = anything.replace(
        "[vm.reference]",
        &format!("pcrs = {{ 0 = [\"{value}\"] }}\n[vm.reference]\npcrs = {{ 23 = [\"{value}\"] }}"),
    );
    assert!(matches!(
        host.read_policy(&resettable),
        Err(PolicyError::NoReferenceValues { layer: "vm" })
    ));
    let optional = anything.replace(
        "[vm.reference]",
        &format!(
            "pcrs = {{ 0 = [\"{value}\"] }}\n[[vm.reference.events]]\nname = \"kernel\"\npcr = 4\n\
             type = \"EV_EFI_BOOT_SERVICES_APPLICATION\"\ndigests = [\"{value}\"]\noptional = true\n"
        ),
    );
    assert!(matches!(
        host.read_policy(&optional),
        Err(PolicyError::NoReferenceValues { layer: "vm" })
    ));
    let demanded = optional.replace("optional = true\n", "");
    assert!(host.read_policy(&demanded).is_ok());
    let misspelt = text.replace("tenant", "tennant");
    assert!(matches!(
        host.read_policy(&misspelt),
        Err(PolicyError::Toml(_))
    ));
    let text = text.replace("[vm.reference.pcrs]\n0 =", "[vm.reference.pcrs]\n24 =");
    assert!(matches!(host.read_policy(&text), Err(PolicyError::Toml(_))));
}

#[test]
fn reference_values_survive_being_written_and_two_good_boots_may_differ() {
    let (host, mut vm) = host_and_vm();
    let first = reference_values(
        &EventLog::parse(&vm.log).unwrap(),
        HashAlgorithm::Sha256,
        BOOT_PCRS,
    )
    .unwrap();
    // Another kernel, no initramfs, and a boot loader before it.
    let other = event_log(&[
        (0, FIRMWARE_BLOB, b"guest firmware"),
        (4, APPLICATION, &image_load_event("shimx64.efi", 1)),
        (4, APPLICATION, &image_load_event("kernel", 1)),
    ]);
    let second = reference_values(
        &EventLog::parse(&other).unwrap(),
        HashAlgorithm::Sha256,
        BOOT_PCRS,
    )
    .unwrap();
    let both = first.clone().or(second);
    let text = host
        .policy_text(&vm)
        .replace(&first.to_toml("vm"), &both.to_toml("vm"));
    let policy = host.read_policy(&text).unwrap();
    assert_eq!(policy.vm_reference(), Some(&both));
    for log in [vm.log.clone(), other] {
        vm.log = log;
        let result = host.appraise(&vm, &policy);
        assert_eq!(reasons(&result, Layer::Vm), [] as [&str; 0]);
        assert_eq!(result.verdict(), Verdict::Affirming);
    }
}
