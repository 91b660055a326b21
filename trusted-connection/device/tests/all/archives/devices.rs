//! Archives of what a device signed.

use attestation::device::fixture::FixtureDevice;
use attestation::fixture::{TLS, certification, sign, signing_area_with};
use attestation::{Binding, KeyStatement, data_key_qualifying_data};
use cert_chain::template::DATA_KEY_POLICY;
use cert_chain::{Digest32, PublicArea};
use rcgen::KeyPair;
use signed_data::{
    Certificates, Content, Credentials, EvidenceReference, Label, Source, ToBeSigned,
    evidence_nonce,
};

use super::scene::{DATA, DAY, HOUR, SIGNED, Scene};
use attestation::fixture::sign_fixed;

/// A device of the scene's issuer, its policy, and what it signed in place of the VM.
fn with_device(scene: &Scene) -> FixtureDevice {
    let device = FixtureDevice::under(scene.host.issuer_again(), "plant-7/meter-12");
    let key = KeyPair::generate().unwrap();
    let area = signing_area_with(&key, TLS, &DATA_KEY_POLICY);
    let name = PublicArea::parse(&area).unwrap().name();
    let content = Content::Attached(DATA.to_vec());
    let nonce = evidence_nonce(&name, 7, &content.digest()).unwrap();
    let evidence = device.evidence(&nonce, Binding::SignedData).to_cbor();
    let label = Label {
        key: name,
        source: Source::Device(device.name.clone()),
        stream: "meter-12/energy".parse().unwrap(),
        sequence: 7,
        time: SIGNED,
        content_type: "application/json".parse().unwrap(),
        evidence: Some(EvidenceReference {
            digest: Digest32::of(&evidence),
            taken: SIGNED - 2,
        }),
    };
    let attest = certification(&area, data_key_qualifying_data().as_bytes());
    let identity_key = device.public.public_area().as_bytes();
    let credentials = Credentials {
        certificates: Certificates::Device(device.certificate.to_vec().into()),
        identity_key: identity_key.to_vec().into(),
        statement: KeyStatement {
            public: area.into(),
            signature: sign(&device.key, &attest),
            attest: attest.into(),
        },
        evidence: Some(evidence.into()),
    };
    let unsigned = ToBeSigned::new(label, content).unwrap();
    let signature = sign_fixed(&key, &unsigned.message());
    let signed = unsigned.signed(signature, credentials);
    scene.write("reading.signed", &signed.to_cbor());
    scene.write("policy.toml", device.policy_text().as_bytes());
    device
}

#[test]
fn what_a_device_signed_is_archived_and_counts_unless_it_was_revoked_before() {
    let scene = Scene::new();
    let device = with_device(&scene);
    scene.archived_by(&scene.authority(3650, "first.pem"));
    scene.revoke(&device.certificate, SIGNED + HOUR, "later.crl");
    scene.revoke(&device.certificate, SIGNED - 60, "before.crl");
    let at = SIGNED + 1000 * DAY;
    let (status, told) = scene.verify(at, "first.pem", " --crl later.crl");
    assert_eq!(
        (status, &told["verdict"]),
        (0, &"affirming".into()),
        "{told:#}"
    );
    assert_eq!(told["data"]["source"]["device"], device.name.to_string());
    let (status, told) = scene.verify(at, "first.pem", " --crl before.crl");
    assert_eq!(
        (status, &told["refusal"]["code"]),
        (1, &"chain".into()),
        "{told:#}"
    );
}
