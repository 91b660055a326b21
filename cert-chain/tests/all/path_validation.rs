//! A chain is accepted as issued, and refused for every departure with its own reason.

use cert_chain::claims::ClaimsError;
use cert_chain::path::ChainMember;
use cert_chain::profile::ProfileError;
use cert_chain::{ChainError, Issuer, TrustAnchors, VikChain, VikSpec};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, KeyPair, KeyUsagePurpose, NameConstraints, SanType,
};

use crate::support::{DAY, NOW, Tree, at, now, vik_spec};

#[test]
fn a_chain_as_issued_is_verified_and_says_who_it_is() {
    let tree = Tree::new();
    let key = KeyPair::generate().unwrap();
    let spec = vik_spec(&key);
    let chain = tree.chain(&spec);

    let verified = chain.verify(&tree.anchors(), now()).unwrap();
    assert_eq!(verified.claims().vm, spec.vm);
    assert_eq!(verified.claims().vrot, spec.vrot);
    assert_eq!(verified.claims().tenant, spec.tenant);
    assert_eq!(verified.claims().vik, spec.vik.name());
    assert_eq!(verified.vik_spki(), spec.vik.subject_public_key_info());
    assert_eq!(
        verified.host_spki(),
        rcgen::PublicKeyData::subject_public_key_info(&tree.host_key)
    );
    assert_eq!(
        verified.host_claims().ik,
        crate::support::attestation_key(&tree.host_key).name()
    );
    assert_eq!(verified.host().to_string(), "host-1.demo.example");
    assert_eq!(verified.not_after().as_secs(), NOW + DAY);
    assert!(verified.issuer().contains("demo.example"));
}

#[test]
fn concatenated_certificates_are_split_and_must_be_exactly_two() {
    let tree = Tree::new();
    let chain = tree.chain(&vik_spec(&KeyPair::generate().unwrap()));
    let (vik, host) = (chain.vik_certificate(), chain.host_certificate());
    let joined = [vik.as_ref(), host.as_ref()].concat();
    assert_eq!(VikChain::from_concatenated_der(&joined).unwrap(), chain);

    let with_root = [&joined, tree.issuer.certificate().as_ref()].concat();
    for (bytes, count) in [(&[][..], 0), (vik.as_ref(), 1), (&with_root, 3)] {
        assert!(matches!(
            VikChain::from_concatenated_der(bytes),
            Err(ChainError::CertificateCount { found }) if found == count
        ));
    }
    let truncated = &joined[..joined.len() - 1];
    assert!(matches!(
        VikChain::from_concatenated_der(truncated),
        Err(ChainError::Malformed { .. })
    ));
}

#[test]
fn no_single_changed_byte_of_either_certificate_verifies() {
    let tree = Tree::new();
    let anchors = tree.anchors();
    let chain = tree.chain(&vik_spec(&KeyPair::generate().unwrap()));
    let certificates = [
        chain.vik_certificate().to_vec(),
        chain.host_certificate().to_vec(),
    ];
    for which in 0..2 {
        for position in 0..certificates[which].len() {
            for change in [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff] {
                let mut changed = certificates.clone();
                changed[which][position] ^= change;
                let chain = VikChain::from_der_list(&changed).unwrap();
                assert!(
                    chain.verify(&anchors, now()).is_err(),
                    "certificate {which}, byte {position} ^ {change:#04x}"
                );
            }
        }
    }
}

#[test]
fn bytes_after_a_certificate_are_refused() {
    let tree = Tree::new();
    let chain = tree.chain(&vik_spec(&KeyPair::generate().unwrap()));
    let longer = [chain.vik_certificate().as_ref(), &[0]].concat();
    let chain = VikChain::from_der_list(&[&longer[..], chain.host_certificate()]).unwrap();
    assert!(matches!(
        chain.verify(&tree.anchors(), now()),
        Err(ChainError::Malformed {
            member: ChainMember::Vik,
            ..
        })
    ));
}

#[test]
fn a_chain_counts_only_while_both_certificates_are_valid() {
    let tree = Tree::new();
    let anchors = tree.anchors();
    let chain = tree.chain(&vik_spec(&KeyPair::generate().unwrap()));
    let verify = |seconds| chain.verify(&anchors, at(seconds));

    assert!(verify(NOW - 300).is_ok());
    assert!(matches!(
        verify(NOW - 301),
        Err(ChainError::NotYetValid { .. })
    ));
    assert!(verify(NOW + DAY).is_ok());
    assert!(matches!(
        verify(NOW + DAY + 1),
        Err(ChainError::Expired { not_after, .. }) if not_after == NOW + DAY
    ));
}

