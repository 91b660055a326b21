//! What evidence is refused for: each lie has its own reason.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![expect(clippy::indexing_slicing, reason = "a panic is a failed test")]

use std::time::Duration;

use attestation::evidence::MAX_EVIDENCE;
use attestation::fixture::{
    ATTESTATION, Host, Vm, certificate_for_another_key, event_log, nonce, now, quote, sign,
    signing_area,
};
use attestation::merkle::{Tree, leaf_hash};
use attestation::qualifying::vm_qualifying_data;
use attestation::{
    BOOT_PCRS, Binding, EventLog, Evidence, Layer, Nonce, Refusal, VerifiedEvidence,
};
use cert_chain::{Digest32, Issuer, ObjectAttributes, TrustAnchors, Validity};
use rustls_pki_types::UnixTime;

fn host_and_vm() -> (Host, Vm) {
    let host = Host::new("host-1");
    let vm = host.vm();
    (host, vm)
}

fn anchors(host: &Host) -> TrustAnchors {
    TrustAnchors::from_pem(&host.issuer.certificate_pem()).unwrap()
}

fn verify_at(host: &Host, evidence: &Evidence, at: UnixTime) -> Result<VerifiedEvidence, Refusal> {
    evidence.verify(&nonce(), &Binding::None, &anchors(host), at)
}

fn code_of(host: &Host, evidence: &Evidence) -> &'static str {
    verify_at(host, evidence, now()).unwrap_err().code()
}

#[test]
fn honest_evidence_is_verified() {
    let (host, vm) = host_and_vm();
    let evidence = host.evidence(&vm, &nonce(), Binding::None);
    let decoded = Evidence::from_cbor(&evidence.to_cbor()).unwrap();
    let verified = verify_at(&host, &decoded, now()).unwrap();
    assert_eq!(verified.leaf().vm, vm.vm);
    assert_eq!(verified.chain().host().label(), "host-1");
}

#[test]
fn evidence_for_another_nonce_is_refused() {
    let (host, vm) = host_and_vm();
    let old = Nonce::new([1; 32]).unwrap();
    assert_eq!(
        code_of(&host, &host.evidence(&vm, &old, Binding::None)),
        "nonce"
    );
    // Writing the new nonce over the old does not help: the quote was made over the old one.
    let mut evidence = host.evidence(&vm, &old, Binding::None);
    evidence.vm.nonce = nonce();
    assert_eq!(code_of(&host, &evidence), "qualifying-data");
}

#[test]
fn evidence_for_another_purpose_is_refused() {
    let (host, vm) = host_and_vm();
    let binding = Binding::Key(Digest32::of(b"key"));
    let mut evidence = host.evidence(&vm, &nonce(), binding.clone());
    let refusal = verify_at(&host, &evidence, now()).unwrap_err();
    assert_eq!(refusal.code(), "binding");
    let text = format!("the evidence is for {binding}, but was asked for a challenge alone");
    assert_eq!(refusal.to_string(), text);
    evidence.vm.binding = Binding::None;
    assert_eq!(code_of(&host, &evidence), "qualifying-data");
}

#[test]
fn pcrs_that_the_log_does_not_account_for_are_refused() {
    let (host, vm) = host_and_vm();
    let mut evidence = host.evidence(&vm, &nonce(), Binding::None);
    // The vIK quotes other PCRs than the log leads to, with correct qualifying data.
    let other = attestation::fixture::pcrs(&event_log(&[(4, 0x8000_0003, b"rootkit")]), &BOOT_PCRS);
    let digest = Digest32::of(&vm.log);
    let attest = quote(
        &other,
        &vm_qualifying_data(&nonce(), &Binding::None, &digest),
    );
    evidence.vm.signature = sign(&vm.key, &attest);
    evidence.vm.attest = attest.into();
    let leaf = host.leaf(&vm, &evidence.vm);
    evidence.host = host.layer(&[leaf], 0);
    assert_eq!(code_of(&host, &evidence), "event-log-replay");
}

