//! Evidence of many VMs for their tenant, which their host makes without them.

use attestation::evidence::EvidenceError;
use attestation::evidence_set::{
    MAX_EVIDENCE_SET, MAX_VMS, Unquoted, VerifiedSet, VmOutcome, appraise_set, said_purpose,
};
use attestation::fixture::{Host, Vm, nonce, now};
use attestation::{
    Binding, Evidence, EvidenceSet, HostLeaf, Nonce, Policy, Purpose, QuotePurpose, Refusal,
    Verdict, request_digest, tenant_request_digest,
};
use cert_chain::VmId;

use crate::scene::anchors;

const PINNED_PCRS: &str = "[vm.without_log]\ndemand = [\"pinned-pcrs\"]\n";

fn host_and_vms() -> (Host, [Vm; 3]) {
    let host = Host::new("host-1");
    let vms = [(); 3].map(|()| host.vm());
    (host, vms)
}

fn verify(host: &Host, set: &EvidenceSet) -> Result<VerifiedSet, Refusal> {
    set.verify(&nonce(), &anchors(host), now())
}

/// What the only VM of a set is refused for.
fn code_of(host: &Host, set: &EvidenceSet) -> &'static str {
    match verify(host, set) {
        Err(refusal) => refusal.code(),
        Ok(verified) => match verified.vms() {
            [Err(refused)] => refused.refusal.code(),
            other => panic!("{other:?}"),
        },
    }
}

/// One that accepts every VM of the tenant that booted as this one.
fn policy(host: &Host, vm: &Vm) -> Policy {
    let text = host.policy_text(vm) + PINNED_PCRS;
    let text: String = (text.lines())
        .filter(|line| !line.starts_with("vm = "))
        .flat_map(|line| [line, "\n"])
        .collect();
    host.read_policy(&text).unwrap()
}

#[test]
fn each_vm_of_an_honest_set_is_affirmed() {
    let (host, vms) = host_and_vms();
    let set = host.evidence_set(&vms.each_ref(), &nonce());
    let set = EvidenceSet::from_cbor(&set.to_cbor()).unwrap();
    let result = appraise_set(verify(&host, &set).unwrap(), &policy(&host, &vms[0]));
    assert_eq!(result.verdict(), Verdict::Affirming);
    let told: Vec<_> = result.vms().iter().map(VmOutcome::vm).collect();
    assert_eq!(told, vms.each_ref().map(|vm| Some(vm.vm)));
    for outcome in result.vms() {
        let VmOutcome::Appraised(result) = outcome else {
            panic!("{outcome:?}");
        };
        let told = &result.to_json()["submods"]["vm"]["ear_attester_claims"];
        let told = told.to_string();
        assert!(
            told.contains("tenant") && told.contains("pcrs-alone"),
            "{told}"
        );
    }
}

/// The guest has its vIK sign what a host would have it sign, and its host state what it states for any
/// guest that asks, about whichever digest it hands over.
#[test]
fn a_guest_that_makes_a_tenants_evidence_about_itself_is_refused() {
    let host = Host::new("host-1");
    let vm = host.vm();
    let forged = host.evidence_set_with(&[&vm], &nonce(), |leaf| HostLeaf {
        purpose: QuotePurpose::Service,
        ..leaf
    });
    assert_eq!(code_of(&host, &forged), "purpose");
    // Nor does it help to claim another purpose in what the host signed.
    let mut relabelled = forged.clone();
    let leaf = HostLeaf::decode(&relabelled.vms[0].leaf).unwrap();
    relabelled.vms[0].leaf = HostLeaf {
        purpose: QuotePurpose::Tenant,
        ..leaf
    }
    .encode()
    .into();
    assert_eq!(code_of(&host, &relabelled), "inclusion");
}

