//! Readings from bytes.

use data_signing::stream::Framing;
use data_signing::stream::framing::{FramingError, ReadingInput};
use signed_data::stream::MAX_READING;

fn all(framing: Framing, bytes: &[u8]) -> (Vec<Vec<u8>>, Option<FramingError>) {
    let (mut readings, mut error) = (Vec::new(), None);
    for reading in ReadingInput::new(bytes, framing) {
        match reading {
            Ok(reading) => readings.push(reading),
            Err(found) => error = Some(found),
        }
    }
    (readings, error)
}

#[test]
fn lines_are_readings() {
    let (readings, error) = all(Framing::JsonLines, b"1\n{\"a\":2}\n\n \"x\"\n");
    assert_eq!(readings, [&b"1"[..], b"{\"a\":2}", b" \"x\""]);
    assert!(error.is_none(), "{error:?}");
    let (readings, error) = all(Framing::Lines, b"a\n\nb\xff\n");
    assert_eq!(readings, [&b"a"[..], b"", b"b\xff"]);
    assert!(error.is_none(), "{error:?}");
}

#[test]
fn a_line_without_its_end_is_no_reading() {
    for framing in [Framing::JsonLines, Framing::Lines] {
        // Of 21.5, perhaps.
        let (readings, error) = all(framing, b"1\n2");
        assert_eq!(readings, [b"1"]);
        assert!(matches!(error, Some(FramingError::CutOff(2))), "{error:?}");
    }
}

#[test]
fn what_is_no_reading_is_named_by_its_line_and_what_came_before_is_kept() {
    let (readings, error) = all(Framing::JsonLines, b"1\n\n{\"a\":\n3\n");
    assert_eq!(readings, [b"1"]);
    assert!(
        matches!(error, Some(FramingError::NotJson { line: 3, .. })),
        "{error:?}"
    );
    let long = [b"1\n".to_vec(), vec![b'7'; MAX_READING + 1]].concat();
    let (readings, error) = all(Framing::JsonLines, &long);
    assert_eq!(readings, [b"1"]);
    assert!(matches!(error, Some(FramingError::TooLong(2))), "{error:?}");
    let fits = vec![b'7'; MAX_READING];
    let line = [&fits[..], b"\n"].concat();
    assert_eq!(all(Framing::JsonLines, &line).0, [fits]);
}

#[test]
fn readings_with_their_length_before_them_may_hold_anything() {
    let bytes = b"\0\0\0\x02a\n\0\0\0\0\0\0\0\x01b";
    let (readings, error) = all(Framing::Length, bytes);
    assert_eq!(readings, [&b"a\n"[..], b"", b"b"]);
    assert!(error.is_none(), "{error:?}");
    for cut in [1, 4, 5, 7, 14] {
        let (_, error) = all(Framing::Length, &bytes[..cut]);
        assert!(matches!(error, Some(FramingError::CutOff(_))), "{cut}");
    }
    let (_, error) = all(Framing::Length, b"\0\x01\0\x01");
    assert!(matches!(error, Some(FramingError::TooLong(1))), "{error:?}");
}
