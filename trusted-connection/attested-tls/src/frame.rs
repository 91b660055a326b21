//! How data and control messages share one connection: frames of at most one TLS record.
//!
//! A frame is a kind (1 byte), a length (2 bytes, big endian) and so many bytes. Control messages,
//! which may be long, are cut into parts, so that data flow on between two of them.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::error::{CloseReason, ProtocolError};

/// What a frame is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Bytes of the application.
    Data(BytesMut),
    /// No more data will come in this direction.
    End,
    /// The receiver took so many bytes of data out of its buffer: as many more may be sent.
    Window(u32),
    /// A part of a control message; more of it follows.
    ControlPart(BytesMut),
    /// The last part of a control message.
    ControlEnd(BytesMut),
    /// The sender closes the connection, and why.
    Close(CloseReason),
}

/// Kind and length.
pub(crate) const HEADER: usize = 3;
/// A frame with its header fills one TLS record (RFC 8446 §5.1).
pub(crate) const MAX_BODY: usize = (1 << 14) - HEADER;

const DATA: u8 = 0;
const END: u8 = 1;
const WINDOW: u8 = 2;
const CONTROL_PART: u8 = 3;
const CONTROL_END: u8 = 4;
const CLOSE: u8 = 5;

impl Frame {
    /// Takes one frame from the front of what was received, if it is there as a whole.
    pub(crate) fn take(received: &mut BytesMut) -> Result<Option<Self>, ProtocolError> {
        let [kind, high, low, ..] = received.as_ref() else {
            return Ok(None);
        };
        let (kind, length) = (*kind, usize::from(u16::from_be_bytes([*high, *low])));
        if length > MAX_BODY {
            return Err(ProtocolError::FrameTooLong { length });
        }
        if received.len() < HEADER + length {
            received.reserve(HEADER + length - received.len());
            return Ok(None);
        }
        received.advance(HEADER);
        let mut body = received.split_to(length);
        match (kind, body.len()) {
            (DATA, 1..) => Ok(Self::Data(body)),
            (END, 0) => Ok(Self::End),
            (WINDOW, 4) => Ok(Self::Window(body.get_u32())),
            (CONTROL_PART, 1..) => Ok(Self::ControlPart(body)),
            (CONTROL_END, 1..) => Ok(Self::ControlEnd(body)),
            (CLOSE, 1) => Ok(Self::Close(CloseReason::from_code(body.get_u8()))),
            (kind, length) => return Err(ProtocolError::Frame { kind, length }),
        }
        .map(Some)
    }
}

/// Appends a frame with data; its body must not be longer than [`MAX_BODY`].
pub(crate) fn put_data(out: &mut BytesMut, body: &[u8]) {
    put(out, DATA, body);
}

/// Appends the end of the data.
pub(crate) fn put_end(out: &mut BytesMut) {
    put(out, END, &[]);
}

/// Appends a window.
pub(crate) fn put_window(out: &mut BytesMut, taken: u32) {
    put(out, WINDOW, &taken.to_be_bytes());
}

/// Appends the reason for which the connection is closed.
pub(crate) fn put_close(out: &mut BytesMut, reason: CloseReason) {
    put(out, CLOSE, &[reason.code()]);
}

/// Takes the next part of a control message and appends it; `true` with the last.
pub(crate) fn put_control_part(out: &mut BytesMut, message: &mut Bytes) -> bool {
    let part = message.split_to(message.len().min(MAX_BODY));
    let last = message.is_empty();
    put(out, if last { CONTROL_END } else { CONTROL_PART }, &part);
    last
}

fn put(out: &mut BytesMut, kind: u8, body: &[u8]) {
    debug_assert!(body.len() <= MAX_BODY, "callers cut what is longer");
    out.put_u8(kind);
    out.put_u16(body.len() as u16);
    out.put_slice(body);
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn all() -> (BytesMut, Vec<Frame>) {
        let mut bytes = BytesMut::new();
        put_data(&mut bytes, b"data");
        put_window(&mut bytes, 70_000);
        let mut message = Bytes::from(vec![7; MAX_BODY + 1]);
        assert!(!put_control_part(&mut bytes, &mut message));
        assert!(put_control_part(&mut bytes, &mut message));
        put_end(&mut bytes);
        put_close(&mut bytes, CloseReason::Done);
        let frames = vec![
            Frame::Data(BytesMut::from(&b"data"[..])),
            Frame::Window(70_000),
            Frame::ControlPart(BytesMut::from(&[7; MAX_BODY][..])),
            Frame::ControlEnd(BytesMut::from(&[7][..])),
            Frame::End,
            Frame::Close(CloseReason::Done),
        ];
        (bytes, frames)
    }

    #[test]
    fn frames_arrive_as_they_were_sent_however_they_are_cut() {
        let (bytes, frames) = all();
        for step in [1, 2, 3, 5, 1000, bytes.len()] {
            let mut received = BytesMut::new();
            let mut found = Vec::new();
            for piece in bytes.chunks(step) {
                received.extend_from_slice(piece);
                while let Some(frame) = Frame::take(&mut received).unwrap() {
                    found.push(frame);
                }
            }
            assert_eq!(found, frames, "in pieces of {step}");
            assert!(received.is_empty());
        }
    }

    #[test]
    fn frames_that_nobody_sends_are_refused_at_their_header_or_body() {
        for bytes in [
            &[DATA, 0, 0][..],
            &[END, 0, 1, 0],
            &[WINDOW, 0, 3, 0, 0, 0],
            &[CONTROL_END, 0, 0],
            &[CLOSE, 0, 2, 0, 0],
            &[6, 0, 0],
            &[DATA, 0x3f, 0xfe],
            &[DATA, 0xff, 0xff],
        ] {
            assert!(
                Frame::take(&mut BytesMut::from(bytes)).is_err(),
                "{bytes:?}"
            );
        }
    }
}
