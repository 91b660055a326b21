//! Public areas are read exactly, and a key becomes an attestation or an endorsement key only
//! with every attribute of one.

use cert_chain::attestation_key::AttestationKeyError as A;
use cert_chain::endorsement_key::EndorsementKeyError as E;
use cert_chain::public_area::{KeyParameters, MAX_PUBLIC_AREA, PublicAreaError};
use cert_chain::{AttestationKey, EndorsementKey, ObjectAttributes, PublicArea};
use rcgen::KeyPair;
use rsa::rand_core::OsRng;

use crate::support::{
    AES_128_CFB, ATTESTATION, ENDORSEMENT, p256_area, rsa_storage_area, signing_area,
};

const NULL: [u8; 2] = [0x00, 0x10];
const ECDSA_SHA256: [u8; 4] = [0x00, 0x18, 0x00, 0x0b];

fn without(all: ObjectAttributes, one: ObjectAttributes) -> ObjectAttributes {
    ObjectAttributes::from_bits(all.bits() & !one.bits())
}

fn attestation(area: &[u8]) -> Result<AttestationKey, A> {
    PublicArea::parse(area).unwrap().try_into()
}

fn endorsement(area: &[u8]) -> Result<EndorsementKey, E> {
    PublicArea::parse(area).unwrap().try_into()
}

#[test]
fn each_missing_attribute_of_an_attestation_key_is_its_own_error() {
    let key = KeyPair::generate().unwrap();
    assert!(attestation(&signing_area(&key, ATTESTATION, &[])).is_ok());
    for (attribute, error) in [
        (ObjectAttributes::FIXED_TPM, A::NotFixedTpm),
        (ObjectAttributes::FIXED_PARENT, A::NotFixedParent),
        (
            ObjectAttributes::SENSITIVE_DATA_ORIGIN,
            A::NotSensitiveDataOrigin,
        ),
        (ObjectAttributes::RESTRICTED, A::NotRestricted),
        (ObjectAttributes::SIGN, A::NotSigning),
    ] {
        let area = signing_area(&key, without(ATTESTATION, attribute), &[]);
        assert_eq!(attestation(&area), Err(error));
    }
    for (attribute, error) in [
        (ObjectAttributes::DECRYPT, A::Decrypts),
        (ObjectAttributes::X509_SIGN, A::X509Sign),
    ] {
        let area = signing_area(&key, ATTESTATION.with(attribute), &[]);
        assert_eq!(attestation(&area), Err(error));
    }
    let ecdsa_sha384 = [0x00, 0x18, 0x00, 0x0c];
    for scheme in [&NULL[..], &ecdsa_sha384] {
        let area = p256_area(&key, ATTESTATION, &[], &NULL, scheme);
        assert_eq!(attestation(&area), Err(A::Scheme));
    }
    let area = p256_area(&key, ATTESTATION, &[], &AES_128_CFB, &ECDSA_SHA256);
    assert_eq!(attestation(&area), Err(A::ProtectsChildren));

    let mut sha384_name = signing_area(&key, ATTESTATION, &[]);
    sha384_name[3] = 0x0c;
    assert_eq!(attestation(&sha384_name), Err(A::NameAlgorithm));
}

#[test]
fn an_endorsement_key_is_no_attestation_key_and_the_reverse() {
    let key = KeyPair::generate().unwrap();
    let ek = p256_area(&key, ENDORSEMENT, &[7; 32], &AES_128_CFB, &NULL);
    assert_eq!(attestation(&ek), Err(A::Decrypts));
    let rsa = rsa::RsaPrivateKey::new(&mut OsRng, 2048)
        .unwrap()
        .to_public_key();
    assert_eq!(
        attestation(&rsa_storage_area(&rsa, ENDORSEMENT, &[7; 32])),
        Err(A::Decrypts)
    );
    assert_eq!(
        attestation(&rsa_storage_area(&rsa, ATTESTATION, &[7; 32])),
        Err(A::NotP256)
    );
    let ak = signing_area(&key, ATTESTATION, &[7; 32]);
    assert_eq!(endorsement(&ak), Err(E::Signs));
}

#[test]
fn each_missing_attribute_of_an_endorsement_key_is_its_own_error() {
    let key = KeyPair::generate().unwrap();
    let area = |attributes, policy: &[u8], symmetric: &[u8], scheme: &[u8]| {
        p256_area(&key, attributes, policy, symmetric, scheme)
    };
    assert!(endorsement(&area(ENDORSEMENT, &[7; 32], &AES_128_CFB, &NULL)).is_ok());
    for (attribute, error) in [
        (ObjectAttributes::FIXED_TPM, E::NotFixedTpm),
        (ObjectAttributes::FIXED_PARENT, E::NotFixedParent),
        (
            ObjectAttributes::SENSITIVE_DATA_ORIGIN,
            E::NotSensitiveDataOrigin,
        ),
        (ObjectAttributes::RESTRICTED, E::NotRestricted),
        (ObjectAttributes::DECRYPT, E::NotDecrypting),
    ] {
        let area = area(
            without(ENDORSEMENT, attribute),
            &[7; 32],
            &AES_128_CFB,
            &NULL,
        );
        assert_eq!(endorsement(&area), Err(error));
    }
    let aes_256 = [0x00, 0x06, 0x01, 0x00, 0x00, 0x43];
    for (policy, symmetric, scheme, error) in [
        (&[][..], &AES_128_CFB[..], &NULL[..], E::NoPolicy),
        (&[7; 32], &aes_256, &NULL, E::Protection),
        (&[7; 32], &NULL, &NULL, E::Protection),
        (&[7; 32], &AES_128_CFB, &ECDSA_SHA256, E::Scheme),
    ] {
        let area = area(ENDORSEMENT, policy, symmetric, scheme);
        assert_eq!(endorsement(&area), Err(error));
    }
}

