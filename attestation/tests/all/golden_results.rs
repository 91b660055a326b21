//! The JSON of results is a format that others read: it is frozen in `data/ear_*.json`.

use attestation::fixture::{Host, Vm, event_log, launch, nonce, now};
use attestation::{
    Anchoring, AttestationResult, Binding, CutOff, Durability, Evidence, LaunchMeasurement, Layer,
    Nonce, Policy, Purpose, StateLoss, appraise,
};
use serde_json::Value;

/// What differs from run to run (keys, identifiers, the policy that names them) under fixed names.
fn frozen(json: &Value, host: &Host, vm: &Vm, policy: &Policy) -> String {
    let vik = cert_chain::PublicArea::parse(&vm.public).unwrap().name();
    let mut text = serde_json::to_string_pretty(json).unwrap() + "\n";
    for (varying, name) in [
        (vm.vm.to_string(), "{vm}"),
        (vm.vrot.to_string(), "{vrot}"),
        (vik.to_string(), "{vik}"),
        (host.public.name().to_string(), "{host-ik}"),
        (policy.digest().to_string(), "{policy}"),
        (env!("CARGO_PKG_VERSION").to_owned(), "{version}"),
    ] {
        text = text.replace(&varying, name);
    }
    text
}

fn appraised(evidence: &Evidence, policy: &Policy) -> AttestationResult {
    let verified = evidence.verify(&nonce(), &Purpose::Challenge, policy.anchors(), now());
    appraise(verified.unwrap(), policy)
}

/// The result with its host's `boot-cycle`, a digest over a key's name, under a fixed name.
fn frozen_result(result: &AttestationResult, host: &Host, vm: &Vm, policy: &Policy) -> String {
    let clock = result.evidence().layer(Layer::Host).clock();
    let boot_cycle = clock.boot_cycle(&host.public.name()).to_string();
    frozen(&result.to_json(), host, vm, policy).replace(&boot_cycle, "{boot-cycle}")
}

fn check(found: &str, name: &str, expected: &str) {
    if let Some(f) = std::env::var_os("WRITE") {
        std::fs::write(std::path::Path::new(&f).join(name), found).unwrap();
        return;
    }
    assert_eq!(found, expected, "{name}");
}

#[test]
fn results_have_the_json_that_they_always_had() {
    let host = Host::new("host-1");
    let mut vm = host.vm();
    let policy = host.policy(&vm);

    let affirming = appraised(&host.evidence(&vm, &nonce(), Binding::None), &policy);
    check(
        &frozen_result(&affirming, &host, &vm, &policy),
        "ear_affirming.json",
        include_str!("data/ear_affirming.json"),
    );

    let layer = vm.layer(&host, &nonce(), Binding::None);
    let mut leaf = host.leaf(&vm, &layer);
    leaf.launch = LaunchMeasurement::Measured(launch());
    leaf.durability = Durability::Degraded;
    leaf.anchoring = Anchoring::Strict;
    leaf.cut_off = CutOff::Possible {
        batch: 17,
        time: 1_700_000_000,
        window_s: 600,
    };
    leaf.state_loss = StateLoss::Possible {
        batch: 42,
        time: 1_700_000_001,
    };
    let evidence = Evidence::new(layer, host.layer(&[leaf], 0));
    let warning = appraised(&evidence, &policy);
    check(
        &frozen_result(&warning, &host, &vm, &policy),
        "ear_warning.json",
        include_str!("data/ear_warning.json"),
    );

    vm.log = event_log(&[(4, 0x8000_0003, b"another boot loader")]);
    let contraindicated = appraised(&host.evidence(&vm, &nonce(), Binding::None), &policy);
    check(
        &frozen_result(&contraindicated, &host, &vm, &policy),
        "ear_contraindicated.json",
        include_str!("data/ear_contraindicated.json"),
    );

    let fresh = Nonce::new([1; 32]).unwrap();
    let evidence = host.evidence(&vm, &nonce(), Binding::None);
    let refusal = evidence
        .verify(&fresh, &Purpose::Challenge, policy.anchors(), now())
        .unwrap_err();
    check(
        &frozen(
            &refusal.to_json(&policy, &fresh, now()),
            &host,
            &vm,
            &policy,
        ),
        "ear_refused.json",
        include_str!("data/ear_refused.json"),
    );
}
