//! A file with sealed data, as whoever gets at a VM's disk may write it.

use std::sync::LazyLock;

use vrot_service::sealing::{ContentKey, Header, SealedTo, stream};

use super::Target;

/// The file: its beginning, and the data behind it under a key that is known here.
pub(super) const SEALED_DATA: Target = Target {
    name: "sealed-data",
    run: |input| {
        let mut rest = input;
        let Ok(header) = Header::read(&mut rest) else {
            return;
        };
        let length = input.len() - rest.len();
        assert!(
            input.get(..length) == Some(header.to_bytes().as_slice()),
            "there is one encoding only"
        );
        let mut data = Vec::new();
        let opened = stream::open(&SCENE.key, &header.digest(), &mut rest, &mut data);
        if opened.is_ok() {
            assert!(
                SCENE.files.iter().any(|file| file == input),
                "a changed file opens"
            );
        }
    },
    seeds: || Ok(SCENE.files.clone()),
};

struct Scene {
    key: ContentKey,
    files: Vec<Vec<u8>>,
}

static SCENE: LazyLock<Scene> = LazyLock::new(|| match scene() {
    Ok(scene) => scene,
    Err(error) => panic!("no sealed data: {error:#}"),
});

fn scene() -> anyhow::Result<Scene> {
    use anyhow::Context;
    use cert_chain::operator::PolicyKey;
    use cert_chain::{HashAlgorithm, PcrValues};

    let key = ContentKey::from_bytes(&[7; stream::KEY_LENGTH]).context("a key")?;
    let values = [(0, "11"), (7, "22")].map(|(pcr, byte)| (pcr, byte.repeat(32)));
    let values = values.iter().map(|(pcr, value)| (*pcr, value.as_str()));
    let boot = PcrValues::from_hex(HashAlgorithm::Sha256, values)?;
    let policy_key = PolicyKey::generate()?.public().clone();
    let mut files = Vec::new();
    for to in [
        SealedTo::Vrot,
        SealedTo::Boot(boot),
        SealedTo::Approved(policy_key),
    ] {
        let parent = format!("000b{}", "33".repeat(32)).parse()?;
        let header = Header::new(to, parent, vec![4; 80], vec![5; 150]);
        let mut file = header.to_bytes();
        let mut data = &b"data"[..];
        stream::seal(&key, &header.digest(), &mut data, &mut file)?;
        files.push(file);
    }
    Ok(Scene { key, files })
}
