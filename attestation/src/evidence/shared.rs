//! Host layers that share their event log: many guests of one host are answered at a time, and the
//! log, which is most of a layer, is in memory once.

use std::sync::Arc;

use minicbor::Encoder;

use super::HostLayer;

/// An encoded [`HostLayer`], of which parts can be taken.
#[derive(Clone, Debug)]
pub struct SharedHostLayer {
    before: Vec<u8>,
    log: Arc<[u8]>,
    after: Vec<u8>,
}

impl SharedHostLayer {
    /// The encoding of `layer` with `log` as its event log, whatever log it has itself.
    pub fn new(layer: &HostLayer, log: Arc<[u8]>) -> Self {
        const EVENT_LOG: u8 = 5;
        let mut encoder = Encoder::new(Vec::new());
        let before = encoder
            .map(HostLayer::FIELDS)
            .and_then(|e| e.u8(1)?.encode(&layer.attest)?.ok())
            .and_then(|()| encoder.u8(2)?.encode(&layer.signature)?.ok())
            .and_then(|()| encoder.u8(3)?.encode(&layer.host_ik_public)?.ok())
            .and_then(|()| encoder.u8(4)?.encode(layer.event_log_digest)?.ok())
            .and_then(|()| encoder.u8(EVENT_LOG)?.bytes_len(log.len() as u64)?.ok());
        let mut after = Encoder::new(Vec::new());
        let written = before
            .and_then(|()| after.u8(6)?.encode(layer.root)?.ok())
            .and_then(|()| after.u8(7)?.u64(layer.tree_size)?.ok())
            .and_then(|()| after.u8(8)?.u64(layer.index)?.ok())
            .and_then(|()| after.u8(9)?.encode(&layer.path)?.ok())
            .and_then(|()| after.u8(10)?.encode(&layer.leaf)?.ok())
            .and_then(|()| after.u8(11)?.encode(&layer.pcr_values)?.ok());
        match written {
            Ok(()) => Self {
                before: encoder.into_writer(),
                log,
                after: after.into_writer(),
            },
            Err(error) => unreachable!("a Vec takes every byte: {error}"),
        }
    }

    /// Length of the whole encoding in bytes.
    pub fn len(&self) -> usize {
        self.before.len() + self.log.len() + self.after.len()
    }

    /// Whether there is nothing; there always is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes from `offset` on, at most `limit`.
    pub fn part(&self, offset: usize, limit: usize) -> Vec<u8> {
        let mut part = Vec::new();
        let mut skipped = offset;
        for piece in [self.before.as_slice(), &self.log, &self.after] {
            let rest = piece.get(skipped..).unwrap_or_default();
            skipped = skipped.saturating_sub(piece.len());
            part.extend(rest.iter().take(limit - part.len()));
        }
        part
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Host, nonce};
    use crate::{Binding, HostLayer};

    #[test]
    fn the_parts_of_a_shared_layer_are_the_layer() {
        let host = Host::new("host-1");
        let mut layer = host.evidence(&host.vm(), &nonce(), Binding::None).host;
        for length in [0, 23, 24, 255, 256, 65_535, 65_536, 300_000] {
            let log: Arc<[u8]> = vec![7; length].into();
            let shared = SharedHostLayer::new(&layer, Arc::clone(&log));
            layer.event_log = log.to_vec().into();
            let whole = layer.to_cbor();
            assert_eq!(shared.len(), whole.len());
            for limit in [999, 64 * 1024, usize::MAX] {
                let mut read = Vec::new();
                while read.len() < shared.len() {
                    read.extend(shared.part(read.len(), limit));
                }
                assert!(read == whole, "{length} in steps of {limit}");
            }
            assert!(shared.part(shared.len(), 9).is_empty());
            assert!(HostLayer::from_cbor(&whole).is_ok());
        }
    }
}
