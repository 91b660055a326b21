//! Time stamps over COSE signatures.

use archive::ArchiveHash;
use archive::cose_time_stamp::{StampedError, StampedSign1, signature_imprint};

use crate::authority::{Authority, now};

/// The COSE_Sign1 of RFC 9921 §3.1.1: `18([<<{1: -7}>>, {4: '11'}, 'This is the content.', signature])`.
pub(crate) fn example() -> Vec<u8> {
    let signature = "8eb33e4ca31d1c465ab05aac34cc6b23d58fef5c083106c4d25a91aef0b0117e2af9a291aa32e14ab834dc56ed2a2234\
                     44547e01f11d3b0916e5a4c345cacb36";
    let text =
        format!("d28443a10126a10442313154546869732069732074686520636f6e74656e742e5840{signature}");
    hex::decode(text).unwrap()
}

#[test]
fn the_imprint_is_that_of_the_rfc() {
    let imprint = signature_imprint(&example(), ArchiveHash::Sha256).unwrap();
    let shown = hex::encode(imprint.value());
    assert_eq!(
        shown,
        "44c2419d131d53d55584b5dd33b788c24e551c6d44b1afc8b2b85e6954763b4e"
    );
}

#[test]
fn a_time_stamp_goes_into_the_header_and_comes_out_again() {
    let authority = Authority::new();
    let imprint = signature_imprint(&example(), ArchiveHash::Sha256).unwrap();
    let stamped = StampedSign1 {
        sign1: example(),
        token: Some(authority.stamp(imprint.clone())),
    };
    let bytes = stamped.to_cbor().unwrap();
    assert_eq!(
        signature_imprint(&bytes, ArchiveHash::Sha256).unwrap(),
        imprint
    );
    let read = StampedSign1::read(&bytes).unwrap();
    assert_eq!(read, stamped);
    read.token
        .unwrap()
        .verify(&imprint, &authority.anchors(), now())
        .unwrap();
    let twice = StampedSign1 {
        sign1: bytes,
        ..stamped
    };
    assert!(matches!(twice.to_cbor(), Err(StampedError::Stamped)));
}

#[test]
fn what_is_no_sign1_is_refused_at_every_length() {
    let example = example();
    for length in 0..example.len() {
        assert!(StampedSign1::read(&example[..length]).is_err());
    }
    assert!(StampedSign1::read(&[example.as_slice(), &[0]].concat()).is_err());
}

#[test]
fn an_item_of_a_header_that_does_not_say_its_length_is_refused() {
    // What stands for `'11'` under `kid`, which nobody looks at here: arrays in arrays, and one alone.
    let nested = [[0x9f; 1000], [0xff; 1000]].concat();
    for value in [&nested[..], &[0x9f, 0xff], &[0x5f, 0x42, 0x31, 0x31, 0xff]] {
        let example = example();
        let header = example
            .windows(5)
            .position(|at| at == [0xa1, 4, 0x42, 0x31, 0x31])
            .unwrap();
        let (before, behind) = (&example[..header + 2], &example[header + 5..]);
        let error = StampedSign1::read(&[before, value, behind].concat()).unwrap_err();
        assert!(
            error.to_string().contains("does not say its length"),
            "{error}"
        );
    }
}
