//! `openssl verify -x509_strict` agrees with us about what we issue.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use cert_chain::pem::encode_certificate;
use cert_chain::{EkSpec, EndorsementKey, PublicArea, TpmDevice, VrotId, issue_ek_certificate};
use rcgen::KeyPair;
use rsa::rand_core::OsRng;
use test_support::tool::Tool;

use crate::support::{ENDORSEMENT, Tree, now, vik_spec, years};

/// Whether openssl accepts `leaf` below `host` below the tree's root.
fn verify(folder: &Path, tree: &Tree, leaf: &[u8], host: &[u8]) -> Result<()> {
    fs::write(folder.join("root.pem"), tree.issuer.certificate_pem())?;
    fs::write(folder.join("host.pem"), encode_certificate(host))?;
    fs::write(folder.join("leaf.pem"), encode_certificate(leaf))?;
    Tool::new("openssl")
        .args(["verify", "-x509_strict", "-check_ss_sig", "-attime"])
        .arg(now().as_secs().to_string())
        .args(["-CAfile", "root.pem", "-untrusted", "host.pem", "leaf.pem"])
        .folder(folder)
        .run()
        .map(drop)
}

#[test]
fn openssl_accepts_the_chain_of_a_vik() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let tree = Tree::new();
    let vik = tree.vik(&vik_spec(&KeyPair::generate()?));
    verify(folder.path(), &tree, &vik, &tree.host)
}

#[test]
fn openssl_accepts_both_kinds_of_ek_certificate() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let tree = Tree::named(&"h".repeat(20), &format!("{}.example", "d".repeat(35)));
    let rsa = rsa::RsaPrivateKey::new(&mut OsRng, 2048)?.to_public_key();
    let rsa = crate::support::rsa_storage_area(&rsa, ENDORSEMENT, &[7; 32]);
    let keys = [
        EndorsementKey::try_from(PublicArea::parse(&rsa)?)?,
        crate::support::p256_endorsement_key(&KeyPair::generate()?),
    ];
    for ek in keys {
        let spec = EkSpec {
            vrot: VrotId::random(),
            ek,
            device: TpmDevice {
                manufacturer: 0x4942_4d00,
                firmware_version: 0x2019_1023,
                specification_level: 0,
                specification_revision: 164,
            },
            validity: years(1),
        };
        let certificate = issue_ek_certificate(&spec, &tree.host_key, &tree.host)?;
        verify(folder.path(), &tree, &certificate, &tree.host)?;
    }
    Ok(())
}

#[test]
fn openssl_refuses_a_host_outside_its_names_too() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let tree = Tree::new();
    let issuer = rcgen::Issuer::from_ca_cert_der(&tree.host, &tree.host_key)?;
    for (name, accepted) in [
        ("x.host-1.demo.example", true),
        ("x.host-2.demo.example", false),
    ] {
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()])?;
        params.use_authority_key_identifier_extension = true;
        params.is_ca = rcgen::IsCa::ExplicitNoCa;
        let leaf = params.signed_by(&KeyPair::generate()?, &issuer)?;
        let verdict = verify(folder.path(), &tree, leaf.der(), &tree.host);
        ensure!(verdict.is_ok() == accepted, "{name}: {verdict:?}");
    }
    Ok(())
}
