//! Certificates of devices: what one is, and what is none.

use cert_chain::path::{ChainError, ChainMember};
use cert_chain::profile::host_ik::HostCertificate;
use cert_chain::profile::{DeviceSpec, ProfileError};
use cert_chain::{
    DeviceName, IssueError, Issuer, Validity, VerifiedDeviceCertificate, VikChain,
    issue_vrot_certificate,
};
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
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
        issue_vrot_certificate(&spec, &key, &device),
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

/// A certificate that is signed by whoever, and may depart from the profile.
fn made(
    change: impl FnOnce(&mut CertificateParams),
    key: &KeyPair,
    (issuer, issuer_key): (&CertificateDer<'_>, &KeyPair),
    genuine: &CertificateDer<'_>,
) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, name().path());
    params.subject_alt_names = vec![uri(&name().to_string())];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 3])];
    params.custom_extensions = vec![claims_of(genuine)];
    let validity = Validity::of_certificate(genuine).unwrap();
    params.not_before = date(validity.not_before());
    params.not_after = date(validity.not_after());
    change(&mut params);
    let issuer = rcgen::Issuer::from_ca_cert_der(issuer, issuer_key).unwrap();
    params.signed_by(key, &issuer).unwrap().into()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.to_owned().try_into().unwrap())
}

/// A host could sign what looks like a device's certificate; its own is below the root, too.
#[test]
fn what_a_host_signs_is_no_device() {
    let tree = Tree::new();
    let key = KeyPair::generate().unwrap();
    let genuine = certified(&tree.issuer, &key);
    let by_host = made(|_| (), &key, (&tree.host, &tree.host_key), &genuine);
    assert!(matches!(
        VerifiedDeviceCertificate::verify(&by_host, &tree.anchors(), now()),
        Err(ChainError::OtherIssuer)
    ));
    // The same, signed by the issuer, is one: it is the signature that makes the difference.
    let issuer_key = KeyPair::from_pem(&tree.issuer.key_pem()).unwrap();
    let issuer = (tree.issuer.certificate(), &issuer_key);
    let by_issuer = made(|_| (), &key, issuer, &genuine);
    assert!(VerifiedDeviceCertificate::verify(&by_issuer, &tree.anchors(), now()).is_ok());
}

