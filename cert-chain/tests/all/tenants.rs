//! Certificates of tenants: what one is, and what is none.

use cert_chain::path::{ChainError, ChainMember};
use cert_chain::profile::{DeviceSpec, TenantKeyError, TlsCertificate, tenant_uri};
use cert_chain::{
    CertificateSerial, Issuer, RevocationError, TenantAuthority, TenantKey, TenantNaming,
    TenantSpec, TrustAnchors, Validity, VerifiedDeviceCertificate, VerifiedTenantCertificate,
    VikChain, issue_host_tls_certificate, pem,
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::CertificateDer;

use crate::revocation::list;
use crate::support::{DAY, NOW, Tree, at, attestation_key, name_of, now, vik_spec, years};

fn authority(tree: &Tree) -> TenantAuthority {
    TenantAuthority::new(tree.anchors(), TenantNaming::Profile)
}

fn certified(issuer: &Issuer, tenant: &str) -> CertificateDer<'static> {
    let (key, _) = TenantKey::generate().unwrap();
    let spec = TenantSpec {
        tenant: tenant.parse().unwrap(),
        key,
        validity: years(1),
    };
    issuer.certify_tenant(&spec).unwrap()
}

/// A certificate by whoever, which may depart from the profile.
fn made(
    change: impl FnOnce(&mut CertificateParams),
    (issuer, issuer_key): (&CertificateDer<'_>, &KeyPair),
) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "acme");
    params.subject_alt_names = vec![uri("urn:vrot:tenant:acme")];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = date(NOW - DAY);
    params.not_after = date(NOW + 30 * DAY);
    change(&mut params);
    let issuer = rcgen::Issuer::from_ca_cert_der(issuer, issuer_key).unwrap();
    let key = KeyPair::generate().unwrap();
    params.signed_by(&key, &issuer).unwrap().into()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.to_owned().try_into().unwrap())
}

fn date(at: u64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(i64::try_from(at).unwrap()).unwrap()
}

#[test]
fn a_tenant_s_certificate_says_which_tenant_it_is_until_it_ends_or_is_revoked() {
    let tree = Tree::new();
    let certificate = certified(&tree.issuer, "acme");
    let verify = |authority: &TenantAuthority, at| {
        VerifiedTenantCertificate::verify(&certificate, authority, at)
    };
    let verified = verify(&authority(&tree), now()).unwrap();
    assert_eq!(verified.tenant().as_str(), "acme");
    assert_eq!(verified.not_after(), years(1).not_after());
    let issued = tree.issuer.recognise(&certificate).unwrap();
    assert_eq!(issued.serial, *verified.serial());
    assert_eq!(issued.subject, tenant_uri(verified.tenant()));

    let late = verify(&authority(&tree), at(NOW + 400 * DAY));
    assert!(matches!(late, Err(ChainError::Expired { .. })));
    let elsewhere = Tree::new();
    let other = verify(&authority(&elsewhere), now());
    assert!(matches!(
        other,
        Err(ChainError::Signature | ChainError::OtherIssuer)
    ));

    let revoked = list(&tree.issuer, 1, NOW - DAY, &[&certificate]);
    let known = tree.anchors().with_carried([revoked.der()]);
    let refused = verify(&authority(&tree).with_anchors(known), now());
    assert!(matches!(
        refused,
        Err(ChainError::Revocation(RevocationError::Revoked { .. }))
    ));
}

#[test]
fn neither_a_host_nor_a_device_nor_a_vrot_is_a_tenant() {
    let tree = Tree::new();
    let key = KeyPair::generate().unwrap();
    let device = DeviceSpec {
        device: "spiffe://demo.example/acme".parse().unwrap(),
        ik: attestation_key(&key),
        ek: name_of(b"device ek"),
        validity: years(1),
    };
    let device = tree.issuer.certify_device(&device).unwrap();
    let vik = tree.vik(&vik_spec(&key));
    let validity = Validity::starting(now(), std::time::Duration::from_secs(DAY)).unwrap();
    let server = issue_host_tls_certificate(&key, validity, &tree.host_key, &tree.host).unwrap();
    let by_host = made(|_| (), (&tree.host, &tree.host_key));
    for (what, certificate) in [
        ("host", &tree.host),
        ("device", &device),
        ("vIK", &vik),
        ("host's TLS key", &server),
        ("what a host signs", &by_host),
        ("root", tree.issuer.certificate()),
    ] {
        for naming in [
            TenantNaming::Profile,
            TenantNaming::CommonName,
            TenantNaming::Uri("spiffe://demo.example/".to_owned()),
        ] {
            let authority = TenantAuthority::new(tree.anchors(), naming);
            let refused = VerifiedTenantCertificate::verify(certificate, &authority, now());
            assert!(refused.is_err(), "{what}: {refused:?}");
        }
    }
    // Where the host's IK is taken for a root: nor is what it certifies.
    let host = TrustAnchors::from_pem(&pem::encode_certificate(&tree.host)).unwrap();
    let authority = TenantAuthority::new(host, TenantNaming::Profile);
    for certificate in [&vik, &server] {
        assert!(VerifiedTenantCertificate::verify(certificate, &authority, now()).is_err());
    }
}

