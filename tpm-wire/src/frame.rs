//! One command or response in a stream: it states its own length.

use std::io::{self, Read};

use crate::response_code::ResponseCode;

/// Length of tag, size, and command or response code, in bytes.
pub const HEADER: usize = 10;
/// The longest command and response in bytes (`TPM_PT_MAX_COMMAND_SIZE` and
/// `TPM_PT_MAX_RESPONSE_SIZE` of libtpms).
pub const MAX_SIZE: usize = 4096;
/// `TPM_ST_NO_SESSIONS`: no authorization area follows.
pub const NO_SESSIONS: u16 = 0x8001;
/// `TPM_ST_SESSIONS`
pub const SESSIONS: u16 = 0x8002;

/// What a command or response begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// `TPM_ST`
    pub tag: u16,
    /// Length of the whole in bytes, as stated.
    pub size: u32,
    /// `TPM_CC` or `TPM_RC`
    pub code: u32,
}

impl Header {
    /// Reads the header; `None` while it is not complete. Its size may be anything.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let [t0, t1, s0, s1, s2, s3, c0, c1, c2, c3] = *bytes.first_chunk::<HEADER>()?;
        Some(Self {
            tag: u16::from_be_bytes([t0, t1]),
            size: u32::from_be_bytes([s0, s1, s2, s3]),
            code: u32::from_be_bytes([c0, c1, c2, c3]),
        })
    }

    /// Reads the header of what is there whole: the stated size is the number of bytes.
    pub(crate) fn of_whole(bytes: &[u8]) -> Option<Self> {
        Self::parse(bytes).filter(|header| usize::try_from(header.size) == Ok(bytes.len()))
    }
}

/// A command or a response: header and body.
pub fn frame(tag: u16, code: u32, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    [
        tag.to_be_bytes().as_slice(),
        &size.to_be_bytes(),
        &code.to_be_bytes(),
        body,
    ]
    .concat()
}

/// How many bytes of a stream belong to the command at its beginning: `None` while its size
/// is not complete, an error if it can be no command.
pub fn length_in_stream(bytes: &[u8]) -> Result<Option<usize>, ResponseCode> {
    let Some([_, _, size @ ..]) = bytes.first_chunk::<6>() else {
        return Ok(None);
    };
    match usize::try_from(u32::from_be_bytes(*size)) {
        Ok(size) if (HEADER..=MAX_SIZE).contains(&size) => Ok(Some(size)),
        _ => Err(ResponseCode::COMMAND_SIZE),
    }
}

/// Reads one command or response of at most `limit` bytes; `None` if the stream ends before its
/// header is complete.
pub fn read_frame(from: &mut impl Read, limit: usize) -> io::Result<Option<Vec<u8>>> {
    let mut frame = vec![0; HEADER];
    match from.read_exact(&mut frame) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let size = Header::parse(&frame)
        .and_then(|header| usize::try_from(header.size).ok())
        .filter(|size| (HEADER..=limit).contains(size))
        .ok_or_else(|| io::Error::other("a TPM command or response of impossible size"))?;
    frame.resize(size, 0);
    from.read_exact(frame.get_mut(HEADER..).unwrap_or_default())?;
    Ok(Some(frame))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_cut_at_the_stated_length() {
        assert_eq!(length_in_stream(&[0x80, 1, 0, 0, 0]), Ok(None));
        assert_eq!(length_in_stream(&[0x80, 1, 0, 0, 0, 12]), Ok(Some(12)));
        for size in [0u32, 9, 4097, u32::MAX] {
            let bytes = [&[0x80, 1], size.to_be_bytes().as_slice()].concat();
            assert_eq!(length_in_stream(&bytes), Err(ResponseCode::COMMAND_SIZE));
        }
    }

    #[test]
    fn frames_keep_their_bounds() -> io::Result<()> {
        let command = frame(0x8001, 0x144, &[0, 0]);
        assert_eq!(command, [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0]);
        let two = [command.as_slice(), &command].concat();
        let mut from = two.as_slice();
        assert_eq!(read_frame(&mut from, 12)?.as_ref(), Some(&command));
        assert_eq!(read_frame(&mut from, 12)?.as_ref(), Some(&command));
        assert_eq!(read_frame(&mut from, 12)?, None);

        assert!(read_frame(&mut command.as_slice(), 11).is_err());
        let mut endless = &[0x80, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0x44][..];
        assert!(read_frame(&mut endless, MAX_SIZE).is_err());
        let mut short = &[0x80, 1, 0, 0, 0, 9, 0, 0, 1, 0x44][..];
        assert!(read_frame(&mut short, MAX_SIZE).is_err());
        let mut cut = command.get(..11).unwrap_or_default();
        let cut = read_frame(&mut cut, MAX_SIZE);
        assert!(cut.is_err_and(|error| error.kind() == io::ErrorKind::UnexpectedEof));
        Ok(())
    }
}
