//! Revocation lists that evidence carries, and what policies demand of them.

use attestation::device::appraise_device;
use attestation::device::fixture::FixtureDevice;
use attestation::evidence::{CarriedCrls, EvidenceError, MAX_CARRIED};
use attestation::fixture::{Host, Vm, nonce, now};
use attestation::policy::PolicyError;
use attestation::{
    AttestationResult, Binding, Evidence, Layer, Policy, Purpose, Refusal, Verdict, appraise,
};
use cert_chain::crl::MAX_CRL;
use cert_chain::{Crl, RevocationLists};
use serde_json::json;

use crate::scene::host_and_vm;

const DAY: u64 = 86_400;

/// The fixture's policy, which also demands a list that is no older than three days.
fn demanding(host: &Host, vm: &Vm) -> Policy {
    let text = host.policy_text(vm) + "\n[revocation]\nmax_crl_age_s = 259200\n";
    host.read_policy(&text).unwrap()
}

fn carrying(host: &Host, vm: &Vm, lists: &[&Crl]) -> Evidence {
    let crls = CarriedCrls::new(lists.iter().map(|list| list.der().to_vec()));
    host.evidence(vm, &nonce(), Binding::None).carrying(crls)
}

fn judged(evidence: &Evidence, policy: &Policy) -> Result<AttestationResult, Refusal> {
    let verified = evidence.verify(&nonce(), &Purpose::Challenge, policy.anchors(), now())?;
    Ok(appraise(verified, policy))
}

#[test]
fn a_revoked_host_is_refused_by_a_list_that_its_own_evidence_carries() {
    let (host, vm) = host_and_vm();
    let clean = host.revocation_list(1, DAY, &[]);
    let revoking = host.revocation_list(2, DAY, &[&host.certificate]);
    for policy in [host.policy(&vm), demanding(&host, &vm)] {
        let accepted = judged(&carrying(&host, &vm, &[&clean]), &policy).unwrap();
        assert_eq!(accepted.verdict(), Verdict::Affirming);
        let refusal = judged(&carrying(&host, &vm, &[&clean, &revoking]), &policy).unwrap_err();
        assert_eq!(refusal.code(), "revoked");
        let told = refusal.explanation();
        for part in ["host-1.demo.example", "key compromise", "revoked"] {
            assert!(told.contains(part), "{told}");
        }
    }
}

#[test]
fn the_newer_of_a_carried_and_a_given_list_counts() {
    let (host, vm) = host_and_vm();
    let policy = demanding(&host, &vm);
    let revoking = host.revocation_list(2, DAY, &[&host.certificate]);
    let code = |evidence: &Evidence, given: Option<&Crl>| {
        let mut lists = RevocationLists::default();
        given.iter().for_each(|list| lists.add_der(list.der()));
        let anchors = policy.anchors().with_lists(&lists);
        let verified = evidence.verify(&nonce(), &Purpose::Challenge, &anchors, now());
        verified.map_or_else(|refusal| refusal.code(), |_| "accepted")
    };
    let old = carrying(&host, &vm, &[&host.revocation_list(1, DAY, &[])]);
    let new = carrying(&host, &vm, &[&host.revocation_list(3, DAY, &[])]);
    let none = carrying(&host, &vm, &[]);
    assert_eq!(code(&old, Some(&revoking)), "revoked");
    assert_eq!(code(&new, Some(&revoking)), "accepted");
    assert_eq!(code(&none, Some(&revoking)), "revoked");
    assert_eq!(code(&none, None), "crl-missing");
}

#[test]
fn each_list_that_will_not_do_has_a_refusal_of_its_own() {
    let (host, vm) = host_and_vm();
    let policy = demanding(&host, &vm);
    let namesake = Host::new("host-1");
    let code = |list: &Crl| {
        let refusal = judged(&carrying(&host, &vm, &[list]), &policy).unwrap_err();
        assert!(!refusal.remedy().is_empty());
        refusal.code()
    };
    assert_eq!(code(&host.revocation_list(1, 4 * DAY, &[])), "crl-too-old");
    assert_eq!(code(&host.revocation_list(1, 8 * DAY, &[])), "crl-expired");
    assert_eq!(
        code(&namesake.revocation_list(1, DAY, &[])),
        "crl-signature"
    );
    let mut malformed = host.evidence(&vm, &nonce(), Binding::None);
    malformed = malformed.carrying(CarriedCrls::new([b"no list".to_vec()]));
    let refusal = judged(&malformed, &policy).unwrap_err();
    assert_eq!(refusal.code(), "crl-malformed");
    assert!(judged(&malformed, &host.policy(&vm)).is_ok());
}

