//! Tokens that are made to take their reader's time.

use archive::{ArchiveHash, TimeStampError, Token};

use crate::authority::Authority;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// As CMS has its set of certificates, and the same as if it had no elements.
const CERTIFICATES: [u8; 2] = [0xa0, 0x80];

/// An element of up to 16 MiB.
fn element(tag: u8, contents: &[u8]) -> Vec<u8> {
    let length = u32::try_from(contents.len()).unwrap().to_be_bytes();
    let short = length.iter().position(|octet| *octet != 0).unwrap_or(3);
    let length = &length[short..];
    match (length, contents.len()) {
        ([one], 0..=0x7f) => [&[tag, *one], contents].concat(),
        _ => [
            &[tag, 0x80 | u8::try_from(length.len()).unwrap()],
            length,
            contents,
        ]
        .concat(),
    }
}

/// So many algorithms, which no two are the same, in falling order.
fn falling(number: u32) -> Vec<u8> {
    let of = |number: u32| {
        let arc = [14, 7, 0].map(|shift| u8::try_from(number >> shift & 0x7f).unwrap());
        let oid = [0x2a, arc[0] | 0x80, arc[1] | 0x80, arc[2]];
        element(SEQUENCE, &element(0x06, &oid))
    };
    // The first part of an OID's number is not zero.
    let first = 1 << 14;
    (first..first + number).rev().flat_map(of).collect()
}

/// CMS signed data that begin with these elements.
fn signed_data(elements: &[Vec<u8>]) -> Vec<u8> {
    let version = element(0x02, &[3]);
    let signed = element(SEQUENCE, &[version, elements.concat()].concat());
    let oid = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];
    let content = [element(0x06, &oid), element(0xa0, &signed)].concat();
    element(SEQUENCE, &content)
}

fn why(token: &[u8]) -> &'static str {
    match Token::from_der(token) {
        Err(TimeStampError::Malformed(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_set_of_more_elements_than_a_token_needs_is_refused_before_it_is_sorted() {
    let algorithms = signed_data(&[element(SET, &falling(100_000))]);
    assert_eq!(why(&algorithms), "a set in it has too many elements");
    let content = element(SEQUENCE, &element(0x06, &[0x2a, 0x03]));
    let [whole, primitive] = CERTIFICATES.map(|tag| {
        let certificates = element(tag, &falling(100_000));
        signed_data(&[element(SET, &[]), content.clone(), certificates])
    });
    assert_eq!(why(&whole), "a set in it has too many elements");
    assert_eq!(why(&primitive), "an identifier in it is too long");
    let name = element(SET, &falling(100_000));
    let deep = (0..8).fold(name, |inner, _| element(SEQUENCE, &inner));
    let deep = signed_data(&[element(SET, &[]), content, element(0xa0, &deep)]);
    assert_eq!(why(&deep), "a set in it has too many elements");
    let nested = (0..1000).fold(Vec::new(), |inner, _| element(SEQUENCE, &inner));
    assert_eq!(why(&nested), "its elements are nested too deep");
}

#[test]
fn a_token_carries_sixteen_revocation_lists_and_no_more() {
    let authority = Authority::new();
    let token = authority.stamp(ArchiveHash::Sha256.of(b"21.4 degrees"));
    let lists: Vec<_> = (0..17).map(|_| authority.crl(None)).collect();
    let full = token.with_crls(&lists[..16]).unwrap();
    assert_eq!(full.crls().unwrap().len(), 16);
    let refused = full.with_crls(&lists[16..]);
    assert!(
        matches!(
            refused,
            Err(TimeStampError::Malformed(
                "it has too many revocation lists"
            ))
        ),
        "{refused:?}"
    );
}