#[test]
fn another_issuers_chain_is_refused() {
    let tree = Tree::new();
    let other = Tree::named("host-1", "other.example");
    let chain = other.chain(&vik_spec(&KeyPair::generate().unwrap()));
    assert!(matches!(
        chain.verify(&tree.anchors(), now()),
        Err(ChainError::OtherIssuer)
    ));
    // Same names, other key: the path is found and the signature gives it away.
    let double = Tree::new();
    let chain = double.chain(&vik_spec(&KeyPair::generate().unwrap()));
    assert!(matches!(
        chain.verify(&tree.anchors(), now()),
        Err(ChainError::Signature)
    ));
}

#[test]
fn a_vik_of_one_host_under_another_hosts_certificate_is_refused() {
    let tree = Tree::new();
    let spec = vik_spec(&KeyPair::generate().unwrap());
    let leaf = tree.vik(&spec);
    let issuer = Issuer::from_pem(&tree.issuer.key_pem(), &tree.issuer.certificate_pem()).unwrap();
    let neighbour = Tree::under(issuer, "host-2");
    let chain = VikChain::from_der_list(&[leaf, neighbour.host]).unwrap();
    assert!(matches!(
        chain.verify(&tree.anchors(), now()),
        Err(ChainError::OtherIssuer)
    ));
}

/// A leaf as a hostile host could sign it: the honest parameters, changed.
fn forged(
    tree: &Tree,
    spec: &VikSpec,
    change: impl FnOnce(&mut CertificateParams),
) -> Result<cert_chain::VerifiedVikChain, ChainError> {
    let honest = tree.vik(spec);
    let (_, honest) = x509_parser::parse_x509_certificate(&honest).unwrap();
    let claims = honest
        .extensions()
        .iter()
        .find(|extension| extension.oid.to_id_string() == "1.3.6.1.5.5.7.1.35")
        .unwrap();

    let mut params = CertificateParams::default();
    spec_validity(&mut params, spec);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("vRoT {}", spec.vrot));
    params.subject_alt_names = vec![
        SanType::URI(format!("urn:uuid:{}", spec.vm).try_into().unwrap()),
        SanType::DnsName(
            format!("{}.host-1.demo.example", spec.vrot)
                .try_into()
                .unwrap(),
        ),
    ];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 3])];
    params.custom_extensions = vec![CustomExtension::from_oid_content(
        &[1, 3, 6, 1, 5, 5, 7, 1, 35],
        claims.value.to_vec(),
    )];
    change(&mut params);
    let issuer = rcgen::Issuer::from_ca_cert_der(&tree.host, &tree.host_key).unwrap();
    let leaf = params
        .signed_by(spec.vik.public_area(), &issuer)
        .unwrap()
        .der()
        .clone();
    VikChain::from_der_list(&[leaf, tree.host.clone()])?.verify(&tree.anchors(), now())
}

fn spec_validity(params: &mut CertificateParams, spec: &VikSpec) {
    let date = |time: rustls_pki_types::UnixTime| {
        let seconds = i64::try_from(time.as_secs()).unwrap();
        time::OffsetDateTime::from_unix_timestamp(seconds).unwrap()
    };
    params.not_before = date(spec.validity.not_before());
    params.not_after = date(spec.validity.not_after());
}