#[test]
fn an_altered_log_is_refused_in_both_layers() {
    let (host, vm) = host_and_vm();
    let honest = host.evidence(&vm, &nonce(), Binding::None);
    let altered = event_log(&[(0, 0x8000_0008, b"other firmware")]);

    let mut evidence = honest.clone();
    evidence.vm.event_log = altered.clone().into();
    assert_eq!(code_of(&host, &evidence), "event-log-altered");
    evidence.vm.event_log_digest = Digest32::of(&altered);
    assert_eq!(code_of(&host, &evidence), "qualifying-data");

    let mut evidence = honest;
    evidence.host.event_log = altered.clone().into();
    assert_eq!(code_of(&host, &evidence), "event-log-altered");
    evidence.host.event_log_digest = Digest32::of(&altered);
    assert_eq!(code_of(&host, &evidence), "qualifying-data");
}

#[test]
fn an_altered_leaf_is_refused() {
    let (host, vm) = host_and_vm();
    let mut evidence = host.evidence(&vm, &nonce(), Binding::None);
    evidence.host.leaf[40] ^= 1;
    assert_eq!(code_of(&host, &evidence), "inclusion");
}

#[test]
fn a_leaf_that_contradicts_the_certificate_is_refused() {
    let (host, vm) = host_and_vm();
    let evidence = host.evidence(&vm, &nonce(), Binding::None);
    let other = host.vm();
    let mut leaf = host.leaf(&vm, &evidence.vm);
    leaf.vm = other.vm;
    let lying = Evidence::new(evidence.vm.clone(), host.layer(&[leaf], 0));
    assert_eq!(code_of(&host, &lying), "leaf-mismatch");
}

#[test]
fn a_path_from_another_tree_is_refused() {
    let (host, vm) = host_and_vm();
    let mut evidence = host.evidence(&vm, &nonce(), Binding::None);
    let other = host.evidence(&host.vm(), &nonce(), Binding::None);
    evidence.host.path = other.host.path.clone();
    assert_eq!(code_of(&host, &evidence), "inclusion");
    // With the other tree's root as well, the host's signature is over another root.
    let mut leaf = host.leaf(&vm, &evidence.vm);
    leaf.salt = Digest32::of(b"another tree");
    let forged = host.layer(&[leaf], 0);
    evidence.host.root = forged.root;
    evidence.host.path = forged.path;
    evidence.host.leaf = forged.leaf;
    evidence.host.index = 0;
    evidence.host.tree_size = 1;
    assert_eq!(code_of(&host, &evidence), "qualifying-data");
    let mut evidence = host.evidence(&vm, &nonce(), Binding::None);
    evidence.host.path.pop();
    assert_eq!(code_of(&host, &evidence), "inclusion-path");
}

#[test]
fn a_vm_of_one_host_with_the_host_layer_of_another_is_refused() {
    let (host_a, vm) = host_and_vm();
    let host_b = Host::under(host_a.issuer_again(), "host-2");
    let mut evidence = host_a.evidence(&vm, &nonce(), Binding::None);
    let leaf = host_b.leaf(&vm, &evidence.vm);
    evidence.host = host_b.layer(&[leaf], 0);
    assert_eq!(code_of(&host_a, &evidence), "host-mismatch");
}

#[test]
fn a_host_layer_for_another_quote_of_the_same_vm_is_refused() {
    let (host, vm) = host_and_vm();
    let mut evidence = host.evidence(&vm, &nonce(), Binding::None);
    let earlier = host.evidence(&vm, &Nonce::new([1; 32]).unwrap(), Binding::None);
    evidence.host = earlier.host;
    assert_eq!(code_of(&host, &evidence), "request");
}

