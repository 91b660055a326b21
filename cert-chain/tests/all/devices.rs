//! Certificates of devices: what one is, and what is none.

use cert_chain::path::{ChainError, ChainMember};
use cert_chain::profile::host_ik::HostCertificate;
use cert_chain::profile::{DeviceSpec, ProfileError};
use cert_chain::{
    DeviceName, IssueError, Issuer, Validity, VerifiedDeviceCertificate, VikChain,
    issue_vik_certificate,
};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;

use crate::support::{DAY, NOW, Tree, at, attestation_key, name_of, now, vik_spec, years};

fn name() -> DeviceName {
    "spiffe://demo.example/plant-7/meter-12".parse().unwrap()
}

fn spec(key: &KeyPair) -> DeviceSpec {
    DeviceSpec {
        device: name(),
        ik: attestation_key(key),
        ek: name_of(b"device ek"),
        validity: years(1),
    }
}

fn certified(issuer: &Issuer, key: &KeyPair) -> CertificateDer<'static> {
    issuer.certify_device(&spec(key)).unwrap()
}

#[test]
fn a_device_s_certificate_says_which_device_it_is_and_which_keys_it_has() {
    let tree = Tree::new();
    let key = KeyPair::generate().unwrap();
    let certificate = certified(&tree.issuer, &key);
    let verified = VerifiedDeviceCertificate::verify(&certificate, &tree.anchors(), now()).unwrap();
    assert_eq!(*verified.device(), name());
    assert_eq!(verified.claims().ik, attestation_key(&key).name());
    assert_eq!(verified.claims().ek, name_of(b"device ek"));
    assert_eq!(
        verified.subject_public_key_info(),
        attestation_key(&key).subject_public_key_info()
    );
    assert_eq!(verified.issuer(), "O=demo.example, CN=vRoT identity issuer");
    assert_eq!(verified.not_after(), years(1).not_after());
}

#[test]
fn a_device_s_certificate_ends_with_its_validity_and_counts_under_its_issuer_alone() {
    let tree = Tree::new();
    let certificate = certified(&tree.issuer, &KeyPair::generate().unwrap());
    let verify =
        |tree: &Tree, at| VerifiedDeviceCertificate::verify(&certificate, &tree.anchors(), at);
    assert!(matches!(
        verify(&tree, at(NOW + 400 * DAY)),
        Err(ChainError::Expired { .. })
    ));
    assert!(matches!(
        verify(&tree, at(NOW - DAY)),
        Err(ChainError::NotYetValid { .. })
    ));
    let elsewhere = Tree::named("host-1", "other.example");
    assert!(matches!(
        verify(&elsewhere, now()),
        Err(ChainError::OtherIssuer)
    ));
}

#[test]
fn an_issuer_names_devices_in_its_own_domain_alone() {
    let tree = Tree::named("host-1", "other.example");
    let refused = tree
        .issuer
        .certify_device(&spec(&KeyPair::generate().unwrap()));
    assert!(matches!(
        refused,
        Err(IssueError::DeviceOutsideDomain { .. })
    ));
}

#[test]
fn neither_a_host_nor_a_vrot_is_a_device() {
    let tree = Tree::new();
    let verify =
        |certificate: &[u8]| VerifiedDeviceCertificate::verify(certificate, &tree.anchors(), now());
    assert!(matches!(verify(&tree.host), Err(ChainError::LeafIsCa)));
    let vik = tree.vik(&vik_spec(&KeyPair::generate().unwrap()));
    assert!(matches!(verify(&vik), Err(ChainError::OtherIssuer)));
    // Where the host's IK is taken for a root.
    let host = cert_chain::pem::encode_certificate(&tree.host);
    let host = cert_chain::TrustAnchors::from_pem(&host).unwrap();
    assert!(matches!(
        VerifiedDeviceCertificate::verify(&vik, &host, now()),
        Err(ChainError::Profile {
            member: ChainMember::Device,
            source: ProfileError::Names { .. }
        })
    ));
}

#[test]
fn a_device_is_neither_a_host_nor_a_vrot() {
    let tree = Tree::new();
    let key = KeyPair::generate().unwrap();
    let device = certified(&tree.issuer, &key);
    assert!(matches!(
        HostCertificate::read(&device),
        Err(ProfileError::BasicConstraints { .. })
    ));
    // As what stands above a vIK: the key signs no certificates in the first place.
    let spec = vik_spec(&KeyPair::generate().unwrap());
    assert!(matches!(
        issue_vik_certificate(&spec, &key, &device),
        Err(IssueError::HostCertificate(_))
    ));
    let vik = tree.vik(&spec);
    let below_a_device = VikChain::from_der_list(&[vik.as_ref(), device.as_ref()]).unwrap();
    assert!(below_a_device.verify(&tree.anchors(), now()).is_err());
    // As a vIK, with a host's certificate beside it.
    let as_a_vik = VikChain::from_der_list(&[device.as_ref(), tree.host.as_ref()]).unwrap();
    assert!(matches!(
        as_a_vik.verify(&tree.anchors(), now()),
        Err(ChainError::OtherIssuer)
    ));
}

/// A host could sign what looks like a device's certificate; its own is below the root, too.
#[test]
fn what_a_host_signs_is_no_device() {
    let tree = Tree::new();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, name().path());
    params.subject_alt_names = vec![rcgen::SanType::URI(name().to_string().try_into().unwrap())];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 3])];
    let genuine = certified(&tree.issuer, &key);
    params.custom_extensions = vec![claims_of(&genuine)];
    let validity = Validity::of_certificate(&genuine).unwrap();
    params.not_before = date(validity.not_before());
    params.not_after = date(validity.not_after());

    let sign = |issuer: &[u8], issuer_key: &KeyPair| -> CertificateDer<'static> {
        let issuer = issuer.to_vec().into();
        let issuer = rcgen::Issuer::from_ca_cert_der(&issuer, issuer_key).unwrap();
        params.clone().signed_by(&key, &issuer).unwrap().into()
    };
    let by_host = sign(&tree.host, &tree.host_key);
    assert!(matches!(
        VerifiedDeviceCertificate::verify(&by_host, &tree.anchors(), now()),
        Err(ChainError::OtherIssuer)
    ));
    // The same, signed by the issuer, is one: it is the signature that makes the difference.
    let issuer_key = KeyPair::from_pem(&tree.issuer.key_pem()).unwrap();
    let by_issuer = sign(tree.issuer.certificate(), &issuer_key);
    assert!(VerifiedDeviceCertificate::verify(&by_issuer, &tree.anchors(), now()).is_ok());
}

fn claims_of(certificate: &[u8]) -> rcgen::CustomExtension {
    use x509_parser::prelude::FromDer;
    let (_, certificate) =
        x509_parser::certificate::X509Certificate::from_der(certificate).unwrap();
    let found = certificate
        .extensions()
        .iter()
        .find(|extension| extension.oid.to_id_string() == "1.3.6.1.5.5.7.1.35")
        .unwrap();
    rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 35], found.value.to_vec())
}

fn date(at: rustls_pki_types::UnixTime) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(i64::try_from(at.as_secs()).unwrap()).unwrap()
}
