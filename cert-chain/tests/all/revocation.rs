//! Revocation lists: one that says a host is revoked takes its vRoTs along, and where a list is
//! demanded, nothing but a valid one of the issuer will do.

use std::time::Duration;

use cert_chain::crl::{Crl, CrlError, CrlFileError, MAX_CRL};
use cert_chain::profile::validity::CLOCK_SKEW;
use cert_chain::profile::{CrlSpec, RevokedCertificate};
use cert_chain::{
    CertificateSerial, ChainError, Issuer, RevocationDemand, RevocationError, RevocationLists,
    RevocationReason, RevocationStatus, TrustAnchors, Validity, VerifiedVikChain,
};
use rcgen::KeyPair;

use crate::support::{DAY, NOW, Tree, at, now, vik_spec, years};

const WEEK: u64 = 7 * DAY;

/// A list that was made at this time and lives for a week.
pub(crate) fn list(issuer: &Issuer, number: u64, made: u64, revoked: &[&[u8]]) -> Crl {
    let of = |certificate: &&[u8]| RevokedCertificate {
        serial: CertificateSerial::of_certificate(certificate).unwrap(),
        since: at(made),
        reason: RevocationReason::KeyCompromise,
    };
    // Lists are dated back.
    let from = at(made + CLOCK_SKEW.as_secs());
    let until = Duration::from_secs(WEEK) - CLOCK_SKEW;
    let spec = CrlSpec {
        number,
        validity: Validity::starting(from, until).unwrap(),
        revoked: revoked.iter().map(of).collect(),
    };
    issuer.sign_crl(&spec).unwrap()
}

fn demanding(tree: &Tree) -> TrustAnchors {
    tree.anchors().demanding(RevocationDemand::Listed {
        max_age: Duration::from_secs(3 * DAY),
    })
}

fn with(anchors: &TrustAnchors, lists: &[&Crl]) -> TrustAnchors {
    anchors.with_carried(lists.iter().map(|list| list.der()))
}

fn verify(tree: &Tree, anchors: &TrustAnchors) -> Result<VerifiedVikChain, RevocationError> {
    let chain = tree.chain(&vik_spec(&KeyPair::generate().unwrap()));
    chain.verify(anchors, now()).map_err(|error| match error {
        ChainError::Revocation(error) => error,
        other => panic!("{other:?}"),
    })
}

#[test]
fn a_revoked_host_takes_all_its_vrots_along_and_no_other_hosts() {
    let tree = Tree::new();
    let issuer =
        |of: &Tree| Issuer::from_pem(&of.issuer.key_pem(), &of.issuer.certificate_pem()).unwrap();
    let other = Tree::under(issuer(&tree), "host-2");
    let revoking = list(&tree.issuer, 2, NOW - DAY, &[&tree.host]);
    // It is heeded where no list is demanded, too.
    for anchors in [tree.anchors(), demanding(&tree)] {
        let anchors = with(&anchors, &[&revoking]);
        for _ in 0..2 {
            let refused = verify(&tree, &anchors).unwrap_err();
            let serial = CertificateSerial::of_certificate(&tree.host).unwrap();
            let expected = RevocationError::Revoked {
                subject: "host-1.demo.example".to_owned(),
                serial,
                since: NOW - DAY,
                reason: RevocationReason::KeyCompromise,
            };
            assert_eq!(refused, expected);
        }
        let verified = verify(&other, &anchors).unwrap();
        assert!(matches!(
            verified.revocation(),
            RevocationStatus::NotListed(list) if list.number == 2u8.into()
        ));
    }
    // It does not become right again with time.
    let old = list(&tree.issuer, 2, NOW - 300 * DAY, &[&tree.host]);
    assert!(matches!(
        verify(&tree, &with(&tree.anchors(), &[&old])),
        Err(RevocationError::Revoked { .. })
    ));
}