#[test]
fn a_certificate_that_departs_from_a_device_s_profile_is_refused() {
    type Change = fn(&mut CertificateParams);
    let tree = Tree::new();
    let key = KeyPair::generate().unwrap();
    let genuine = certified(&tree.issuer, &key);
    let issuer_key = KeyPair::from_pem(&tree.issuer.key_pem()).unwrap();
    let refusal = |change: Change| {
        let issuer = (tree.issuer.certificate(), &issuer_key);
        let departing = made(change, &key, issuer, &genuine);
        VerifiedDeviceCertificate::verify(&departing, &tree.anchors(), now()).unwrap_err()
    };
    let departures: [(&str, Change); 9] = [
        ("no purpose", |p| p.extended_key_usages.clear()),
        ("two purposes", |p| {
            p.extended_key_usages
                .push(ExtendedKeyUsagePurpose::ClientAuth);
        }),
        ("no usage", |p| p.key_usages.clear()),
        ("signs certificates", |p| {
            p.key_usages.push(KeyUsagePurpose::KeyCertSign);
        }),
        ("a server's name beside its own", |p| {
            let dns = "host-1.demo.example".to_owned().try_into().unwrap();
            p.subject_alt_names.push(SanType::DnsName(dns));
        }),
        ("two names", |p| {
            p.subject_alt_names.push(uri("spiffe://demo.example/b"))
        }),
        ("a VM's name", |p| {
            p.subject_alt_names = vec![uri("urn:uuid:6f1c2b3a-0000-4000-8000-00000000000a")];
        }),
        ("another subject", |p| {
            p.distinguished_name = rcgen::DistinguishedName::new();
            p.distinguished_name.push(DnType::CommonName, "meter-13");
        }),
        ("no claims", |p| p.custom_extensions.clear()),
    ];
    for (what, change) in departures {
        let refused = refusal(change);
        assert!(
            matches!(
                refused,
                ChainError::Profile {
                    member: ChainMember::Device,
                    ..
                }
            ),
            "{what}: {refused:?}"
        );
    }
    assert!(matches!(
        refusal(|p| p.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(0))),
        ChainError::LeafIsCa
    ));
    assert!(matches!(
        refusal(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
        ChainError::Usage
    ));
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

mod enrolment {
    //! Four messages of a device whose TPM exists in software only.

    use cert_chain::enrolment::device::{Answer, Certificate, Challenge, Pending, Request};
    use cert_chain::enrolment::{EnrolmentError, EnrolmentState, Message, MessageError};
    use cert_chain::template::DEVICE_KEY;
    use cert_chain::{ObjectAttributes, TpmMakerRoots};

    use super::*;
    use crate::support::{ATTESTATION, Maker, p256_endorsement_key, request, signing_area};

    struct Enrolment {
        issuer: Issuer,
        maker: Maker,
        roots: TpmMakerRoots,
    }

    impl Enrolment {
        fn new() -> Self {
            let maker = Maker::new("Maker");
            Self {
                issuer: Issuer::create("demo.example".parse().unwrap(), years(10)).unwrap(),
                roots: TpmMakerRoots::from_pem(&maker.root_pem()).unwrap(),
                maker,
            }
        }

        fn request(&self) -> Request {
            let ek = p256_endorsement_key(&KeyPair::generate().unwrap());
            Request {
                device: "plant-7/meter-12".to_owned(),
                ek_certificate: self.maker.certify(ek.public_area(), |_| ()).to_vec(),
                ek_chain: Vec::new(),
                ek: ek.public_area().as_bytes().to_vec(),
                ik: signing_area(&KeyPair::generate().unwrap(), DEVICE_KEY, &[]),
            }
        }

        fn challenge(&self, request: &Request) -> Result<(Challenge, Pending), EnrolmentError> {
            self.issuer.challenge_device(request, &self.roots, now())
        }

        fn refusal(&self, change: impl FnOnce(&mut Request)) -> EnrolmentError {
            let mut request = self.request();
            change(&mut request);
            self.challenge(&request).unwrap_err()
        }
    }

    #[test]
    fn a_device_is_challenged_under_its_name_and_a_wrong_answer_spends_the_challenge() {
        let enrolment = Enrolment::new();
        let (challenge, mut pending) = enrolment.challenge(&enrolment.request()).unwrap();
        assert_eq!(challenge.device, name());
        assert_eq!(pending.maker(), "CN=Maker");
        let json = challenge.to_json();
        assert_eq!(Challenge::from_json(json.as_bytes()).unwrap(), challenge);
        let answer = format!(
            "{{\"type\":\"device-enrolment-answer\",\"version\":1,\"enrolment\":\"{}\",\"secret\":\"00\"}}",
            challenge.enrolment
        );
        let answer = Answer::from_json(answer.as_bytes()).unwrap();
        let mut certify = || {
            let roots = &enrolment.roots;
            enrolment
                .issuer
                .certify_answer(&mut pending, &answer, roots, years(1), now())
        };
        assert!(matches!(certify(), Err(EnrolmentError::WrongAnswer)));
        assert!(matches!(certify(), Err(EnrolmentError::AlreadyAnswered)));
        assert_eq!(*pending.state(), EnrolmentState::Answered);
    }

    #[test]
    fn names_keys_and_makers_that_do_not_qualify_are_refused() {
        let enrolment = Enrolment::new();
        let key = KeyPair::generate().unwrap();
        assert!(matches!(
            enrolment.refusal(|r| r.device = "../root".to_owned()),
            EnrolmentError::DeviceName(_)
        ));
        assert!(matches!(
            enrolment.refusal(|r| r.ik = r.ek.clone()),
            EnrolmentError::IdentityKey(_)
        ));
        let unrestricted =
            ObjectAttributes::from_bits(DEVICE_KEY.bits() & !ObjectAttributes::RESTRICTED.bits());
        assert!(matches!(
            enrolment.refusal(|r| r.ik = signing_area(&key, unrestricted, &[])),
            EnrolmentError::IdentityKey(_)
        ));
        let stranger = Maker::new("Stranger");
        assert!(matches!(
            enrolment.refusal(|r| {
                let ek = p256_endorsement_key(&KeyPair::generate().unwrap());
                r.ek = ek.public_area().as_bytes().to_vec();
                r.ek_certificate = stranger.certify(ek.public_area(), |_| ()).to_vec();
            }),
            EnrolmentError::EkCertificate(_)
        ));
    }

    /// A host's key is under its operator's policy and a device's is under none: neither passes as the
    /// other, whatever else the request says.
    #[test]
    fn a_host_s_key_enrols_no_device_and_a_device_s_no_host() {
        let enrolment = Enrolment::new();
        let host = request(&enrolment.maker);
        assert!(matches!(
            enrolment.refusal(|r| r.ik = host.ik.clone()),
            EnrolmentError::DeviceKey
        ));
        let key = KeyPair::generate().unwrap();
        assert!(matches!(
            enrolment.refusal(|r| r.ik = signing_area(&key, ATTESTATION, &[])),
            EnrolmentError::DeviceKey
        ));
        let mut as_host = host;
        as_host.ik = enrolment.request().ik;
        let operators = [cert_chain::PublicArea::parse(&as_host.policy_key)
            .unwrap()
            .name()]
        .into_iter()
        .collect();
        let accepted = cert_chain::enrolment::Accepted {
            roots: &enrolment.roots,
            operators: &operators,
        };
        assert!(matches!(
            enrolment.issuer.challenge(&as_host, accepted, now()),
            Err(EnrolmentError::PolicyBypassed)
        ));
    }

    #[test]
    fn messages_of_hosts_and_devices_are_told_apart() {
        let enrolment = Enrolment::new();
        let device = enrolment.request().to_json();
        let host = request(&enrolment.maker).to_json();
        assert!(matches!(
            Request::from_json(host.as_bytes()),
            Err(MessageError::Type { .. })
        ));
        assert!(matches!(
            cert_chain::enrolment::Request::from_json(device.as_bytes()),
            Err(MessageError::Type { .. })
        ));
        assert_eq!(
            Request::from_json(device.as_bytes()).unwrap().to_json(),
            device
        );
        let (challenge, _) = enrolment.challenge(&enrolment.request()).unwrap();
        let certificate = Certificate {
            device: challenge.device,
            certificate: vec![1],
            root: vec![2],
        };
        let json = certificate.to_json();
        assert_eq!(
            Certificate::from_json(json.as_bytes()).unwrap(),
            certificate
        );
    }
}
