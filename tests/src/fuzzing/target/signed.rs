//! Data that a VM signed.

use std::sync::LazyLock;

use attestation::fixture::{Host, NOW, TLS, certification, now, sign, signing_area_with};
use attestation::{DataKeyStatement, Policy, data_key_qualifying_data};
use cert_chain::PublicArea;
use cert_chain::template::DATA_KEY_POLICY;
use p256::ecdsa::Signature;
use rcgen::{KeyPair, SigningKey};
use signed_data::{Content, Credentials, Label, SignedData, ToBeSigned};

use super::Target;

/// Whole signed data: decoding and verification.
pub(super) const SIGNED_DATA: Target = Target {
    name: "signed-data",
    run: |input| {
        let Ok(data) = SignedData::from_cbor(input) else {
            return;
        };
        assert!(data.to_cbor() == input, "there is one encoding only");
        let Ok(scene) = &*SCENE else { return };
        if data.verify(None, scene.policy.anchors(), now()).is_ok() {
            assert!(
                input == scene.signed,
                "signed data with a changed byte were verified"
            );
        }
    },
    seeds: || match &*SCENE {
        Ok(scene) => Ok(vec![scene.signed.clone()]),
        Err(error) => anyhow::bail!("{error:#}"),
    },
};

struct Scene {
    policy: Policy,
    signed: Vec<u8>,
}

static SCENE: LazyLock<anyhow::Result<Scene>> = LazyLock::new(|| {
    let host = Host::new("host-1");
    let vm = host.vm();
    let key = KeyPair::generate()?;
    let area = signing_area_with(&key, TLS, &DATA_KEY_POLICY);
    let attest = certification(&area, data_key_qualifying_data().as_bytes());
    let label = Label {
        key: PublicArea::parse(&area)?.name(),
        vm: vm.vm,
        stream: "room-1/temperature".parse()?,
        sequence: 7,
        time: NOW,
        content_type: "application/json".parse()?,
        evidence: None,
    };
    let certificates = [&vm.certificate, &host.certificate];
    let credentials = Credentials {
        chain: certificates.map(|der| der.to_vec().into()).to_vec(),
        vik_public: vm.public.clone().into(),
        statement: DataKeyStatement {
            public: area.into(),
            signature: sign(&vm.key, &attest),
            attest: attest.into(),
        },
        evidence: None,
    };
    let unsigned = ToBeSigned::new(label, Content::Attached(b"21.5".to_vec()))?;
    let signature = Signature::from_der(&key.sign(&unsigned.message())?)?;
    Ok(Scene {
        policy: host.policy(&vm),
        signed: unsigned
            .signed(signature.to_bytes().into(), credentials)
            .to_cbor(),
    })
});
