//! Evidence without a boot log: what it proves, and what a policy makes of it.

use attestation::fixture::{Host, Vm, launch, nonce, now};
use attestation::policy::PolicyError;
use attestation::policy_without_log::WithoutLogError;
use attestation::{
    Binding, BootRecord, Evidence, HostLeaf, LaunchMeasurement, Layer, Policy, Purpose,
    TpmTransport, Verdict, appraise,
};

const PINNED_PCRS: &str = "[vm.without_log]\ndemand = [\"pinned-pcrs\"]\n";
const PINNED_LAUNCH: &str = "[vm.without_log]\ndemand = [\"pinned-launch\"]\n";

fn without_log(vm: Vm) -> Vm {
    Vm {
        has_log: false,
        ..vm
    }
}

/// A VM behind virtio-i2c, whose PCRs nothing was measured into.
fn unmeasured(host: &Host) -> Vm {
    Vm {
        log: attestation::fixture::event_log(&[(16, 0x8000_0008, b"of no boot PCR")]),
        ..without_log(host.vm())
    }
}

/// The policy about the host and `vm` that has these lines in place of `[vm.reference]`.
fn about_launch(host: &Host, vm: &Vm, lines: &str) -> Result<Policy, PolicyError> {
    let whole = host.policy_text(&host.vm());
    let whole = whole.split("[vm.reference]").next().unwrap();
    let expected = format!("firmware_not_measured = \"accept\"\nvm = \"{}\"", vm.vm);
    let lines_of_expect: Vec<&str> = (whole.lines())
        .map(|line| match line.starts_with("vm = ") {
            true => expected.as_str(),
            false => line,
        })
        .collect();
    host.read_policy(&(lines_of_expect.join("\n") + "\n" + lines))
}

fn appraised(
    host: &Host,
    vm: &Vm,
    policy: &Policy,
    change: impl FnOnce(&mut HostLeaf),
) -> (Verdict, Vec<&'static str>) {
    let layer = vm.layer(host, &nonce(), Binding::None);
    let mut leaf = host.leaf(vm, &layer);
    change(&mut leaf);
    let evidence = Evidence::new(layer, host.layer(&[leaf], 0));
    let evidence = Evidence::from_cbor(&evidence.to_cbor()).unwrap();
    let verified = evidence.verify(&nonce(), &Purpose::Challenge, policy.anchors(), now());
    let result = appraise(verified.unwrap(), policy);
    let reasons = result.layer(Layer::Vm).reasons().iter();
    (
        result.verdict(),
        reasons.map(|reason| reason.code).collect(),
    )
}