/// The way a profile error is nested, spelled once.
fn leaf_departs(result: Result<cert_chain::VerifiedVikChain, ChainError>) -> ProfileError {
    match result {
        Err(ChainError::Profile {
            member: ChainMember::Vik,
            source,
        }) => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_hostile_host_cannot_bend_the_leafs_profile() {
    let tree = Tree::new();
    let spec = vik_spec(&KeyPair::generate().unwrap());
    forged(&tree, &spec, |_| ()).unwrap();

    let ca = IsCa::Ca(BasicConstraints::Unconstrained);
    assert!(matches!(
        forged(&tree, &spec, |p| p.is_ca = ca),
        Err(ChainError::LeafIsCa)
    ));

    let elsewhere = |name: &'static str| {
        forged(&tree, &spec, move |p| {
            p.subject_alt_names[1] = SanType::DnsName(name.try_into().unwrap());
        })
    };
    for name in [
        "x.host-2.demo.example",
        "demo.example",
        "xhost-1.demo.example",
    ] {
        assert!(
            matches!(elsewhere(name), Err(ChainError::NameConstraint)),
            "{name}"
        );
    }
    assert!(matches!(
        leaf_departs(elsewhere("x.host-1.demo.example")),
        ProfileError::ClaimsContradict { field: "vRoT name" }
    ));
    let with_address = |p: &mut CertificateParams| {
        p.subject_alt_names
            .push(SanType::IpAddress([192, 0, 2, 1].into()));
    };
    assert!(matches!(
        forged(&tree, &spec, with_address),
        Err(ChainError::NameConstraint)
    ));

    let purposes = |purposes: Vec<ExtendedKeyUsagePurpose>| {
        forged(&tree, &spec, |p| p.extended_key_usages = purposes)
    };
    assert!(matches!(
        purposes(vec![ExtendedKeyUsagePurpose::ServerAuth]),
        Err(ChainError::Usage)
    ));
    let aik = ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 3]);
    for list in [vec![], vec![aik, ExtendedKeyUsagePurpose::ServerAuth]] {
        assert!(matches!(
            leaf_departs(purposes(list)),
            ProfileError::ExtendedKeyUsage { .. }
        ));
    }

    assert!(matches!(
        leaf_departs(forged(&tree, &spec, |p| {
            p.key_usages.push(KeyUsagePurpose::KeyAgreement);
        })),
        ProfileError::KeyUsage { .. }
    ));
    assert!(matches!(
        leaf_departs(forged(&tree, &spec, |p| p.custom_extensions.clear())),
        ProfileError::ClaimsMissing
    ));
    let other_vm = vik_spec(&KeyPair::generate().unwrap()).vm;
    assert!(matches!(
        leaf_departs(forged(&tree, &spec, |p| {
            p.subject_alt_names[0] =
                SanType::URI(format!("urn:uuid:{other_vm}").try_into().unwrap());
        })),
        ProfileError::ClaimsContradict { field: "VM name" }
    ));
    assert!(matches!(
        leaf_departs(forged(&tree, &spec, |p| {
            p.distinguished_name = rcgen::DistinguishedName::new();
            p.distinguished_name.push(DnType::CommonName, "vRoT");
        })),
        ProfileError::ClaimsContradict { field: "subject" }
    ));
    assert!(matches!(
        leaf_departs(forged(&tree, &spec, |p| {
            p.custom_extensions.push(p.custom_extensions[0].clone());
        })),
        ProfileError::Malformed
    ));
    let unknown_critical = |p: &mut CertificateParams| {
        let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
        extension.set_criticality(true);
        p.custom_extensions.push(extension);
    };
    assert!(matches!(
        forged(&tree, &spec, unknown_critical),
        Err(ChainError::Malformed { .. })
    ));
}

#[test]
fn claims_that_were_tampered_with_before_signing_are_refused() {
    let tree = Tree::new();
    let spec = vik_spec(&KeyPair::generate().unwrap());
    let with_claims = |change: &dyn Fn(&mut Vec<u8>)| {
        leaf_departs(forged(&tree, &spec, |p| {
            let mut value = p.custom_extensions[0].content().to_vec();
            change(&mut value);
            p.custom_extensions = vec![CustomExtension::from_oid_content(
                &[1, 3, 6, 1, 5, 5, 7, 1, 35],
                value,
            )];
        }))
    };
    // The record ends in the kind: endorsements (2) becomes evidence (4).
    assert!(matches!(
        with_claims(&|value| *value.last_mut().unwrap() = 4),
        ProfileError::Claims(ClaimsError::Kind { found: 4 })
    ));
    assert!(matches!(
        with_claims(&|value| value[0] = 0x0c),
        ProfileError::Claims(ClaimsError::Der)
    ));
    let position = |value: &[u8]| value.windows(2).position(|pair| pair == [7, 0xf5]).unwrap();
    assert!(matches!(
        with_claims(&|value| {
            let at = position(value) + 1;
            value[at] = 0xf4;
        }),
        ProfileError::Claims(ClaimsError::NotVirtual)
    ));
}

