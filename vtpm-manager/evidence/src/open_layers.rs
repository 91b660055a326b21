//! The host layers that one vRoT's guest may be reading, part by part.

use std::collections::BTreeMap;

use attestation::evidence::SharedHostLayer;
use backend_link::message::{LayerPart, MAX_PART};

/// Layers by ticket. What they share, the host's event log, is in memory once for all vRoTs.
#[derive(Debug, Default)]
pub struct OpenLayers(BTreeMap<u64, OpenLayer>);

#[derive(Debug)]
struct OpenLayer {
    layer: SharedHostLayer,
    /// What may be read of it still, in bytes.
    left: usize,
}

/// A backend keeps no more requests open either.
const MAX_OPEN: usize = 4;
/// How often a guest may read a layer. One that reads here and there has each part cut out and
/// sent for a few bytes.
const READINGS: usize = 4;

impl OpenLayers {
    /// Takes up a layer; its first part. The oldest makes room for it.
    pub fn open(&mut self, ticket: u64, layer: SharedHostLayer) -> Option<LayerPart> {
        while self.0.len() >= MAX_OPEN {
            self.0.pop_first();
        }
        let left = READINGS * layer.len().max(MAX_PART);
        self.0.insert(ticket, OpenLayer { layer, left });
        self.part(ticket, 0)
    }

    /// The part that begins at `offset`; `None` if there is no such layer, or none such part, or
    /// if it was read too often.
    pub fn part(&mut self, ticket: u64, offset: u32) -> Option<LayerPart> {
        let open = self.0.get_mut(&ticket)?;
        let total = u32::try_from(open.layer.len()).ok()?;
        let bytes = open.layer.part(usize::try_from(offset).ok()?, MAX_PART);
        // A short part at the end costs as much as a long one.
        let left = open.left.checked_sub(MAX_PART.min(open.layer.len()));
        match left {
            Some(left) if !bytes.is_empty() => {
                open.left = left;
                Some(LayerPart {
                    total,
                    offset,
                    bytes: bytes.into(),
                })
            }
            _ => {
                self.0.remove(&ticket);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use attestation::HostLayer;
    use cert_chain::Digest32;

    use super::*;

    fn layer(log: &Arc<[u8]>) -> SharedHostLayer {
        let layer = HostLayer {
            attest: vec![1].into(),
            signature: vec![2].into(),
            host_ik_public: vec![3].into(),
            event_log_digest: Digest32::of(log),
            event_log: Vec::new().into(),
            root: Digest32::of(b"root"),
            tree_size: 1,
            index: 0,
            path: Vec::new(),
            leaf: vec![4].into(),
            pcr_values: Vec::new().into(),
        };
        SharedHostLayer::new(&layer, Arc::clone(log))
    }

    #[test]
    fn a_layer_is_read_part_by_part() -> anyhow::Result<()> {
        let log: Arc<[u8]> = vec![7; 1024 * 1024].into();
        let mut layers = OpenLayers::default();
        let mut read = Vec::new();
        let mut part = layers.open(9, layer(&log));
        while let Some(LayerPart { total, bytes, .. }) = part {
            read.extend_from_slice(&bytes);
            if read.len() == usize::try_from(total)? {
                break;
            }
            part = layers.part(9, u32::try_from(read.len())?);
        }
        assert_eq!(*HostLayer::from_cbor(&read)?.event_log, log.to_vec());
        Ok(())
    }

    #[test]
    fn layers_share_one_copy_of_the_log() {
        let log: Arc<[u8]> = vec![7; 1024].into();
        let mut vrots: Vec<OpenLayers> = Vec::new();
        for ticket in 0..100 {
            let mut layers = OpenLayers::default();
            layers.open(ticket, layer(&log));
            vrots.push(layers);
        }
        assert_eq!(Arc::strong_count(&log), 101);
    }

    #[test]
    fn a_layer_is_not_read_without_end_and_no_more_than_four_are_kept() {
        let log: Arc<[u8]> = vec![7; 1024 * 1024].into();
        let mut layers = OpenLayers::default();
        layers.open(1, layer(&log));
        let readings = (0..1000)
            .take_while(|_| layers.part(1, 5).is_some())
            .count();
        assert!((17..=80).contains(&readings), "{readings}");
        for ticket in 2..=7 {
            assert!(layers.open(ticket, layer(&log)).is_some());
        }
        assert!(layers.part(3, 0).is_none());
        assert!(layers.part(4, 0).is_some());
        assert!(layers.part(7, u32::MAX).is_none());
    }
}
