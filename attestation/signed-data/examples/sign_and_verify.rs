//! Signs a reading as a device does, and judges it as whoever reads it does:
//!
//! ```text
//! cargo run -p signed-data --example sign_and_verify
//! ```
//!
//! The device's TPM is in software here, so that the example runs everywhere; `vrot-device sign` does the same
//! with a real one.

use attestation::device::fixture::FixtureDevice;
use attestation::fixture::{Host, NOW, TLS, certification, now, sign, signing_area_with};
use attestation::{KeyStatement, PolicyAbout, data_key_qualifying_data};
use cert_chain::PublicArea;
use cert_chain::template::DATA_KEY_POLICY;
use p256::ecdsa::Signature;
use rcgen::{KeyPair, SigningKey};
use signed_data::{
    Certificates, Content, Credentials, Demand, Label, SignedData, Source, ToBeSigned, appraise,
};

fn main() -> anyhow::Result<()> {
    // A device that an issuer has certified, and a key for data that its TPM's identity key has certified.
    let device = FixtureDevice::under(Host::new("host-1").issuer, "plant-7/meter-12");
    let key = KeyPair::generate()?;
    let public = signing_area_with(&key, TLS, &DATA_KEY_POLICY);
    let attest = certification(&public, data_key_qualifying_data().as_bytes());

    // What is signed: the data, and what is said about them.
    let label = Label {
        key: PublicArea::parse(&public)?.name(),
        source: Source::Device(device.name.clone()),
        stream: "meter-12/energy".parse()?,
        sequence: 42,
        time: NOW,
        content_type: "application/json".parse()?,
        evidence: None,
    };
    let data = Content::Attached(br#"{"kWh":1234}"#.to_vec());
    let unsigned = ToBeSigned::new(label, data)?;
    let signature = Signature::from_der(&key.sign(&unsigned.message())?)?;
    let credentials = Credentials {
        certificates: Certificates::Device(device.certificate.to_vec().into()),
        identity_key: device.public.public_area().as_bytes().to_vec().into(),
        statement: KeyStatement {
            public: public.into(),
            signature: sign(&device.key, &attest),
            attest: attest.into(),
        },
        evidence: None,
    };
    let file = unsigned
        .signed(signature.to_bytes().into(), credentials)
        .to_cbor();

    // Elsewhere, and later: the file, and a policy about devices with the roots that it trusts.
    let policy = device.policy();
    let anchors = (policy.anchors().cloned())
        .ok_or_else(|| anyhow::anyhow!("the policy accepts no device"))?;
    let verified = SignedData::from_cbor(&file)?.verify(None, &anchors, now())?;
    let demand = Demand {
        after: Some(41),
        identity_alone: true,
        ..Demand::default()
    };
    let result = appraise(verified, &PolicyAbout::from(policy), &demand)?;
    let label = result.data().label();
    println!(
        "number {} of {} in {}: {}",
        label.sequence,
        label.source,
        label.stream,
        result.verdict()
    );
    Ok(())
}