#[test]
fn a_tenant_is_neither_a_device_nor_a_vrot_nor_a_host() {
    let tree = Tree::new();
    let tenant = certified(&tree.issuer, "acme");
    assert!(VerifiedDeviceCertificate::verify(&tenant, &tree.anchors(), now()).is_err());
    let as_vik = VikChain::from_der_list(&[tenant.as_ref(), tree.host.as_ref()]).unwrap();
    assert!(as_vik.verify(&tree.anchors(), now()).is_err());
    let vik = tree.vik(&vik_spec(&KeyPair::generate().unwrap()));
    let as_host = VikChain::from_der_list(&[vik.as_ref(), tenant.as_ref()]).unwrap();
    assert!(as_host.verify(&tree.anchors(), now()).is_err());
    let host = "host-1.demo.example".parse().unwrap();
    assert!(TlsCertificate::read(&tenant, &host).is_err());
}

#[test]
fn the_certificate_of_a_host_s_tls_key_is_no_vrot_s_and_lies_within_the_host_s_names() {
    let tree = Tree::new();
    let key = KeyPair::generate().unwrap();
    let validity = Validity::starting(now(), std::time::Duration::from_secs(DAY)).unwrap();
    let server = issue_host_tls_certificate(&key, validity, &tree.host_key, &tree.host).unwrap();
    let host = "host-1.demo.example".parse().unwrap();
    assert!(TlsCertificate::read(&server, &host).is_err());
    let leaf = webpki::EndEntityCert::try_from(&server).unwrap();
    let anchors = tree.anchors();
    let path = leaf.verify_for_usage(
        &[webpki::ring::ECDSA_P256_SHA256],
        anchors.as_slice(),
        std::slice::from_ref(&tree.host),
        now(),
        webpki::KeyUsage::server_auth(),
        None,
        None,
    );
    assert!(path.is_ok(), "{:?}", path.err());
    for (name, is_its) in [
        ("host-1.demo.example", true),
        ("host-2.demo.example", false),
        ("x.host-1.demo.example", false),
    ] {
        let name = name.try_into().unwrap();
        assert_eq!(leaf.verify_is_valid_for_subject_name(&name).is_ok(), is_its);
    }
}

#[test]
fn a_certificate_that_departs_from_a_tenant_s_profile_is_refused() {
    type Change = fn(&mut CertificateParams);
    let tree = Tree::new();
    let issuer_key = KeyPair::from_pem(&tree.issuer.key_pem()).unwrap();
    let verify = |change: Change| {
        let certificate = made(change, (tree.issuer.certificate(), &issuer_key));
        VerifiedTenantCertificate::verify(&certificate, &authority(&tree), now())
    };
    assert!(verify(|_| ()).is_ok());
    fn named(params: &mut CertificateParams, name: &str) {
        params.distinguished_name = rcgen::DistinguishedName::new();
        let common = name.rsplit(':').next().unwrap_or_default();
        params.distinguished_name.push(DnType::CommonName, common);
        params.subject_alt_names = vec![uri(name)];
    }
    let departures: [(&str, Change); 16] = [
        ("no purpose", |p| p.extended_key_usages.clear()),
        ("two purposes", |p| {
            p.extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
        }),
        ("any purpose", |p| {
            p.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
        }),
        ("no usage", |p| p.key_usages.clear()),
        ("a CA", |p| {
            p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))
        }),
        ("two tenants", |p| {
            p.subject_alt_names.push(uri("urn:vrot:tenant:other"))
        }),
        ("a server's name", |p| {
            let dns = "host-1.demo.example".to_owned().try_into().unwrap();
            p.subject_alt_names.push(SanType::DnsName(dns));
        }),
        ("another subject", |p| {
            p.distinguished_name = rcgen::DistinguishedName::new();
            p.distinguished_name.push(DnType::CommonName, "other");
        }),
        ("no name", |p| p.subject_alt_names.clear()),
        ("a device's name", |p| {
            named(p, "spiffe://demo.example/acme")
        }),
        ("another case of the scheme", |p| {
            named(p, "URN:vrot:tenant:acme")
        }),
        ("no tenant", |p| named(p, "urn:vrot:tenant:")),
        ("an escape", |p| named(p, "urn:vrot:tenant:ac%6de")),
        ("a path", |p| named(p, "urn:vrot:tenant:../acme")),
        ("a space", |p| named(p, "urn:vrot:tenant:acme ")),
        ("a zero", |p| named(p, "urn:vrot:tenant:acme\0other")),
    ];
    for (what, change) in departures {
        assert!(verify(change).is_err(), "{what}");
    }
    // Tenants differ by case, as they do where VMs are created.
    let other = verify(|p| named(p, "urn:vrot:tenant:Acme")).unwrap();
    assert_eq!(other.tenant().as_str(), "Acme");
    assert!(
        "аcme".parse::<cert_chain::Tenant>().is_err(),
        "a Cyrillic letter"
    );
}