#[test]
fn a_public_area_is_read_to_the_last_byte() {
    let key = KeyPair::generate().unwrap();
    let area = signing_area(&key, ATTESTATION, &[9; 32]);
    let parsed = PublicArea::parse(&area).unwrap();
    assert_eq!(parsed.as_bytes(), area);
    assert_eq!(parsed.auth_policy(), [9; 32]);
    assert_eq!(
        parsed.public_key_bytes(),
        rcgen::PublicKeyData::der_bytes(&key)
    );
    assert!(matches!(parsed.parameters(), KeyParameters::P256 { .. }));

    let longer = [&area[..], &[0]].concat();
    assert!(matches!(
        PublicArea::parse(&longer),
        Err(PublicAreaError::TrailingBytes { extra: 1 })
    ));
    for length in 0..area.len() {
        assert!(
            PublicArea::parse(&area[..length]).is_err(),
            "{length} bytes"
        );
    }
    assert!(matches!(
        PublicArea::parse(&[0; MAX_PUBLIC_AREA + 1]),
        Err(PublicAreaError::TooLong { .. })
    ));
}

#[test]
fn a_point_off_the_curve_is_refused() {
    let mut area = signing_area(&KeyPair::generate().unwrap(), ATTESTATION, &[]);
    *area.last_mut().unwrap() ^= 1;
    assert!(matches!(
        PublicArea::parse(&area),
        Err(PublicAreaError::Point)
    ));
}

#[test]
fn other_curves_object_types_and_name_algorithms_are_named_in_the_error() {
    let area = signing_area(&KeyPair::generate().unwrap(), ATTESTATION, &[]);
    let mut sha1 = area.clone();
    sha1[3] = 0x04;
    assert!(matches!(
        PublicArea::parse(&sha1),
        Err(PublicAreaError::NameAlgorithm { found: 0x0004 })
    ));
    // Type, name algorithm, attributes, empty policy, no cipher, ECDSA with SHA-256: 16 bytes.
    let mut p384 = area;
    p384[17] = 0x04;
    assert!(matches!(
        PublicArea::parse(&p384),
        Err(PublicAreaError::Curve { curve: 0x0004 })
    ));
    let keyed_hash = [&[0, 8, 0, 11, 0, 0, 0, 0x40, 0, 0, 0, 0x10, 0, 0][..]].concat();
    assert!(matches!(
        PublicArea::parse(&keyed_hash),
        Err(PublicAreaError::KeyType { found: 0x0008 })
    ));
}

#[test]
fn an_rsa_key_must_have_the_size_it_states() {
    let rsa = rsa::RsaPrivateKey::new(&mut OsRng, 2048)
        .unwrap()
        .to_public_key();
    let area = rsa_storage_area(&rsa, ENDORSEMENT, &[7; 32]);
    assert!(PublicArea::parse(&area).is_ok());
    let bits = area
        .windows(2)
        .position(|pair| pair == [0x08, 0x00])
        .unwrap();
    let mut short = area.clone();
    short[bits] = 0x04;
    let mut even_exponent = area.clone();
    even_exponent[bits + 5] = 2;
    let mut small = area;
    small[bits + 8] = 0;
    for area in [short, even_exponent, small] {
        assert!(matches!(
            PublicArea::parse(&area),
            Err(PublicAreaError::RsaKey { .. })
        ));
    }
}

#[test]
fn hostile_public_areas_never_panic() {
    let key = KeyPair::generate().unwrap();
    let rsa = rsa::RsaPrivateKey::new(&mut OsRng, 2048)
        .unwrap()
        .to_public_key();
    for area in [
        signing_area(&key, ATTESTATION, &[9; 32]),
        rsa_storage_area(&rsa, ENDORSEMENT, &[7; 32]),
    ] {
        for position in 0..area.len().min(60) {
            for byte in 0..=0xff {
                let mut changed = area.clone();
                changed[position] = byte;
                if let Ok(parsed) = PublicArea::parse(&changed) {
                    assert_eq!(parsed.as_bytes(), changed);
                    let _ = parsed.subject_public_key_info();
                    let _ = AttestationKey::try_from(parsed.clone());
                    let _ = EndorsementKey::try_from(parsed);
                }
            }
        }
    }
}
