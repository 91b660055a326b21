//! What is refused before CBOR is decoded, because its parts in memory have many times the bytes that it has.

use minicbor::data::Type;
use minicbor::decode::Error;
use minicbor::{Decode, Decoder};

/// Whether each item says its length. In deterministic CBOR (RFC 8949 §4.2.1) each does; and the decoder, where
/// it passes over what it does not know, takes a note of sixteen bytes for each item that does not, of one byte.
pub fn has_definite_lengths(bytes: &[u8]) -> bool {
    let mut decoder = Decoder::new(bytes);
    while decoder.position() < bytes.len() {
        let read = decoder.datatype().and_then(|found| match found {
            Type::Array => decoder.array().map(|length| length.is_some()),
            Type::Map => decoder.map().map(|length| length.is_some()),
            Type::Tag => decoder.tag().map(|_| true),
            Type::ArrayIndef
            | Type::MapIndef
            | Type::BytesIndef
            | Type::StringIndef
            | Type::Break => Ok(false),
            // It has no others in it.
            _ => decoder.skip().map(|()| true),
        });
        match read {
            Ok(true) => {}
            Ok(false) => return false,
            // What is missing at the end, the decoder tells.
            Err(error) => return error.is_end_of_input(),
        }
    }
    true
}

/// An array that announces no more than `MOST` elements: an empty element has one byte, and in memory more.
pub fn at_most<'b, const MOST: u64, T: Decode<'b, C>, C>(
    decoder: &mut Decoder<'b>,
    context: &mut C,
) -> Result<Vec<T>, Error> {
    let position = decoder.position();
    match decoder.probe().array()? {
        Some(length) if length <= MOST => Vec::decode(decoder, context),
        _ => {
            Err(Error::message(format_args!("an array of more than {MOST} elements")).at(position))
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn an_item_that_does_not_say_its_length_is_found_wherever_it_stands() {
        let definite = minicbor::to_vec((1u8, "text", [[7u16; 3]; 2], Some(-1i64))).unwrap();
        assert!(has_definite_lengths(&definite));
        // What follows nothing, and what a value has in it.
        assert!(has_definite_lengths(&[]));
        assert!(has_definite_lengths(&[0x42, 0x9f, 0xff]));
        for indefinite in [
            &[0x9f, 0xff][..],
            &[0xbf, 0xff],
            &[0x5f, 0x41, 0, 0xff],
            &[0x7f, 0xff],
            &[0x82, 0x81, 0x9f, 0xff],
            &[0xa1, 0, 0xc1, 0x9f],
            &[0xff],
        ] {
            assert!(!has_definite_lengths(indefinite), "{indefinite:x?}");
        }
    }

    #[test]
    fn an_array_that_announces_too_many_elements_is_not_read() {
        let read = |bytes: &[u8]| at_most::<2, u8, ()>(&mut Decoder::new(bytes), &mut ());
        assert_eq!(read(&[0x82, 1, 2]).unwrap(), [1, 2]);
        for more in [&[0x83, 1, 2, 3][..], &[0x9f, 1, 0xff], &[0x9b, 0xff]] {
            assert!(read(more).is_err());
        }
    }
}
