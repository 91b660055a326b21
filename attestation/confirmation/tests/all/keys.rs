use attestation::certification::CertificationError;
use attestation::fixture::{ATTESTATION, Host, TLS, certification, sign, signing_area_with};
use attestation::{KeyStatement, confirmation_key_qualifying_data, data_key_qualifying_data};
use cert_chain::attestation_key::AttestationKeyError;
use cert_chain::template::DATA_KEY_POLICY;
use cert_chain::{AttestationKey, ConfirmationKey, DataKey, ObjectAttributes, PublicArea};

#[test]
fn a_key_that_no_pin_gates_or_that_is_for_something_else_confirms_nothing() {
    use AttestationKeyError as E;
    let host = Host::new("host-1");
    let vm = host.vm();
    let ik = AttestationKey::try_from(PublicArea::parse(&vm.public).unwrap()).unwrap();
    let policy = ConfirmationKey::policy();
    let [auth_value, _] = ConfirmationKey::policy_branches();
    let statement = |attributes, policy: &[u8], said: &[u8]| {
        let public = signing_area_with(&vm.tls_key, attributes, policy);
        let attest = certification(&public, said);
        KeyStatement {
            public: public.into(),
            signature: sign(&vm.key, &attest),
            attest: attest.into(),
        }
    };
    let said = confirmation_key_qualifying_data();
    let said = said.as_bytes();
    assert!(
        statement(TLS, policy.as_bytes(), said)
            .verify::<ConfirmationKey>(&ik)
            .is_ok()
    );
    for (attributes, policy, expected) in [
        // Its authorization value alone would do, without the policy; and guesses would be free.
        (
            TLS.with(ObjectAttributes::USER_WITH_AUTH),
            policy.as_bytes().as_slice(),
            E::NotGated,
        ),
        (
            TLS.with(ObjectAttributes::NO_DA),
            policy.as_bytes(),
            E::NotGated,
        ),
        // A PIN, but any purpose; keys for TLS and for data; an attestation key.
        (TLS, auth_value.as_bytes(), E::OtherPurpose),
        (TLS, &[], E::OtherPurpose),
        (TLS, &DATA_KEY_POLICY, E::OtherPurpose),
        (ATTESTATION, policy.as_bytes(), E::Restricted),
    ] {
        let refused = statement(attributes, policy, said).verify::<ConfirmationKey>(&ik);
        let Err(CertificationError::Attributes(found)) = refused else {
            panic!("{expected}: {refused:?}");
        };
        assert_eq!(found, expected);
    }
    // The right key, certified as something else.
    let elsewhere = statement(
        TLS,
        policy.as_bytes(),
        data_key_qualifying_data().as_bytes(),
    );
    assert!(matches!(
        elsewhere.verify::<ConfirmationKey>(&ik),
        Err(CertificationError::OtherPurpose)
    ));
    // And it is no key for data.
    assert!(matches!(
        elsewhere.verify::<DataKey>(&ik),
        Err(CertificationError::Attributes(E::OtherPurpose))
    ));
}