fn refused(host: &Host, vm: &Vm, lines: &str) -> WithoutLogError {
    match host.read_policy(&(host.policy_text(vm) + lines)) {
        Err(PolicyError::WithoutLog(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn evidence_without_a_log_is_contraindicated_unless_the_policy_says_what_it_wants_instead() {
    let host = Host::new("host-1");
    let vm = without_log(host.vm());
    let (verdict, reasons) = appraised(&host, &vm, &host.policy(&vm), |_| {});
    assert_eq!(verdict, Verdict::Contraindicated);
    assert_eq!(reasons, ["boot-log-absent"]);
    let text = host.policy_text(&vm) + PINNED_PCRS;
    let policy = host.read_policy(&text).unwrap();
    assert_eq!(
        appraised(&host, &vm, &policy, |_| {}),
        (Verdict::Affirming, vec![])
    );
}

#[test]
fn a_guest_that_drops_its_log_hides_nothing_of_what_it_booted() {
    let host = Host::new("host-1");
    let good = host.vm();
    let policy =
        (host.policy_text(&good) + PINNED_PCRS).replace("[[vm.reference.events]]", "[[x]]");
    assert!(
        host.read_policy(&policy).is_err(),
        "no other section passes"
    );
    let policy = host.read_policy(&(host.policy_text(&good) + PINNED_PCRS));
    let bad = without_log(Vm {
        log: attestation::fixture::event_log(&[(4, 0x8000_0003, b"rootkit")]),
        ..good
    });
    let (verdict, reasons) = appraised(&host, &bad, &policy.unwrap(), |_| {});
    assert_eq!(verdict, Verdict::Contraindicated);
    assert!(reasons.contains(&"pcr-unexpected"), "{reasons:?}");
}

#[test]
fn a_pcr_that_was_left_out_of_a_quote_without_a_log_counts_as_contradicted() {
    let host = Host::new("host-1");
    let mut vm = without_log(host.vm());
    let policy = host.read_policy(&(host.policy_text(&vm) + PINNED_PCRS));
    vm.quoted.retain(|pcr| *pcr != 9);
    let (verdict, reasons) = appraised(&host, &vm, &policy.unwrap(), |_| {});
    assert_eq!(verdict, Verdict::Contraindicated);
    assert_eq!(reasons, ["pcr-not-quoted"]);
}

#[test]
fn a_vm_whose_tpm_no_firmware_measures_into_is_known_by_its_measured_launch() {
    let host = Host::new("host-1");
    let vm = unmeasured(&host);
    let digest = format!("[launch]\ndigests = [\"{}\"]\n", launch().digest());
    let policy = about_launch(&host, &vm, &(digest + PINNED_LAUNCH)).unwrap();
    let launched = |leaf: &mut HostLeaf| {
        leaf.transport = TpmTransport::VirtioI2c;
        leaf.launch = LaunchMeasurement::Measured(launch());
    };
    assert_eq!(
        appraised(&host, &vm, &policy, launched),
        (Verdict::Affirming, vec![])
    );
    let not_measured = |leaf: &mut HostLeaf| leaf.transport = TpmTransport::VirtioI2c;
    assert_eq!(
        appraised(&host, &vm, &policy, not_measured),
        (Verdict::Contraindicated, vec!["launch-not-measured"])
    );
    // A log is nothing that such a policy could compare.
    let with_log = Vm {
        has_log: true,
        ..vm
    };
    assert_eq!(
        appraised(&host, &with_log, &policy, launched),
        (Verdict::Contraindicated, vec!["no-reference-values"])
    );
}

/// The host measured the VM's firmware. What that started from the VM's disk, only PCRs tell.
#[test]
fn a_pinned_launch_alone_does_not_do_for_a_vm_whose_firmware_measures() {
    let host = Host::new("host-1");
    let vm = unmeasured(&host);
    let firmware = launch();
    let parts = firmware.parts().iter();
    let parts: String = parts
        .map(|part| format!("{} = [\"{}\"]\n", part.id, part.value))
        .collect();
    for lines in [
        format!("[launch.parts]\n{parts}"),
        format!("[launch]\ndigests = [\"{}\"]\n", launch().digest()),
    ] {
        let policy = about_launch(&host, &vm, &(lines + PINNED_LAUNCH)).unwrap();
        let over = |transport| {
            appraised(&host, &vm, &policy, |leaf| {
                leaf.transport = transport;
                leaf.launch = LaunchMeasurement::Measured(launch());
            })
        };
        for silent in [TpmTransport::VirtioI2c, TpmTransport::VirtioTpm] {
            assert_eq!(over(silent), (Verdict::Affirming, vec![]));
        }
        assert_eq!(
            over(TpmTransport::Emulator),
            (Verdict::Contraindicated, vec!["boot-log-absent"])
        );
    }
}

/// Each would be met by a guest that booted something else and dropped its log.
#[test]
fn a_policy_that_demands_less_of_evidence_without_a_log_is_no_policy() {
    let host = Host::new("host-1");
    let vm = host.vm();
    let launched = format!("[launch]\ndigests = [\"{}\"]\n", launch().digest());
    assert_eq!(
        refused(&host, &vm, &(launched.clone() + PINNED_LAUNCH)),
        WithoutLogError::Hidden
    );
    assert_eq!(
        refused(&host, &vm, "[vm.without_log]\ndemand = []\n"),
        WithoutLogError::Nothing
    );
    let both = "[vm.without_log]\ndemand = [\"pinned-pcrs\", \"pinned-launch\"]\n";
    assert_eq!(refused(&host, &vm, both), WithoutLogError::Launch);
    let open = (host.policy_text(&vm) + PINNED_PCRS).lines().fold(
        (String::new(), false),
        |(text, in_vm), line| {
            let in_vm = in_vm || line == "[vm.reference.pcrs]";
            match in_vm && line.starts_with("11 = ") {
                true => (text, in_vm),
                false => (text + line + "\n", in_vm),
            }
        },
    );
    match host.read_policy(&open.0) {
        Err(PolicyError::WithoutLog(error)) => assert_eq!(error, WithoutLogError::Pcrs(vec![11])),
        other => panic!("{other:?}"),
    }
    for lines in [
        "[launch.parts]\ncpus = [\"2\"]\n",
        "[launch]\nrequired = false\n[launch.parts]\nkernel = []\n",
        "",
    ] {
        let policy = about_launch(&host, &vm, &(lines.to_owned() + PINNED_LAUNCH));
        assert!(
            matches!(
                policy,
                Err(PolicyError::WithoutLog(WithoutLogError::Launch))
            ),
            "{lines}: {policy:?}"
        );
    }
    assert!(matches!(
        about_launch(&host, &vm, &(launched + "[vm]\n")),
        Err(PolicyError::NoReferenceValues { layer: "vm" })
    ));
}

#[test]
fn nobody_on_the_way_can_take_a_log_out_or_put_one_in() {
    let host = Host::new("host-1");
    let code_of = |evidence: &Evidence| {
        let policy = host.policy(&host.vm());
        let verified = evidence.verify(&nonce(), &Purpose::Challenge, policy.anchors(), now());
        verified.unwrap_err().code()
    };
    let vm = host.vm();
    let mut evidence = host.evidence(&vm, &nonce(), Binding::None);
    evidence.vm.boot = BootRecord::PcrsAlone;
    assert_eq!(code_of(&evidence), "qualifying-data");
    let mut evidence = host.evidence(&without_log(vm), &nonce(), Binding::None);
    evidence.vm.boot = BootRecord::of_log(host.vm().log);
    assert_eq!(code_of(&evidence), "qualifying-data");
}

#[test]
fn pcr_values_without_a_log_are_still_those_that_were_quoted() {
    let host = Host::new("host-1");
    let mut evidence = host.evidence(&without_log(host.vm()), &nonce(), Binding::None);
    evidence.vm.pcr_values[3] ^= 1;
    let policy = host.policy(&host.vm());
    let verified = evidence.verify(&nonce(), &Purpose::Challenge, policy.anchors(), now());
    assert_eq!(verified.unwrap_err().code(), "pcr-values");
}