#[test]
fn a_certificate_from_another_issuer_is_refused() {
    let (host, vm) = host_and_vm();
    let evidence = host.evidence(&vm, &nonce(), Binding::None);
    let namesake = Host::new("host-1");
    assert_eq!(code_of(&namesake, &evidence), "certificate-signature");
    let years = Validity::starting(now(), Duration::from_secs(366 * 86400)).unwrap();
    let other = Issuer::create("other.example".parse().unwrap(), years).unwrap();
    let stranger = Host::under(other, "host-1");
    assert_eq!(code_of(&stranger, &evidence), "other-issuer");
}

#[test]
fn an_expired_certificate_is_refused() {
    let (host, vm) = host_and_vm();
    let evidence = host.evidence(&vm, &nonce(), Binding::None);
    let later = UnixTime::since_unix_epoch(Duration::from_secs(now().as_secs() + 86401));
    let earlier = UnixTime::since_unix_epoch(Duration::from_secs(now().as_secs() - 86400));
    let code = |at| verify_at(&host, &evidence, at).unwrap_err().code();
    assert_eq!(code(later), "certificate-expired");
    assert_eq!(code(earlier), "certificate-not-yet-valid");
}

#[test]
fn a_key_that_could_leave_its_tpm_or_sign_anything_is_refused() {
    let (host, vm) = host_and_vm();
    for missing in [
        ObjectAttributes::FIXED_TPM,
        ObjectAttributes::FIXED_PARENT,
        ObjectAttributes::SENSITIVE_DATA_ORIGIN,
        ObjectAttributes::RESTRICTED,
    ] {
        let attributes = ObjectAttributes::from_bits(ATTESTATION.bits() & !missing.bits());
        let mut evidence = host.evidence(&vm, &nonce(), Binding::None);
        evidence.vm.vik_public = signing_area(&vm.key, attributes).into();
        assert_eq!(code_of(&host, &evidence), "key-attributes");
        let mut evidence = host.evidence(&vm, &nonce(), Binding::None);
        evidence.host.host_ik_public = signing_area(&host.key, attributes).into();
        assert_eq!(code_of(&host, &evidence), "key-attributes");
    }
}

#[test]
fn an_artefact_signed_by_an_endorsement_key_is_refused() {
    let (host, vm) = host_and_vm();
    let mut evidence = host.evidence(&vm, &nonce(), Binding::None);
    let endorsement = ATTESTATION.with(ObjectAttributes::DECRYPT);
    evidence.vm.vik_public = signing_area(&vm.key, endorsement).into();
    let refusal = verify_at(&host, &evidence, now()).unwrap_err();
    let source = std::error::Error::source(&refusal).unwrap().to_string();
    assert!(source.contains("endorsement key"), "{source}");
}

#[test]
fn a_key_other_than_the_certified_one_is_refused() {
    let (host, vm) = host_and_vm();
    let mut evidence = host.evidence(&vm, &nonce(), Binding::None);
    let other = host.vm();
    evidence.vm.vik_public = other.public.into();
    assert_eq!(code_of(&host, &evidence), "key-mismatch");
}

/// Name and certificate of a key say the same thing twice; both are held against the key that
/// signed, so that a certificate whose claims name one key and that certifies another is no help.
#[test]
fn a_certificate_whose_claims_name_another_key_than_it_certifies_is_refused() {
    let (host, vm) = host_and_vm();
    let honest = host.evidence(&vm, &nonce(), Binding::None);
    let other = host.vm();

    let mut evidence = honest.clone();
    let forged = certificate_for_another_key(&vm.certificate, &vm.key, &other.key, &host.key);
    evidence.vm.chain[0] = forged.to_vec().into();
    let refusal = verify_at(&host, &evidence, now()).unwrap_err();
    assert!(
        matches!(refusal, Refusal::KeyMismatch(Layer::Vm)),
        "{refusal:?}"
    );

    // The host's certificate is for another key, which signs the vIK's certificate.
    let mut evidence = honest;
    let issuer = host.issuer_key();
    let forged = certificate_for_another_key(&host.certificate, &host.key, &other.key, &issuer);
    evidence.vm.chain[1] = forged.to_vec().into();
    let leaf = certificate_for_another_key(&vm.certificate, &vm.key, &vm.key, &other.key);
    evidence.vm.chain[0] = leaf.to_vec().into();
    let refusal = verify_at(&host, &evidence, now()).unwrap_err();
    assert!(
        matches!(refusal, Refusal::KeyMismatch(Layer::Host)),
        "{refusal:?}"
    );
}

