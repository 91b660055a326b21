//! The stream of requests, cut where one ends and the next begins, however it arrives.

use super::request::{Request, RequestError};

/// Where in the stream of requests a channel stands.
///
/// A locality is one byte in a union of four, of which some clients send one byte and others all
/// four; what those put into the other three is not defined. What tells them apart is the next
/// request: its number is small, so that it begins with three zeros and a byte that is none. Four
/// zeros are therefore padding and the first byte of a request, and anything but three zeros is
/// padding alone. Three zeros, and less, wait for what comes next: the locality itself is answered
/// by then, so that no client waits for them.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestStream {
    padding_may_follow: bool,
}

/// Of the union around a locality.
const PADDING: usize = 3;

impl RequestStream {
    /// Takes the request at the beginning of `bytes`: with it comes the number of bytes that are
    /// used up. `None` while it is not complete; it is then to be called again with the same bytes
    /// and more.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Option<(Request, usize)>, RequestError> {
        let Some(padding) = self.padding(bytes) else {
            return Ok(None);
        };
        let request = Request::parse(bytes.get(padding..).unwrap_or_default())?;
        Ok(request.map(|(request, length)| {
            self.padding_may_follow = matches!(
                request,
                Request::SetLocality(_) | Request::ResetEstablished(_)
            );
            (request, padding + length)
        }))
    }

    /// Whether `bytes`, in which [`take`](Self::take) found no whole request, are the beginning
    /// of one.
    pub fn has_begun(&self, bytes: &[u8]) -> bool {
        self.padding(bytes)
            .is_some_and(|padding| bytes.len() > padding)
    }

    /// How many bytes precede the next request; `None` while they cannot be told from it.
    fn padding(&self, bytes: &[u8]) -> Option<usize> {
        if !self.padding_may_follow {
            return Some(0);
        }
        match bytes {
            [0, 0, 0, 0, ..] => Some(PADDING),
            [0, 0, 0, _, ..] => Some(0),
            [0, 0, 0] | [] | [_] | [_, _] => None,
            [_, _, _, ..] => Some(PADDING),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    /// What is understood of pieces that arrive one after the other.
    fn requests(pieces: &[&[u8]]) -> Vec<Request> {
        let mut stream = RequestStream::default();
        let (mut received, mut requests) = (Vec::new(), Vec::new());
        for piece in pieces {
            received.extend_from_slice(piece);
            while let Some((request, length)) = stream.take(&received).unwrap() {
                received.drain(..length);
                requests.push(request);
            }
        }
        assert!(!stream.has_begun(&received), "{received:?} is left over");
        requests
    }

    const PADDINGS: [&[u8]; 5] = [&[], &[0, 0, 0], &[0x5a, 0x7f, 0], &[0, 0, 1], &[0, 9, 0]];

    #[test]
    fn a_locality_may_be_padded_or_not_and_come_in_any_pieces() {
        for (code, expected) in [
            (5, Request::SetLocality(3)),
            (11, Request::ResetEstablished(3)),
        ] {
            for padding in PADDINGS {
                for (next, then) in [
                    (&[0, 0, 0, 14][..], Some(Request::Stop)),
                    (&[0, 0, 0, 1], Some(Request::GetCapability)),
                    (&[0, 0, 0, 5, 3], Some(Request::SetLocality(3))),
                    (&[], None),
                ] {
                    let whole = [&[0, 0, 0, code, 3][..], padding, next].concat();
                    let expected: Vec<_> = [expected.clone()].into_iter().chain(then).collect();
                    assert_eq!(requests(&[&whole]), expected, "{whole:?}");
                    for cut in 0..=whole.len() {
                        let (first, second) = whole.split_at(cut);
                        assert_eq!(requests(&[first, second]), expected, "{first:?} {second:?}");
                    }
                    let bytes: Vec<_> = whole.chunks(1).collect();
                    assert_eq!(requests(&bytes), expected, "{whole:?} by bytes");
                }
            }
        }
    }

    #[test]
    fn a_locality_is_answered_before_its_padding_is_there() {
        let mut stream = RequestStream::default();
        assert_eq!(
            stream.take(&[0, 0, 0, 5, 3]),
            Ok(Some((Request::SetLocality(3), 5)))
        );
        for rest in [&[][..], &[0], &[0, 0], &[0, 0, 0], &[7, 7, 7]] {
            assert_eq!(stream.take(rest), Ok(None), "{rest:?}");
            assert!(!stream.has_begun(rest), "nobody owes the rest of {rest:?}");
        }
        assert!(stream.has_begun(&[0, 0, 0, 0, 0]), "a request after zeros");
        assert!(stream.has_begun(&[0, 0, 0, 2]), "CMD_INIT without flags");
    }
}