#[test]
fn the_newest_list_counts_in_whatever_order_they_come() {
    let tree = Tree::new();
    let clean = list(&tree.issuer, 9, NOW - DAY, &[]);
    let revoking = list(&tree.issuer, 10, NOW - DAY, &[&tree.host]);
    let corrected = list(&tree.issuer, 300, NOW - DAY, &[]);
    for lists in [[&clean, &revoking], [&revoking, &clean]] {
        assert!(matches!(
            verify(&tree, &with(&demanding(&tree), &lists)),
            Err(RevocationError::Revoked { .. })
        ));
    }
    // Given to the verifier, beside one that was carried.
    let mut given = RevocationLists::default();
    given.add(std::sync::Arc::new(corrected));
    let anchors = demanding(&tree).with_lists(&given);
    assert!(verify(&tree, &with(&anchors, &[&revoking])).is_ok());
}

#[test]
fn without_a_valid_list_of_the_issuer_a_host_is_refused_where_one_is_demanded() {
    let tree = Tree::new();
    let namesake = Tree::new();
    let stranger = Tree::named("host-1", "other.example");
    let of = |tree: &Tree, made| list(&tree.issuer, 1, made, &[]);
    let refused = |lists: &[&Crl]| verify(&tree, &with(&demanding(&tree), lists)).unwrap_err();

    assert_eq!(refused(&[]), RevocationError::Missing);
    let foreign = of(&stranger, NOW - DAY);
    assert_eq!(refused(&[&foreign]), RevocationError::OtherIssuer);
    let forged = of(&namesake, NOW - DAY);
    assert_eq!(refused(&[&forged]), RevocationError::Signature);
    assert_eq!(refused(&[&foreign, &forged]), RevocationError::Signature);
    assert!(matches!(
        refused(&[&of(&tree, NOW - 3 * DAY - 1)]),
        RevocationError::TooOld { age, .. } if age == 3 * DAY + 1
    ));
    assert!(matches!(
        refused(&[&of(&tree, NOW - WEEK - 1)]),
        RevocationError::Expired { next_update, .. } if next_update == NOW - 1
    ));
    assert!(matches!(
        refused(&[&of(&tree, NOW + 1)]),
        RevocationError::NotYetValid { this_update, .. } if this_update == NOW + 1
    ));
    let carrying_nonsense = demanding(&tree).with_carried([b"no list".as_slice()]);
    assert!(matches!(
        verify(&tree, &carrying_nonsense),
        Err(RevocationError::Malformed(CrlError::Malformed(_)))
    ));
    let too_long = demanding(&tree).with_carried([vec![0x30; MAX_CRL + 1].as_slice()]);
    assert!(matches!(
        verify(&tree, &too_long),
        Err(RevocationError::Malformed(CrlError::TooLong { .. }))
    ));

    // What cannot be used does not spoil what can.
    let good = of(&tree, NOW - 3 * DAY);
    let anchors = with(&carrying_nonsense, &[&foreign, &forged, &good]);
    assert!(verify(&tree, &anchors).is_ok());
    // Nor does a forged list of a high number.
    let newest = list(&namesake.issuer, 99, NOW, &[&tree.host]);
    assert!(verify(&tree, &with(&anchors, &[&newest])).is_ok());
    // And where none is demanded, nobody says that one was looked at.
    for lists in [vec![], vec![&forged], vec![&foreign]] {
        let verified = verify(&tree, &with(&tree.anchors(), &lists)).unwrap();
        assert_eq!(*verified.revocation(), RevocationStatus::NotAsked);
    }
    let expired = of(&tree, NOW - WEEK - 1);
    let verified = verify(&tree, &with(&tree.anchors(), &[&expired])).unwrap();
    assert_eq!(*verified.revocation(), RevocationStatus::NotAsked);
}