#[test]
fn a_host_certificate_must_be_a_confined_ca() {
    let tree = Tree::new();
    let spec = vik_spec(&KeyPair::generate().unwrap());
    let root_key = KeyPair::from_pem(&tree.issuer.key_pem()).unwrap();
    let root = rcgen::Issuer::from_ca_cert_der(tree.issuer.certificate(), &root_key).unwrap();

    // A vIK as issuer: it may sign, but not certificates.
    let vik_key = KeyPair::generate().unwrap();
    let vik = tree.vik(&vik_spec(&vik_key));
    let below_vik = rcgen::Issuer::from_ca_cert_der(&vik, &vik_key).unwrap();
    let mut params = CertificateParams::default();
    spec_validity(&mut params, &spec);
    let leaf = params
        .signed_by(spec.vik.public_area(), &below_vik)
        .unwrap();
    let chain = VikChain::from_der_list(&[leaf.der().clone(), vik]).unwrap();
    assert!(matches!(
        chain.verify(&tree.anchors(), now()),
        Err(ChainError::HostIsNoCa)
    ));

    // A leaf that the root signed itself: no host vouches for it.
    let leaf = params.signed_by(spec.vik.public_area(), &root).unwrap();
    let chain = VikChain::from_der_list(&[leaf.der().clone(), tree.host.clone()]).unwrap();
    assert!(matches!(
        chain.verify(&tree.anchors(), now()),
        Err(ChainError::OtherIssuer)
    ));

    // A CA without name constraints, or with wider ones, although the true issuer signed it.
    let mut params = CertificateParams::default();
    spec_validity(&mut params, &spec);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "host-1.demo.example");
    params.subject_alt_names = vec![SanType::DnsName("host-1.demo.example".try_into().unwrap())];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
    ];
    let wider = NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName("demo.example".to_owned())],
        excluded_subtrees: vec![],
    };
    for constraints in [None, Some(wider)] {
        params.name_constraints = constraints;
        let host = params.signed_by(&tree.host_key, &root).unwrap();
        let chain = VikChain::from_der_list(&[tree.vik(&spec), host.der().clone()]).unwrap();
        assert!(matches!(
            chain.verify(&tree.anchors(), now()),
            Err(ChainError::Profile {
                member: ChainMember::Host,
                source: ProfileError::NameConstraints
            })
        ));
    }
}

#[test]
fn a_root_with_another_signature_algorithm_serves_as_well() {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "demo.example");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root = params.self_signed(&key).unwrap();
    let issuer = Issuer::from_pem(&key.serialize_pem(), &root.pem()).unwrap();
    let tree = Tree::under(issuer, "host-1");
    let chain = tree.chain(&vik_spec(&KeyPair::generate().unwrap()));
    assert!(chain.verify(&tree.anchors(), now()).is_ok());
}

#[test]
fn trust_anchors_are_never_empty() {
    assert!(TrustAnchors::from_pem("").is_err());
    assert!(TrustAnchors::from_pem("no certificate").is_err());
    let tree = Tree::new();
    let pem = tree.issuer.certificate_pem();
    assert!(TrustAnchors::from_pem(&pem).is_ok());
    let two = format!("{pem}{}", Tree::new().issuer.certificate_pem());
    let anchors = TrustAnchors::from_pem(&two).unwrap();
    let chain = tree.chain(&vik_spec(&KeyPair::generate().unwrap()));
    assert!(chain.verify(&anchors, now()).is_ok());
}

#[test]
fn hostile_bytes_never_panic() {
    let tree = Tree::new();
    let anchors = tree.anchors();
    let chain = tree.chain(&vik_spec(&KeyPair::generate().unwrap()));
    let joined = [
        chain.vik_certificate().as_ref(),
        chain.host_certificate().as_ref(),
    ]
    .concat();
    for length in 0..joined.len() {
        if let Ok(chain) = VikChain::from_concatenated_der(&joined[..length]) {
            let _ = chain.verify(&anchors, now());
        }
    }
    for position in 0..joined.len() {
        for byte in [0x00, 0x7f, 0x80, 0x84, 0xff] {
            let mut changed = joined.clone();
            changed[position] = byte;
            if let Ok(chain) = VikChain::from_concatenated_der(&changed) {
                let _ = chain.verify(&anchors, now());
                let _ =
                    cert_chain::profile::host_ik::HostCertificate::read(chain.host_certificate());
            }
        }
    }
}