#[test]
fn a_ca_of_the_operator_s_own_names_tenants_as_it_is_configured() {
    let ca_key = KeyPair::generate().unwrap();
    let ca = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    };
    let root: CertificateDer<'static> = ca("tenants").self_signed(&ca_key).unwrap().into();
    let anchors = TrustAnchors::from_pem(&pem::encode_certificate(&root)).unwrap();
    let verify = |naming: TenantNaming, certificate: &[u8]| {
        let authority = TenantAuthority::new(anchors.clone(), naming);
        VerifiedTenantCertificate::verify(certificate, &authority, now())
            .map(|verified| verified.tenant().to_string())
    };
    let by_uri = || TenantNaming::Uri("spiffe://corp.example/tenant/".to_owned());
    let certificate = made(
        |p| {
            p.distinguished_name.push(DnType::OrganizationName, "Corp");
            p.subject_alt_names = vec![
                SanType::DnsName("acme.corp.example".to_owned().try_into().unwrap()),
                uri("spiffe://corp.example/tenant/blue"),
            ];
            p.extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
        },
        (&root, &ca_key),
    );
    assert_eq!(verify(by_uri(), &certificate).unwrap(), "blue");
    assert_eq!(
        verify(TenantNaming::CommonName, &certificate).unwrap(),
        "acme"
    );
    assert!(verify(TenantNaming::Profile, &certificate).is_err());

    let two = made(
        |p| {
            p.subject_alt_names = vec![
                uri("spiffe://corp.example/tenant/blue"),
                uri("spiffe://corp.example/tenant/red"),
            ];
        },
        (&root, &ca_key),
    );
    assert!(verify(by_uri(), &two).is_err());
    let no_purpose = made(|p| p.extended_key_usages.clear(), (&root, &ca_key));
    assert!(matches!(
        verify(TenantNaming::CommonName, &no_purpose),
        Err(ChainError::Profile {
            member: ChainMember::Client,
            ..
        })
    ));
    // What another CA below it issues, nobody configured.
    let middle_key = KeyPair::generate().unwrap();
    let above = rcgen::Issuer::from_ca_cert_der(&root, &ca_key).unwrap();
    let middle = ca("middle").signed_by(&middle_key, &above).unwrap().into();
    let below = made(|_| (), (&middle, &middle_key));
    assert!(verify(TenantNaming::CommonName, &below).is_err());
}

#[test]
fn a_request_is_taken_for_its_key_alone_and_must_be_signed_by_it() {
    let tree = Tree::new();
    let mut params = CertificateParams::new(vec!["other.example".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "other");
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
    ] {
        let own = KeyPair::generate_for(algorithm).unwrap();
        let request = params.serialize_request(&own).unwrap();
        let key = TenantKey::of_request(request.pem().unwrap().as_bytes()).unwrap();
        assert_eq!(key.subject_public_key_info(), own.subject_public_key_info());
        let spec = TenantSpec {
            tenant: "acme".parse().unwrap(),
            key,
            validity: years(1),
        };
        let certificate = tree.issuer.certify_tenant(&spec).unwrap();
        let verified = VerifiedTenantCertificate::verify(&certificate, &authority(&tree), now());
        assert_eq!(verified.unwrap().tenant().as_str(), "acme");
        assert!(CertificateSerial::of_certificate(&certificate).is_ok());

        let mut der = request.der().to_vec();
        *der.last_mut().unwrap() ^= 1;
        let forged = ::pem::encode(&::pem::Pem::new("CERTIFICATE REQUEST", der));
        let refused = TenantKey::of_request(forged.as_bytes());
        assert!(matches!(refused, Err(TenantKeyError::Request(_))));
    }
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let request = params.serialize_request(&ed25519).unwrap().pem().unwrap();
    let refused = TenantKey::of_request(request.as_bytes());
    assert!(matches!(refused, Err(TenantKeyError::Kind)), "{refused:?}");
    assert!(TenantKey::of_request(b"nothing").is_err());
}
