//! What a result says, and of what it is a result.

use std::time::Duration;

use attestation::fixture::{Host, NOW, Vm, nonce, now};
use attestation::{AttestationResult, Binding, Layer, Nonce, Policy, Purpose, Verdict, appraise};
use cert_chain::TrustAnchors;
use rustls_pki_types::UnixTime;

use crate::scene::host_and_vm;

fn appraised(host: &Host, vm: &Vm, policy: &Policy, at: UnixTime) -> AttestationResult {
    let verified = host
        .evidence(vm, &nonce(), Binding::None)
        .verify(&nonce(), &Purpose::Challenge, policy.anchors(), at)
        .unwrap();
    appraise(verified, policy)
}

#[test]
fn the_result_is_an_ear_with_a_submodule_for_each_layer() {
    let (host, vm) = host_and_vm();
    let policy = host.policy(&vm);
    let json = appraised(&host, &vm, &policy, now()).to_json();
    assert_eq!(json["ear_status"], "affirming");
    assert_eq!(json["verdict"], "affirming");
    for layer in ["host", "vm"] {
        assert_eq!(json["submods"][layer]["ear_status"], "affirming");
        let policies = &json["submods"][layer]["ear_appraisal_policy_ids"];
        assert_eq!(policies[0], format!("sha256:{}", policy.digest()));
    }
    let claims = &json["submods"]["vm"]["ear_attester_claims"];
    assert_eq!(claims["vm"], vm.vm.to_string());
    assert!(json["eat_nonce"].is_string());
    // What a host's TPM obfuscates is not passed off as a fact.
    let host_claims = &json["submods"]["host"]["ear_attester_claims"];
    assert!(host_claims["boot-cycle"].is_string());
    for obfuscated in ["reset-count", "restart-count"] {
        assert!(host_claims[obfuscated].is_null(), "{obfuscated}");
        assert!(claims[obfuscated].is_string(), "{obfuscated}");
    }
}

#[test]
fn refused_evidence_gets_an_ear_too() {
    let (host, vm) = host_and_vm();
    let policy = host.policy(&vm);
    let fresh = Nonce::new([1; 32]).unwrap();
    let refusal = host
        .evidence(&vm, &nonce(), Binding::None)
        .verify(&fresh, &Purpose::Challenge, policy.anchors(), now())
        .unwrap_err();
    let json = refusal.to_json(&policy, &fresh, now());
    assert_eq!(json["iat"], NOW);
    for layer in ["host", "vm"] {
        let appraisal = &json["submods"][layer];
        assert_eq!(appraisal["ear_status"], "contraindicated");
        let vector = &appraisal["ear_trustworthiness_vector"];
        assert_eq!(vector["instance-identity"], 99);
    }
    assert_eq!(json["ear_status"], "contraindicated");
    assert_eq!(json["verdict"], "contraindicated");
    assert_eq!(json["refusal"]["code"], "nonce");
    assert_eq!(json["reasons"][0]["code"], "nonce");
    assert!(json["reasons"][0]["layer"].is_null());
}

#[test]
fn a_result_is_of_the_time_at_which_the_evidence_was_verified() {
    let (host, vm) = host_and_vm();
    let later = UnixTime::since_unix_epoch(Duration::from_secs(NOW + 600));
    let result = appraised(&host, &vm, &host.policy(&vm), later);
    assert_eq!(result.issued_at(), later);
    assert_eq!(result.expires_at().as_secs(), NOW + 900);
}

/// Whoever verifies under one policy's roots and appraises with another policy gets no verdict
/// of that policy.
#[test]
fn evidence_that_was_verified_under_other_roots_than_the_policys_is_contraindicated() {
    let (host, vm) = host_and_vm();
    let policy = host.policy(&vm);
    let own = host.issuer.certificate_pem();
    let more = own.clone() + &Host::new("host-2").issuer.certificate_pem();
    let verified = host
        .evidence(&vm, &nonce(), Binding::None)
        .verify(
            &nonce(),
            &Purpose::Challenge,
            &TrustAnchors::from_pem(&more).unwrap(),
            now(),
        )
        .unwrap();
    let result = appraise(verified, &policy);
    assert_eq!(result.verdict(), Verdict::Contraindicated);
    let reasons = result.layer(Layer::Host).reasons();
    assert_eq!(reasons[0].code, "roots-unexpected");

    // The same text with other roots is another policy; with the same set of roots it is not.
    let text = host.policy_text(&vm);
    let with = |roots: &str| Policy::parse(&text, |_| Ok(roots.to_owned())).unwrap();
    assert_ne!(with(&more).digest(), policy.digest());
    assert_eq!(with(&(own.clone() + &own)).digest(), policy.digest());
}