/// A host has a vRoT quote, and somebody passes the answer off as that of a service in the VM.
#[test]
fn what_a_host_states_for_a_tenant_is_refused_as_a_services() {
    let host = Host::new("host-1");
    let vm = host.vm();
    let layer = vm.layer(&host, &nonce(), Binding::None);
    for request in [request_digest, tenant_request_digest] {
        let leaf = HostLeaf {
            purpose: QuotePurpose::Tenant,
            request: request(&layer.attest, &layer.signature),
            ..host.leaf(&vm, &layer)
        };
        let evidence = Evidence::new(layer.clone(), host.layer(&[leaf], 0));
        let verified = evidence.verify(&nonce(), &Purpose::Challenge, &anchors(&host), now());
        assert_eq!(verified.unwrap_err().code(), "purpose");
    }
    // The quote alone is of another purpose, too.
    let set = host.evidence_set(&[&vm], &nonce());
    let mut layer = layer;
    layer.attest = set.vms[0].attest.clone();
    layer.signature = set.vms[0].signature.clone();
    let leaf = host.leaf(&vm, &layer);
    let evidence = Evidence::new(layer, host.layer(&[leaf], 0));
    let verified = evidence.verify(&nonce(), &Purpose::Challenge, &anchors(&host), now());
    assert_eq!(verified.unwrap_err().code(), "qualifying-data");
}

#[test]
fn a_set_for_another_nonce_is_refused() {
    let (host, vms) = host_and_vms();
    let old = Nonce::new([1; 32]).unwrap();
    let mut set = host.evidence_set(&[&vms[0]], &old);
    assert_eq!(code_of(&host, &set), "nonce");
    set.nonce = nonce();
    assert_eq!(code_of(&host, &set), "qualifying-data");
}

#[test]
fn a_statement_about_another_vm_or_another_quote_is_refused() {
    let (host, vms) = host_and_vms();
    let honest = host.evidence_set(&[&vms[0], &vms[1]], &nonce());
    let mut swapped = honest.clone();
    swapped.vms.truncate(1);
    swapped.vms[0].leaf = honest.vms[1].leaf.clone();
    swapped.vms[0].index = honest.vms[1].index;
    swapped.vms[0].path = honest.vms[1].path.clone();
    assert_eq!(code_of(&host, &swapped), "request");
    let mut earlier = host.evidence_set(&[&vms[0]], &Nonce::new([1; 32]).unwrap());
    let fresh = host.evidence_set(&[&vms[0]], &nonce());
    earlier.nonce = nonce();
    earlier.vms[0].attest = fresh.vms[0].attest.clone();
    earlier.vms[0].signature = fresh.vms[0].signature.clone();
    assert_eq!(code_of(&host, &earlier), "request");
    let other = Host::under(host.issuer_again(), "host-2");
    let mut moved = other.evidence_set(&[&vms[0]], &nonce());
    moved.host.certificate = host.certificate.to_vec().into();
    assert_eq!(code_of(&host, &moved), "host-mismatch");
}

#[test]
fn what_is_wrong_with_one_vm_is_told_of_that_one() {
    let (host, vms) = host_and_vms();
    let mut set = host.evidence_set(&vms.each_ref(), &nonce());
    set.vms[1].pcr_values[0] ^= 1;
    let result = appraise_set(verify(&host, &set).unwrap(), &policy(&host, &vms[0]));
    let verdicts: Vec<_> = result.vms().iter().map(VmOutcome::verdict).collect();
    assert_eq!(
        verdicts,
        [
            Verdict::Affirming,
            Verdict::Contraindicated,
            Verdict::Affirming
        ]
    );
    assert_eq!(result.verdict(), Verdict::Contraindicated);
    let VmOutcome::Refused(refused) = &result.vms()[1] else {
        panic!("{:?}", result.vms()[1]);
    };
    assert_eq!(refused.refusal.code(), "pcr-values");
    assert_eq!(refused.vm, Some(vms[1].vm));
    assert_eq!(
        result.of(&[vms[0].vm, vms[2].vm]).verdict(),
        Verdict::Affirming
    );
    set.host.pcr_values[0] ^= 1;
    assert_eq!(verify(&host, &set).unwrap_err().code(), "pcr-values");
}

