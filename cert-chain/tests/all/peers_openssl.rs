//! OpenSSL agrees with us about what we issue, and about who is revoked.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use cert_chain::crl::CrlError;
use cert_chain::pem::{blocks, encode_certificate};
use cert_chain::{
    ChainError, Crl, EkSpec, EndorsementKey, PublicArea, RevocationDemand, RevocationError,
    RevocationReason, TpmDevice, VrotId, issue_vrot_certificate,
};
use rcgen::KeyPair;
use rsa::rand_core::OsRng;
use test_support::tool::Tool;

use crate::revocation::list;
use crate::support::{DAY, ENDORSEMENT, NOW, Tree, now, vik_spec, years};

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
        let certificate = issue_vrot_certificate(&spec, &tree.host_key, &tree.host)?;
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

/// Whether openssl accepts the tree's host beside this revocation list.
fn verify_with_list(folder: &Path, tree: &Tree, list: &Crl) -> Result<()> {
    fs::write(folder.join("root.pem"), tree.issuer.certificate_pem())?;
    fs::write(folder.join("host.pem"), encode_certificate(&tree.host))?;
    fs::write(folder.join("list.pem"), list.to_pem())?;
    Tool::new("openssl")
        .args([
            "verify",
            "-x509_strict",
            "-check_ss_sig",
            "-crl_check",
            "-attime",
        ])
        .arg(now().as_secs().to_string())
        .args(["-CAfile", "root.pem", "-CRLfile", "list.pem", "host.pem"])
        .folder(folder)
        .run()
        .map(drop)
}

#[test]
fn openssl_verifies_our_revocation_list_and_refuses_whom_it_names() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let tree = Tree::new();
    let clean = list(&tree.issuer, 4_711, NOW - DAY, &[]);
    verify_with_list(folder.path(), &tree, &clean)?;
    let revoking = list(&tree.issuer, 4_712, NOW - DAY, &[&tree.host]);
    let refused = verify_with_list(folder.path(), &tree, &revoking);
    ensure!(
        refused
            .as_ref()
            .is_err_and(|error| format!("{error:#}").contains("certificate revoked")),
        "{refused:?}"
    );
    let text = Tool::new("openssl")
        .args([
            "crl", "-in", "list.pem", "-CAfile", "root.pem", "-noout", "-text",
        ])
        .folder(folder.path())
        .text()?;
    for line in [
        "Version 2",
        "4712",
        "Key Compromise",
        "X509v3 Authority Key Identifier",
    ] {
        ensure!(text.contains(line), "{text}");
    }
    Ok(())
}

/// A day before the tests' time, and six days after it.
const DATES: [&str; 4] = [
    "-crl_lastupdate",
    "20260531000000Z",
    "-crl_nextupdate",
    "20260607000000Z",
];

/// What OpenSSL's own certificate authority makes with the tree's issuer.
struct OpensslCa {
    folder: tempfile::TempDir,
}

impl OpensslCa {
    fn new(tree: &Tree) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        for (name, contents) in [
            ("root.pem", tree.issuer.certificate_pem()),
            ("key.pem", tree.issuer.key_pem().to_string()),
            ("host.pem", encode_certificate(&tree.host)),
            ("index.txt", String::new()),
            ("number", "1000\n".to_owned()),
        ] {
            fs::write(folder.path().join(name), contents)?;
        }
        Ok(Self { folder })
    }

    fn run(&self, extensions: &str, more: &[&str]) -> Result<()> {
        let configuration = format!(
            "[ca]\ndefault_ca = issuer\n[issuer]\ndatabase = index.txt\ncertificate = root.pem\n\
             private_key = key.pem\ndefault_md = sha256\ndefault_crl_days = 7\n{extensions}"
        );
        fs::write(self.folder.path().join("ca.cnf"), configuration)?;
        Tool::new("openssl")
            .args(["ca", "-config", "ca.cnf"])
            .args(more)
            .folder(self.folder.path())
            .run()
            .map(drop)
    }

    fn list(&self, extensions: &str) -> Result<Result<Crl, CrlError>> {
        self.run(
            extensions,
            &["-gencrl", "-out", "list.pem"]
                .into_iter()
                .chain(DATES)
                .collect::<Vec<_>>(),
        )?;
        let file = fs::read(self.folder.path().join("list.pem"))?;
        let [block] = &blocks(&file)?[..] else {
            anyhow::bail!("not one list");
        };
        Ok(Crl::read(&block.contents))
    }
}

#[test]
fn a_list_that_openssl_made_is_read_unless_it_is_of_another_profile() -> Result<()> {
    let tree = Tree::new();
    let ca = OpensslCa::new(&tree)?;
    let numbered = "crlnumber = number\ncrl_extensions = e\n[e]\nauthorityKeyIdentifier = keyid\n";
    let demand = RevocationDemand::Listed {
        max_age: std::time::Duration::from_secs(2 * DAY),
    };
    let anchors = |list: &Crl| tree.anchors().demanding(demand).with_carried([list.der()]);
    let chain = tree.chain(&vik_spec(&KeyPair::generate()?));
    let list = ca.list(numbered)??;
    ensure!(list.number().to_string() == "4096", "0x1000");
    ensure!(chain.verify(&anchors(&list), now()).is_ok());

    let revoke = ["-revoke", "host.pem", "-crl_reason", "CACompromise"];
    ca.run(numbered, &revoke)?;
    let list = ca.list(numbered)??;
    let refused = chain.verify(&anchors(&list), now());
    ensure!(
        matches!(
            &refused,
            Err(ChainError::Revocation(RevocationError::Revoked {
                reason: RevocationReason::CaCompromise,
                ..
            }))
        ),
        "{refused:?}"
    );

    let of = |extension: &str| ca.list(&format!("{numbered}{extension}\n"));
    for narrowed in [
        "1.2.3.4.5 = critical, ASN1:NULL",
        "issuingDistributionPoint = critical, onlyuser:TRUE",
        "issuingDistributionPoint = critical, fullname:URI:http://issuer.example/list",
        "deltaCRL = critical, ASN1:INTEGER:3",
        "2.5.29.27 = critical, ASN1:INTEGER:3",
    ] {
        let Ok(list) = of(narrowed) else {
            // Not every release knows every name; the last line is one of those by number.
            continue;
        };
        ensure!(matches!(list, Err(CrlError::Extension(_))), "{narrowed}");
    }
    ensure!(of("1.2.3.4.5 = ASN1:NULL")?.is_ok(), "not critical");
    let unnumbered = "crl_extensions = e\n[e]\nauthorityKeyIdentifier = keyid\n";
    ensure!(matches!(ca.list(unnumbered)?, Err(CrlError::NoNumber)));
    ensure!(
        matches!(ca.list("")?, Err(CrlError::Malformed(_))),
        "version 1"
    );
    Ok(())
}
