//! Where a host's event log stands in its host layer.
//!
//! It is most of the layer, and the same for as long as the host runs: whoever has it need not read it
//! again.

use std::ops::Range;

use cert_chain::Digest32;
use minicbor::Decoder;
use minicbor::decode::Error;

/// Which event log an encoded [`HostLayer`](super::HostLayer) has, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPosition {
    /// SHA-256 value of the log, as the layer says.
    pub digest: Digest32,
    /// Where its bytes are.
    pub range: Range<usize>,
}

impl LogPosition {
    /// Finds it in the first bytes of an encoded layer; none, if they are too few, or no layer. Nothing
    /// is verified.
    pub fn find(beginning: &[u8]) -> Option<Self> {
        const DIGEST: u8 = 4;
        const LOG: u8 = 5;
        let mut decoder = Decoder::new(beginning);
        let mut digest = || -> Result<Option<Digest32>, Error> {
            decoder.map()?;
            for expected in 1..DIGEST {
                if decoder.u8()? != expected {
                    return Ok(None);
                }
                decoder.bytes()?;
            }
            if decoder.u8()? != DIGEST {
                return Ok(None);
            }
            let digest = decoder.decode()?;
            Ok((decoder.u8()? == LOG).then_some(digest))
        };
        let digest = digest().ok().flatten()?;
        let (length, header) = byte_string(beginning.get(decoder.position()..)?)?;
        let start = decoder.position().checked_add(header)?;
        Some(Self {
            digest,
            range: start..start.checked_add(length)?,
        })
    }
}

/// Length of a byte string and of what stands before it (RFC 8949 §3).
fn byte_string(bytes: &[u8]) -> Option<(usize, usize)> {
    const BYTES: u8 = 2;
    let (first, rest) = bytes.split_first()?;
    if first >> 5 != BYTES {
        return None;
    }
    let (length, more) = match first & 0x1f {
        small @ 0..24 => (u64::from(small), 0),
        24 => (u64::from(*rest.first()?), 1),
        25 => (u64::from(u16::from_be_bytes(*rest.first_chunk()?)), 2),
        26 => (u64::from(u32::from_be_bytes(*rest.first_chunk()?)), 4),
        _ => return None,
    };
    Some((usize::try_from(length).ok()?, 1 + more))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::evidence::HostLayer;

    fn layer(log: &[u8]) -> HostLayer {
        HostLayer {
            attest: vec![1; 150].into(),
            signature: vec![2; 72].into(),
            host_ik_public: vec![3; 90].into(),
            event_log_digest: Digest32::of(log),
            event_log: log.to_vec().into(),
            root: Digest32::of(b"root"),
            tree_size: 1,
            index: 0,
            path: Vec::new(),
            leaf: vec![4].into(),
            pcr_values: Vec::new().into(),
        }
    }

    #[test]
    fn the_log_is_found_whatever_length_it_has_and_not_before_enough_is_there() {
        for length in [0, 1, 23, 24, 255, 256, 65_535, 65_536, 100_000] {
            let log = vec![7; length];
            let encoded = layer(&log).to_cbor();
            let found = LogPosition::find(&encoded).unwrap();
            assert_eq!(found.digest, Digest32::of(&log));
            assert_eq!(encoded.get(found.range.clone()).unwrap(), log);
            for few in 0..found.range.start {
                assert_eq!(LogPosition::find(encoded.get(..few).unwrap()), None);
            }
            let enough = encoded.get(..found.range.start).unwrap();
            assert_eq!(LogPosition::find(enough), Some(found));
        }
    }

    #[test]
    fn what_is_no_layer_has_no_log() {
        for bytes in [
            &[][..],
            &[0xff; 64],
            &[0xbf; 64],
            &[0x5b; 64],
            &[0xab, 1, 0x41, 1, 3],
        ] {
            assert_eq!(LogPosition::find(bytes), None);
        }
    }
}