/// Whoever asks for a VM and gets nothing about it must not take that for a good sign.
#[test]
fn a_vm_of_which_a_set_says_nothing_is_not_affirmed() {
    let (host, vms) = host_and_vms();
    let policy = policy(&host, &vms[0]);
    let mut set = host.evidence_set(&[&vms[0]], &nonce());
    let appraised = |set: &EvidenceSet| appraise_set(verify(&host, set).unwrap(), &policy);
    assert_eq!(
        appraised(&set).of(&[vms[0].vm]).verdict(),
        Verdict::Affirming
    );
    let missing = appraised(&set).of(&[vms[0].vm, vms[1].vm]);
    assert_eq!(missing.verdict(), Verdict::Warning);
    assert_eq!(missing.unquoted()[0].vm, vms[1].vm);
    set.unquoted.push(Unquoted {
        vm: vms[1].vm,
        reason: "its TPM is off".to_owned(),
    });
    let set = EvidenceSet::from_cbor(&set.to_cbor()).unwrap();
    assert_eq!(appraised(&set).verdict(), Verdict::Warning);
    assert_eq!(
        appraised(&set).of(&[vms[0].vm]).verdict(),
        Verdict::Affirming
    );
    set.verify(&nonce(), &anchors(&host), now()).unwrap();
    let empty = host.evidence_set(&[&vms[0]], &nonce());
    let empty = EvidenceSet::new(nonce(), empty.host, Vec::new(), Vec::new());
    assert_eq!(appraised(&empty).verdict(), Verdict::Warning);
}

#[test]
fn no_changed_byte_of_a_set_goes_unseen() {
    let (host, vms) = host_and_vms();
    let anchors = anchors(&host);
    let mut set = host.evidence_set(&[&vms[0], &vms[1]], &nonce());
    set.vms.truncate(1);
    let bytes = set.to_cbor();
    for position in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut changed = bytes.clone();
            changed[position] ^= flip;
            let Ok(decoded) = EvidenceSet::from_cbor(&changed) else {
                continue;
            };
            let seen = match decoded.verify(&nonce(), &anchors, now()) {
                Err(_) => true,
                Ok(set) => !set.vms().is_empty() && set.vms().iter().all(Result::is_err),
            };
            assert!(seen, "byte {position} changed by {flip:#x} was not seen");
        }
    }
    for length in 0..bytes.len() {
        assert!(EvidenceSet::from_cbor(&bytes[..length]).is_err());
    }
    assert!(EvidenceSet::from_cbor(&[bytes.as_slice(), &[0]].concat()).is_err());
}

#[test]
fn a_set_is_bounded_before_it_is_read() {
    assert!(matches!(
        EvidenceSet::from_cbor(&vec![0; MAX_EVIDENCE_SET + 1]),
        Err(EvidenceError::TooLong { .. })
    ));
    let host = Host::new("host-1");
    let vm = host.vm();
    let mut set = host.evidence_set(&[&vm], &nonce());
    let unquoted = Unquoted {
        vm: VmId::random(),
        reason: String::new(),
    };
    set.unquoted = vec![unquoted.clone(); MAX_VMS];
    assert!(EvidenceSet::from_cbor(&set.to_cbor()).is_ok());
    set.unquoted.push(unquoted);
    assert!(EvidenceSet::from_cbor(&set.to_cbor()).is_err());
    set.unquoted.truncate(1);
    set.unquoted[0].reason = "x".repeat(513);
    assert!(EvidenceSet::from_cbor(&set.to_cbor()).is_err());
}

#[test]
fn what_bytes_are_for_is_told_by_their_form() {
    let host = Host::new("host-1");
    let vm = host.vm();
    let set = host.evidence_set(&[&vm], &nonce()).to_cbor();
    let evidence = host.evidence(&vm, &nonce(), Binding::None).to_cbor();
    assert_eq!(said_purpose(&set), Some(QuotePurpose::Tenant));
    assert_eq!(said_purpose(&evidence), Some(QuotePurpose::Service));
    assert!(Evidence::from_cbor(&set).is_err());
    assert!(EvidenceSet::from_cbor(&evidence).is_err());
    for bytes in [&[][..], &[0xa1, 0], &[0xa2, 0, 1, 1, 0xf6], &[0xff; 9]] {
        assert_eq!(said_purpose(bytes), None);
    }
}