#[test]
fn a_leaf_in_another_form_than_its_own_is_refused() {
    let (host, vm) = host_and_vm();
    let mut evidence = host.evidence(&vm, &nonce(), Binding::None);
    let mut leaf = host.leaf(&vm, &evidence.vm).encode();
    leaf.push(0);
    let mut layer = host.layer_over(&Tree::new(vec![leaf_hash(&leaf)]).unwrap(), 0);
    layer.leaf = leaf.into();
    evidence.host = layer;
    assert_eq!(code_of(&host, &evidence), "leaf-malformed");
}

#[test]
fn a_chain_that_is_one_certificate_too_long_or_too_short_is_refused() {
    let (host, vm) = host_and_vm();
    let honest = host.evidence(&vm, &nonce(), Binding::None);
    let mut longer = honest.clone();
    longer
        .vm
        .chain
        .push(host.issuer.certificate().to_vec().into());
    assert_eq!(code_of(&host, &longer), "chain-length");
    let mut shorter = honest;
    shorter.vm.chain.pop();
    assert_eq!(code_of(&host, &shorter), "chain-length");
}

#[test]
fn a_signed_statement_that_is_no_quote_is_refused() {
    let (host, vm) = host_and_vm();
    let mut evidence = host.evidence(&vm, &nonce(), Binding::None);
    let pcrs = attestation::fixture::pcrs(&vm.log, &BOOT_PCRS);
    let mut attest = quote(&pcrs, &Digest32::of(b"x"));
    attest[0] = 0x30;
    evidence.vm.signature = sign(&vm.key, &attest);
    evidence.vm.attest = attest.into();
    assert_eq!(code_of(&host, &evidence), "quote");
}

#[test]
fn no_changed_byte_goes_unseen() {
    let (host, vm) = host_and_vm();
    let evidence = host.evidence(&vm, &nonce(), Binding::None).to_cbor();
    let anchors = anchors(&host);
    for position in 0..evidence.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut changed = evidence.clone();
            changed[position] ^= flip;
            if let Ok(decoded) = Evidence::from_cbor(&changed) {
                let verified = decoded.verify(&nonce(), &Binding::None, &anchors, now());
                assert!(
                    verified.is_err(),
                    "byte {position} changed by {flip:#x} was not seen"
                );
            }
        }
    }
}

#[test]
fn truncated_extended_and_oversized_evidence_is_refused() {
    let (host, vm) = host_and_vm();
    let bytes = host.evidence(&vm, &nonce(), Binding::None).to_cbor();
    for length in 0..bytes.len() {
        assert!(Evidence::from_cbor(&bytes[..length]).is_err());
    }
    assert!(Evidence::from_cbor(&[bytes.as_slice(), &[0]].concat()).is_err());
    assert!(Evidence::from_cbor(&vec![0; MAX_EVIDENCE + 1]).is_err());
}

#[test]
fn the_fixture_quotes_what_it_logs() {
    let (_, vm) = host_and_vm();
    let log = EventLog::parse(&vm.log).unwrap();
    let pcrs = attestation::fixture::pcrs(&vm.log, &BOOT_PCRS);
    assert_eq!(pcrs.len(), BOOT_PCRS.len());
    assert_eq!(pcrs[&4], log.replay_sha256().value(4));
}