#[test]
fn a_verified_chain_counts_no_longer_than_its_revocation_list() {
    let tree = Tree::new();
    let until = |made| {
        let list = list(&tree.issuer, 1, made, &[]);
        let verified = verify(&tree, &with(&demanding(&tree), &[&list])).unwrap();
        verified.not_after().as_secs()
    };
    assert_eq!(until(NOW), NOW + DAY, "as long as the vIK's certificate");
    assert_eq!(until(NOW - 3 * DAY + 60), NOW + 60, "until it is too old");
    let long = tree.anchors().demanding(RevocationDemand::Listed {
        max_age: Duration::from_secs(1_000 * DAY),
    });
    let list = list(&tree.issuer, 1, NOW - WEEK + 60, &[]);
    let verified = verify(&tree, &with(&long, &[&list])).unwrap();
    assert_eq!(verified.not_after().as_secs(), NOW + 60, "until its next");
}

#[test]
fn no_single_changed_byte_of_a_list_is_accepted() {
    let tree = Tree::new();
    let chain = tree.chain(&vik_spec(&KeyPair::generate().unwrap()));
    let honest = list(&tree.issuer, 7, NOW - DAY, &[&tree.host]);
    let anchors = demanding(&tree);
    for position in 0..honest.der().len() {
        for change in [0x01, 0x10, 0x80, 0xff] {
            let mut changed = honest.der().to_vec();
            changed[position] ^= change;
            let anchors = anchors.with_carried([changed.as_slice()]);
            assert!(
                matches!(
                    chain.verify(&anchors, now()),
                    Err(ChainError::Revocation(
                        RevocationError::Malformed(_)
                            | RevocationError::Signature
                            | RevocationError::OtherIssuer
                    ))
                ),
                "byte {position} ^ {change:#04x}"
            );
        }
    }
}

#[test]
fn a_file_of_lists_holds_nothing_else() {
    let tree = Tree::new();
    let (one, two) = (
        list(&tree.issuer, 1, NOW, &[]),
        list(&tree.issuer, 2, NOW, &[&tree.host]),
    );
    let numbers = |file: &[u8]| -> Vec<String> {
        let lists = Crl::all_from_file(file).unwrap();
        lists.iter().map(|list| list.number().to_string()).collect()
    };
    let both = [one.to_pem(), two.to_pem()].concat();
    assert_eq!(numbers(both.as_bytes()), ["1", "2"]);
    assert_eq!(numbers(two.der()), ["2"]);

    let refused = |file: &[u8]| Crl::all_from_file(file).unwrap_err();
    assert!(matches!(refused(b"# lists\n"), CrlFileError::Empty));
    let root = tree.issuer.certificate_pem();
    let mixed = [both.clone(), root].concat();
    assert!(matches!(refused(mixed.as_bytes()), CrlFileError::File(_)));
    let cut = &both.as_bytes()[..both.len() - 40];
    assert!(matches!(refused(cut), CrlFileError::File(_)));
    let joined = [one.der(), two.der()].concat();
    assert!(matches!(refused(&joined), CrlFileError::List(_)));
    let many = one.to_pem().repeat(17);
    assert!(matches!(refused(many.as_bytes()), CrlFileError::TooMany));
}

#[test]
fn a_list_is_not_made_beyond_what_is_read_or_the_issuers_own_end() {
    let tree = Tree::new();
    let revoked = |count: u64| {
        let serial = |number: u64| RevokedCertificate {
            serial: format!("41{number:030x}").parse().unwrap(),
            since: now(),
            reason: RevocationReason::Superseded,
        };
        CrlSpec {
            number: 1,
            validity: years(100),
            revoked: (0..count).map(serial).collect(),
        }
    };
    let list = tree.issuer.sign_crl(&revoked(1_000)).unwrap();
    assert!(list.next_update().as_secs() <= NOW + 10 * 366 * DAY);
    let last = format!("41{:030x}", 999).parse().unwrap();
    let found = list.find(&last).unwrap();
    assert_eq!(found.reason, RevocationReason::Superseded);
    assert!(tree.issuer.sign_crl(&revoked(25_000)).is_err());
}
