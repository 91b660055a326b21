//! Keys that sign data, as their TPM certifies them: for data, and nothing else.

use attestation::certification::CertificationError;
use attestation::fixture::{
    ATTESTATION, Host, TLS, Vm, certification, sign, signing_area, signing_area_with,
};
use attestation::{KeyStatement, data_key_qualifying_data};
use cert_chain::attestation_key::AttestationKeyError;
use cert_chain::template::DATA_KEY_POLICY;
use cert_chain::{AttestationKey, DataKey, Digest32, ObjectAttributes, PublicArea, TlsKey};

fn statement(vm: &Vm, public: Vec<u8>, said: &[u8]) -> KeyStatement {
    let attest = certification(&public, said);
    KeyStatement {
        public: public.into(),
        signature: sign(&vm.key, &attest),
        attest: attest.into(),
    }
}

fn vik(vm: &Vm) -> AttestationKey {
    let area = PublicArea::parse(&vm.public).unwrap();
    AttestationKey::try_from(area).unwrap()
}

#[test]
fn a_key_for_data_is_certified_for_data_by_the_vm_s_own_tpm() {
    let host = Host::new("host-1");
    let (vm, other) = (host.vm(), host.vm());
    let public = signing_area_with(&vm.tls_key, TLS, &DATA_KEY_POLICY);
    let said = data_key_qualifying_data();
    let genuine = statement(&vm, public.clone(), said.as_bytes());
    let key = genuine.verify::<DataKey>(&vik(&vm)).unwrap();
    assert_eq!(key.public_area().as_bytes(), public);
    assert!(matches!(
        genuine.verify::<DataKey>(&vik(&other)),
        Err(CertificationError::Signature(_))
    ));
    // The same key, certified for something else.
    for said in [&[][..], Digest32::of(b"other").as_bytes()] {
        assert!(matches!(
            statement(&vm, public.clone(), said).verify::<DataKey>(&vik(&vm)),
            Err(CertificationError::OtherPurpose)
        ));
    }
    // What was certified is another key.
    let neighbour = signing_area_with(&other.tls_key, TLS, &DATA_KEY_POLICY);
    let exchanged = KeyStatement {
        public: neighbour.into(),
        ..genuine
    };
    assert!(matches!(
        exchanged.verify::<DataKey>(&vik(&vm)),
        Err(CertificationError::OtherKey)
    ));
}

#[test]
fn keys_for_tls_and_attestation_and_keys_that_can_move_sign_no_data() {
    let host = Host::new("host-1");
    let vm = host.vm();
    let said = data_key_qualifying_data();
    let without =
        |attribute: ObjectAttributes| ObjectAttributes::from_bits(TLS.bits() & !attribute.bits());
    let other_mark = [1; 32];
    for (area, error) in [
        (
            signing_area(&vm.tls_key, TLS),
            AttestationKeyError::OtherPurpose,
        ),
        (
            signing_area_with(&vm.tls_key, TLS, &other_mark),
            AttestationKeyError::OtherPurpose,
        ),
        (
            signing_area_with(&vm.tls_key, ATTESTATION, &DATA_KEY_POLICY),
            AttestationKeyError::Restricted,
        ),
        (
            signing_area_with(
                &vm.tls_key,
                without(ObjectAttributes::SENSITIVE_DATA_ORIGIN),
                &DATA_KEY_POLICY,
            ),
            AttestationKeyError::NotSensitiveDataOrigin,
        ),
        (
            signing_area_with(
                &vm.tls_key,
                without(ObjectAttributes::FIXED_TPM),
                &DATA_KEY_POLICY,
            ),
            AttestationKeyError::NotFixedTpm,
        ),
    ] {
        let refused = statement(&vm, area, said.as_bytes()).verify::<DataKey>(&vik(&vm));
        let Err(CertificationError::Attributes(found)) = refused else {
            panic!("{error}: {refused:?}");
        };
        assert_eq!(found, error);
    }
}

#[test]
fn a_key_for_data_is_none_for_tls_whatever_its_tpm_said() {
    let host = Host::new("host-1");
    let vm = host.vm();
    let public = signing_area_with(&vm.tls_key, TLS, &DATA_KEY_POLICY);
    let refused = vm.statement_about(public).verify::<TlsKey>(&vik(&vm));
    assert!(matches!(
        refused,
        Err(CertificationError::Attributes(
            AttestationKeyError::OtherPurpose
        ))
    ));
    // Nor is a statement for data one about a key for TLS.
    let public = signing_area(&vm.tls_key, TLS);
    let for_data = statement(&vm, public, data_key_qualifying_data().as_bytes());
    assert!(matches!(
        for_data.verify::<TlsKey>(&vik(&vm)),
        Err(CertificationError::OtherPurpose)
    ));
}
