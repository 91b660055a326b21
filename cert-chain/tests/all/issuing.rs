//! What is refused before anything is signed, and that the longest names still fit.

use cert_chain::profile::vik::VIK_LIFETIME;
use cert_chain::profile::{IssuerPart, MAX_TBS, SIGNATURE_LENGTH, vrot_certificate_length};
use cert_chain::{
    EkSpec, EndorsementKey, Generation, HostIkSpec, IssueError, Issuer, PublicArea, TpmDevice,
    TrustAnchors, Validity, VikChain, VrotId, issue_vrot_certificate,
};
use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};
use rsa::rand_core::OsRng;
use x509_parser::nom::AsBytes;

use crate::support::{
    DAY, ENDORSEMENT, NOW, Tree, at, attestation_key, name_of, now, vik_spec, years,
};

/// The longest host name there is: 64 characters with its domain.
fn longest() -> Tree {
    let domain = format!("{}.{}", "d".repeat(20), "e".repeat(22));
    Tree::named(&"h".repeat(20), &domain)
}

fn tbs_length(der: &[u8]) -> usize {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).unwrap();
    certificate.tbs_certificate.as_ref().as_bytes().len()
}

const DEVICE: TpmDevice = TpmDevice {
    manufacturer: 0x4942_4d00,
    firmware_version: u32::MAX,
    specification_level: u32::MAX,
    specification_revision: u32::MAX,
};

#[test]
fn a_vik_certificate_with_the_longest_names_fits_into_one_tpm2_hash() {
    let tree = longest();
    let mut spec = vik_spec(&KeyPair::generate().unwrap());
    spec.tenant = "t".repeat(64).parse().unwrap();
    spec.generation = Generation::new(u64::MAX);
    let certificate = tree.vik(&spec);
    let length = tbs_length(&certificate);
    // Room is left for what a later version adds.
    assert!(length <= MAX_TBS - 32, "{length} bytes");
    let chain = VikChain::from_der_list(&[certificate, tree.host.clone()]).unwrap();
    assert!(chain.verify(&tree.anchors(), now()).is_ok());
}

#[test]
fn an_ek_certificate_with_the_longest_names_fits_into_one_tpm2_hash() {
    let tree = longest();
    let rsa = rsa::RsaPrivateKey::new(&mut OsRng, 2048)
        .unwrap()
        .to_public_key();
    let area = crate::support::rsa_storage_area(&rsa, ENDORSEMENT, &[7; 32]);
    let spec = EkSpec {
        vrot: VrotId::random(),
        ek: EndorsementKey::try_from(PublicArea::parse(&area).unwrap()).unwrap(),
        device: DEVICE,
        validity: years(1),
    };
    let certificate = issue_vrot_certificate(&spec, &tree.host_key, &tree.host).unwrap();
    let length = tbs_length(&certificate);
    assert!(length <= MAX_TBS, "{length} bytes");
}

/// One in 250 signatures cannot have the usual length.
#[test]
fn the_length_of_a_certificate_is_known_before_it_is_signed() {
    let tree = longest();
    let vik = vik_spec(&KeyPair::generate().unwrap());
    let expected = vrot_certificate_length(&vik, &tree.host).unwrap();
    let fitting = (0..8).filter(|_| tree.vik(&vik).len() == expected);
    assert!(fitting.count() > 4, "{expected} with {SIGNATURE_LENGTH}");
    let rsa = rsa::RsaPrivateKey::new(&mut OsRng, 2048).unwrap();
    let area = crate::support::rsa_storage_area(&rsa.to_public_key(), ENDORSEMENT, &[7; 32]);
    let spec = EkSpec {
        vrot: VrotId::random(),
        ek: EndorsementKey::try_from(PublicArea::parse(&area).unwrap()).unwrap(),
        device: DEVICE,
        validity: years(1),
    };
    let expected = vrot_certificate_length(&spec, &tree.host).unwrap();
    let issue = || issue_vrot_certificate(&spec, &tree.host_key, &tree.host).unwrap();
    let fitting = (0..8).filter(|_| issue().len() == expected);
    assert!(fitting.count() > 4, "{expected}");
}