#[test]
fn a_result_says_what_is_known_about_revocation_and_ends_with_the_list() {
    let (host, vm) = host_and_vm();
    let list = host.revocation_list(17, 3 * DAY - 60, &[]);
    let claims = |evidence: &Evidence, policy: &Policy| {
        let json = judged(evidence, policy).unwrap().to_json();
        json["submods"]["host"]["ear_verifier_claims"].clone()
    };
    let silent = claims(&carrying(&host, &vm, &[]), &host.policy(&vm));
    assert_eq!(silent["revocation"], json!(["not asked"]));
    assert_eq!(silent["crl-number"], json!(null));
    let policy = demanding(&host, &vm);
    let said = claims(&carrying(&host, &vm, &[&list]), &policy);
    assert_eq!(said["revocation"], json!(["not revoked"]));
    assert_eq!(said["crl-number"], json!(["17"]));
    let made = list.this_update().as_secs().to_string();
    assert_eq!(said["crl-this-update"], json!([made]));
    let result = judged(&carrying(&host, &vm, &[&list]), &policy).unwrap();
    assert_eq!(result.expires_at().as_secs(), now().as_secs() + 60);
}

/// Whoever verifies under roots that make no demand, and appraises with a policy that does.
#[test]
fn evidence_that_was_verified_without_the_demanded_list_is_contraindicated() {
    let (host, vm) = host_and_vm();
    let evidence = carrying(&host, &vm, &[]);
    let lax = host.policy(&vm);
    let verified = evidence.verify(&nonce(), &Purpose::Challenge, lax.anchors(), now());
    let result = appraise(verified.unwrap(), &demanding(&host, &vm));
    assert_eq!(result.verdict(), Verdict::Contraindicated);
    let reasons = result.layer(Layer::Host).reasons();
    assert!(reasons.iter().any(|r| r.code == "revocation-unchecked"));
}

#[test]
fn evidence_carries_a_bounded_number_of_bounded_lists_in_one_form() {
    let (host, vm) = host_and_vm();
    let evidence = |lists: Vec<Vec<u8>>| {
        let evidence = host.evidence(&vm, &nonce(), Binding::None);
        evidence.carrying(CarriedCrls::new(lists)).to_cbor()
    };
    let list = host.revocation_list(1, 0, &[]).der().to_vec();
    let read = |bytes: &[u8]| Evidence::from_cbor(bytes);
    let four = evidence(vec![list.clone(); MAX_CARRIED]);
    assert_eq!(read(&four).unwrap().to_cbor(), four);
    for too_much in [
        vec![list; MAX_CARRIED + 1],
        vec![vec![0; MAX_CRL + 1]],
        vec![vec![0; MAX_CRL / 2], vec![0; MAX_CRL / 2 + 1]],
    ] {
        assert!(matches!(
            read(&evidence(too_much)),
            Err(EvidenceError::FieldTooLong { .. })
        ));
    }
    // No list is an absent field, not an empty array: 3: [].
    let mut without = evidence(vec![]);
    assert!(read(&without).is_ok());
    without[0] += 1;
    without.extend([0x03, 0x80]);
    assert!(matches!(
        read(&without),
        Err(EvidenceError::NotDeterministic)
    ));
}

#[test]
fn a_policy_demands_no_list_that_is_younger_than_any() {
    let (host, vm) = host_and_vm();
    let read = |section: &str| host.read_policy(&(host.policy_text(&vm) + section));
    assert!(read("\n[revocation]\nmax_crl_age_s = 600\n").is_ok());
    assert!(matches!(
        read("\n[revocation]\nmax_crl_age_s = 599\n"),
        Err(PolicyError::MaxCrlAge { found: 599 })
    ));
    // A demand without a limit is none that anybody meant.
    assert!(matches!(
        read("\n[revocation]\n"),
        Err(PolicyError::Toml(_))
    ));
}

#[test]
fn a_revoked_device_is_refused_by_the_same_list() {
    let host = Host::new("host-1");
    let device = FixtureDevice::under(host.issuer_again(), "plant-7/robot-3");
    let section = "\n[revocation]\nmax_crl_age_s = 259200\n";
    let policy = device
        .read_policy(&(device.policy_text() + section))
        .unwrap();
    let evidence = device.evidence(&nonce(), Binding::None);
    let code = |list: Option<&Crl>| {
        let lists = list.iter().map(|list| list.der());
        let anchors = policy.anchors().unwrap().with_carried(lists);
        match evidence.verify(&nonce(), &Binding::None, &anchors, now()) {
            Ok(verified) => {
                let result = appraise_device(verified, &policy);
                assert_eq!(result.verdict(), Verdict::Affirming);
                let json = result.to_json();
                let claims = &json["submods"]["device"]["ear_verifier_claims"];
                assert_eq!(claims["revocation"], json!(["not revoked"]));
                "accepted"
            }
            Err(refusal) => refusal.code(),
        }
    };
    let revoking = host.revocation_list(2, DAY, &[&device.certificate]);
    assert_eq!(code(Some(&host.revocation_list(1, DAY, &[]))), "accepted");
    assert_eq!(code(Some(&revoking)), "revoked");
    assert_eq!(code(None), "crl-missing");
    assert_eq!(
        code(Some(&host.revocation_list(1, 4 * DAY, &[]))),
        "crl-too-old"
    );

    // Whoever verifies without the demand is found out by the appraisal.
    let lax = device.policy();
    let verified = evidence.verify(&nonce(), &Binding::None, lax.anchors().unwrap(), now());
    let result = appraise_device(verified.unwrap(), &policy);
    assert_eq!(result.verdict(), Verdict::Contraindicated);
    assert_eq!(result.layer().reasons()[0].code, "revocation-unchecked");
}
