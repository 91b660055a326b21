//! What a policy makes of what a host measured before a VM's start, and of how the VM reaches its TPM.

use attestation::fixture::{Host, Vm, nonce};
use attestation::launch::{Launch, LaunchPart};
use attestation::{
    AttestationResult, Binding, Evidence, HostLeaf, LaunchMeasurement, Layer, Policy, Purpose,
    TpmTransport, Verdict, appraise,
};
use cert_chain::Digest32;

fn measured(parts: &[(&str, &str)]) -> Launch {
    let part = |(id, value): &(&str, &str)| LaunchPart {
        id: id.parse().unwrap(),
        value: value.parse().unwrap(),
    };
    Launch::new(parts.iter().map(part).collect()).unwrap()
}

fn kernel(contents: &[u8]) -> String {
    format!("sha256:{}", Digest32::of(contents))
}

/// What a policy with these lines at its end says of a VM of whose start its host says this.
fn appraised(
    section: &str,
    expect: &str,
    change: impl FnOnce(&mut HostLeaf),
) -> (Verdict, Vec<&'static str>) {
    let host = Host::new("host-1");
    let vm = host.vm();
    let text = host.policy_text(&vm) + section;
    let text = text.replace("tenant = ", &format!("{expect}\ntenant = "));
    let policy = host.read_policy(&text).unwrap();
    let result = appraise_leaf(&host, &vm, &policy, change);
    let reasons = result.layer(Layer::Vm).reasons().iter();
    (
        result.verdict(),
        reasons.map(|reason| reason.code).collect(),
    )
}

fn appraise_leaf(
    host: &Host,
    vm: &Vm,
    policy: &Policy,
    change: impl FnOnce(&mut HostLeaf),
) -> AttestationResult {
    let layer = vm.layer(host, &nonce(), Binding::None);
    let mut leaf = host.leaf(vm, &layer);
    change(&mut leaf);
    let evidence = Evidence::new(layer, host.layer(&[leaf], 0));
    let now = attestation::fixture::now();
    let verified = evidence.verify(&nonce(), &Purpose::Challenge, policy.anchors(), now);
    appraise(verified.unwrap(), policy)
}

fn launched(section: &str, parts: &[(&str, &str)]) -> Vec<&'static str> {
    let launch = match parts {
        [] => LaunchMeasurement::NotMeasured,
        parts => LaunchMeasurement::Measured(measured(parts)),
    };
    let (verdict, reasons) = appraised(section, "", |leaf| leaf.launch = launch);
    let expected = match reasons.is_empty() {
        true => Verdict::Affirming,
        false => Verdict::Contraindicated,
    };
    assert_eq!(verdict, expected, "{section}");
    reasons
}

#[test]
fn a_launch_that_was_not_measured_is_contraindicated_where_the_policy_asks_for_one() {
    assert_eq!(launched("[launch]", &[]), ["launch-not-measured"]);
    assert_eq!(
        launched("[launch]\nrequired = true", &[]),
        ["launch-not-measured"]
    );
    assert!(launched("[launch]\nrequired = false", &[]).is_empty());
    assert!(launched("", &[]).is_empty());
    // Any measurement will do where nothing else is said.
    assert!(launched("[launch]", &[("cpus", "2")]).is_empty());
}

#[test]
fn a_launch_is_accepted_by_the_digest_over_all_its_parts() {
    let parts = [("cpus", "2"), ("kernel", &kernel(b"kernel"))];
    let section = format!("[launch]\ndigests = [\"{}\"]", measured(&parts).digest());
    assert!(launched(&section, &parts).is_empty());
    let changed = [("cpus", "4"), parts[1]];
    let more = [parts[0], parts[1], ("machine", "pc")];
    for other in [&changed[..], &more, &parts[..1]] {
        assert_eq!(launched(&section, other), ["launch-unexpected"]);
    }
    assert_eq!(launched(&section, &[]), ["launch-not-measured"]);
}

#[test]
fn a_launch_is_accepted_part_by_part_and_every_part_is_spoken_of() {
    let (good, other) = (kernel(b"kernel"), kernel(b"another"));
    let section = format!(
        "[launch]\nignored_parts = [\"value:zone\"]\n[launch.parts]\nkernel = [\"{good}\"]\ncpus = [\"2\", \"4\"]"
    );
    let section = section.as_str();
    for cpus in ["2", "4"] {
        assert!(launched(section, &[("kernel", &good), ("cpus", cpus)]).is_empty());
    }
    let zone = [
        ("kernel", good.as_str()),
        ("cpus", "2"),
        ("value:zone", "b"),
    ];
    assert!(launched(section, &zone).is_empty());
    for (parts, reason) in [
        (
            [("kernel", other.as_str()), ("cpus", "2")],
            "launch-part-unexpected",
        ),
        (
            [("kernel", good.as_str()), ("cpus", "8")],
            "launch-part-unexpected",
        ),
        (
            [("kernel", good.as_str()), ("value:zone", "b")],
            "launch-part-missing",
        ),
    ] {
        assert_eq!(launched(section, &parts), [reason]);
    }
    let disk = [
        ("kernel", good.as_str()),
        ("cpus", "2"),
        ("disk:root", &good),
    ];
    assert_eq!(launched(section, &disk), ["launch-part-unknown"]);
}

/// A digest beside the parts accepts what the parts would not.
#[test]
fn either_a_digest_or_the_parts_accept_a_launch() {
    let parts = [("cpus", "2"), ("machine", "pc")];
    let section = format!(
        "[launch]\ndigests = [\"{}\"]\n[launch.parts]\ncpus = [\"8\"]",
        measured(&parts).digest()
    );
    assert!(launched(&section, &parts).is_empty());
    assert!(launched(&section, &[("cpus", "8")]).is_empty());
    assert_eq!(
        launched(&section, &[("cpus", "2")]),
        ["launch-part-unexpected"]
    );
}

#[test]
fn a_policy_with_a_part_that_is_none_is_no_policy() {
    let host = Host::new("host-1");
    let vm = host.vm();
    for section in [
        "[launch.parts]\n\"Kernel\" = []",
        "[launch.parts]\nkernel = [\"sha256:00\"]",
        "[launch.parts]\ncpus = [\"\"]",
        "[launch]\ndigests = [\"00\"]",
        "[launch]\nrequire = true",
    ] {
        let text = host.policy_text(&vm) + section;
        assert!(host.read_policy(&text).is_err(), "{section}");
    }
}

#[test]
fn a_tpm_that_no_firmware_measures_into_is_contraindicated_unless_the_policy_accepts_it() {
    for transport in [TpmTransport::VirtioTpm, TpmTransport::VirtioI2c] {
        let (verdict, reasons) = appraised("", "", |leaf| leaf.transport = transport);
        assert_eq!(verdict, Verdict::Contraindicated);
        assert_eq!(reasons, ["firmware-not-measured"]);
        let accepting = "firmware_not_measured = \"accept\"";
        let (verdict, _) = appraised("", accepting, |leaf| leaf.transport = transport);
        assert_eq!(verdict, Verdict::Affirming);
    }
}