#[test]
fn a_leaf_never_outlives_its_hosts_certificate() {
    let tree = Tree::new();
    let mut spec = vik_spec(&KeyPair::generate().unwrap());
    spec.validity = years(5);
    let leaf = tree.vik(&spec);
    let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    let end = u64::try_from(leaf.validity().not_after.timestamp()).unwrap();
    assert_eq!(end, years(1).not_after().as_secs());

    spec.validity = Validity::starting(at(NOW + 400 * DAY), VIK_LIFETIME).unwrap();
    assert!(matches!(
        issue_vrot_certificate(&spec, &tree.host_key, &tree.host),
        Err(IssueError::IssuerExpired)
    ));
}

#[test]
fn another_key_than_the_hosts_is_not_asked_to_sign() {
    let tree = Tree::new();
    let spec = vik_spec(&KeyPair::generate().unwrap());
    let other = KeyPair::generate().unwrap();
    assert!(matches!(
        issue_vrot_certificate(&spec, &other, &tree.host),
        Err(IssueError::SignerMismatch)
    ));
}

#[test]
fn a_vik_does_not_issue() {
    let tree = Tree::new();
    let key = KeyPair::generate().unwrap();
    let vik = tree.vik(&vik_spec(&key));
    assert!(matches!(
        issue_vrot_certificate(&vik_spec(&key), &key, &vik),
        Err(IssueError::HostCertificate(_))
    ));
}

/// A signer whose answer is damaged, as a TPM under fault injection might give it.
struct Faulty<'a>(&'a KeyPair);

impl PublicKeyData for Faulty<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for Faulty<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let mut signature = self.0.sign(message)?;
        *signature.last_mut().unwrap() ^= 1;
        Ok(signature)
    }
}

#[test]
fn a_faulty_signature_does_not_leave() {
    let tree = Tree::new();
    let spec = vik_spec(&KeyPair::generate().unwrap());
    assert!(matches!(
        issue_vrot_certificate(&spec, &Faulty(&tree.host_key), &tree.host),
        Err(IssueError::SignatureInvalid)
    ));
}

#[test]
fn an_issuer_survives_being_stored_and_names_only_its_own_hosts() {
    let tree = Tree::new();
    let key = tree.issuer.key_pem();
    let certificate = tree.issuer.certificate_pem();
    let again = Issuer::from_pem(&key, &certificate).unwrap();
    assert_eq!(again.domain(), tree.issuer.domain());
    let host_2 = Tree::under(again, "host-2");
    let spec = vik_spec(&KeyPair::generate().unwrap());
    let anchors = TrustAnchors::from_pem(&certificate).unwrap();
    assert!(host_2.chain(&spec).verify(&anchors, now()).is_ok());

    assert!(matches!(
        Issuer::from_pem(&KeyPair::generate().unwrap().serialize_pem(), &certificate),
        Err(IssueError::IssuerKeyMismatch)
    ));
    assert!(matches!(
        Issuer::from_pem("", &certificate),
        Err(IssueError::IssuerFile {
            part: IssuerPart::Key,
            ..
        })
    ));
    assert!(matches!(
        Issuer::from_pem(&key, "nothing"),
        Err(IssueError::IssuerFile {
            part: IssuerPart::Certificate,
            ..
        })
    ));
    let outside = HostIkSpec {
        host: "host-1.other.example".parse().unwrap(),
        ik: attestation_key(&KeyPair::generate().unwrap()),
        ek: name_of(b"ek"),
        policy_key: name_of(b"policy key"),
        validity: years(1),
    };
    assert!(matches!(
        tree.issuer.certify_host(&outside),
        Err(IssueError::HostOutsideDomain { .. })
    ));
}

#[test]
fn no_secret_shows_in_debug_output() {
    let tree = Tree::new();
    let shown = format!("{:?}", tree.issuer);
    assert!(shown.contains("demo.example"));
    let secret = hex::encode(
        KeyPair::from_pem(&tree.issuer.key_pem())
            .unwrap()
            .serialize_der(),
    );
    let (_, second_half) = secret.split_at(secret.len() / 2);
    assert!(!shown.contains(second_half));
    assert!(!shown.contains("PRIVATE"));
}
