//! Evidence that is refused for whose it is: certificates, roots and keys.

use std::time::Duration;

use attestation::fixture::{
    ATTESTATION, Host, NOW, certificate_for_another_key, endorsement_area, nonce, now, signing_area,
};
use attestation::{Binding, Layer, Purpose, Refusal};
use cert_chain::{ChainError, HostIkSpec, Issuer, ObjectAttributes, TrustAnchors, Validity};
use rustls_pki_types::UnixTime;

use crate::scene::{code_of, host_and_vm, verify_at};

fn seconds(since_1970: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(since_1970))
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
fn an_expired_certificate_of_the_host_is_refused_while_the_vrots_is_valid() {
    let (host, vm) = host_and_vm();
    const DAY: u64 = 86_400;
    let certified = |from: u64| {
        let validity = Validity::starting(seconds(from), Duration::from_secs(DAY)).unwrap();
        let spec = HostIkSpec {
            host: host.name.clone(),
            ik: host.public.clone(),
            ek: host.public.name(),
            policy_key: host.public.name(),
            validity,
        };
        host.issuer.certify_host(&spec).unwrap()
    };
    let mut evidence = host.evidence(&vm, &nonce(), Binding::None);
    evidence.vm.chain[1] = certified(NOW - 3 * DAY).to_vec().into();
    let at = seconds(NOW + 60);
    let refusal = verify_at(&host, &evidence, at).unwrap_err();
    assert_eq!(refusal.code(), "certificate-expired");
    assert!(
        matches!(
            refusal,
            Refusal::Chain(ChainError::Expired { not_after, .. }) if not_after < NOW - DAY
        ),
        "{refusal:?}"
    );
    evidence.vm.chain[1] = certified(NOW + 2 * DAY).to_vec().into();
    let refusal = verify_at(&host, &evidence, at).unwrap_err();
    assert_eq!(refusal.code(), "certificate-not-yet-valid");
}

/// Nobody checks a root's own signature, so its dates can be written over.
#[test]
fn a_root_that_expired_or_is_not_valid_yet_is_refused_unless_its_successor_is_trusted() {
    let (host, vm) = host_and_vm();
    let evidence = host.evidence(&vm, &nonce(), Binding::None);
    let noon = b"260601120000Z";
    let with_date = |number: usize| {
        let mut der = host.issuer.certificate().to_vec();
        // UTCTime with 13 characters; notBefore comes first.
        let mut dates = der.windows(2).enumerate().filter(|(_, w)| *w == [0x17, 13]);
        let (position, _) = dates.nth(number).unwrap();
        der[position + 2..position + 15].copy_from_slice(noon);
        cert_chain::pem::encode_certificate(&der)
    };
    let verify = |roots: &str, hours: u64| {
        let anchors = TrustAnchors::from_pem(roots).unwrap();
        let at = seconds(NOW + hours * 3600);
        evidence.verify(&nonce(), &Purpose::Challenge, &anchors, at)
    };
    for (number, refused, accepted, code) in [
        (0, 11, 13, "root-not-yet-valid"),
        (1, 13, 11, "root-expired"),
    ] {
        let root = with_date(number);
        assert_eq!(verify(&root, refused).unwrap_err().code(), code);
        let verified = verify(&root, accepted).unwrap();
        assert!(verified.chain().not_after() <= seconds(NOW + 24 * 3600));
        let both = root + &host.issuer.certificate_pem();
        assert!(verify(&both, refused).is_ok());
    }
    let verified = verify(&with_date(1), 11).unwrap();
    assert_eq!(verified.chain().not_after(), seconds(NOW + 12 * 3600));
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
    let honest = host.evidence(&vm, &nonce(), Binding::None);
    // The signatures verify with these keys, and the certificates are for them.
    let mut evidence = honest.clone();
    evidence.vm.vik_public = endorsement_area(&vm.key).into();
    assert_eq!(code_of(&host, &evidence), "endorsement-key");
    let mut evidence = honest.clone();
    evidence.host.host_ik_public = endorsement_area(&host.key).into();
    assert_eq!(code_of(&host, &evidence), "endorsement-key");
    // Nor does a key pass that would do both.
    let mut evidence = honest;
    let both = ATTESTATION.with(ObjectAttributes::DECRYPT);
    evidence.vm.vik_public = signing_area(&vm.key, both).into();
    let refusal = verify_at(&host, &evidence, now()).unwrap_err();
    assert_eq!(refusal.code(), "endorsement-key");
    let told = refusal.explanation();
    assert!(
        told.contains("endorsement key is no attestation key"),
        "{told}"
    );
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
