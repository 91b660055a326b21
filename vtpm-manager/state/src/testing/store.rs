//! A store in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use cert_chain::VrotId;

use crate::disk::{Batch, Epoch, Part, Store, StoreError, StoredLedger};

/// Keeps everything in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    contents: Mutex<Contents>,
}

#[derive(Debug, Default)]
struct Contents {
    parts: BTreeMap<(VrotId, Part), Vec<u8>>,
    chain: BTreeMap<Epoch, Vec<u8>>,
    leaves: BTreeMap<VrotId, Vec<u8>>,
    commits: u64,
}

impl MemoryStore {
    /// How many batches were committed.
    pub fn commits(&self) -> u64 {
        self.contents().commits
    }

    fn contents(&self) -> std::sync::MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn vrots(&self) -> Result<Vec<VrotId>, StoreError> {
        let vrots: BTreeSet<VrotId> = self.contents().parts.keys().map(|key| key.0).collect();
        Ok(vrots.into_iter().collect())
    }

    fn read(&self, vrot: VrotId, part: Part) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.contents().parts.get(&(vrot, part)).cloned())
    }

    fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut contents = self.contents();
        for (vrot, part, change) in batch.changes() {
            match change {
                Some(bytes) => contents.parts.insert((vrot, part), bytes.to_vec()),
                None => contents.parts.remove(&(vrot, part)),
            };
        }
        if let Some(writes) = batch.ledger() {
            contents.chain = contents.chain.split_off(&writes.prune_below);
            (contents.chain).insert(writes.epoch, writes.record.clone());
            for (vrot, leaf) in &writes.leaves {
                match leaf {
                    Some(leaf) => contents.leaves.insert(*vrot, leaf.clone()),
                    None => contents.leaves.remove(vrot),
                };
            }
        }
        contents.commits += 1;
        Ok(())
    }

    fn ledger(&self) -> Result<StoredLedger, StoreError> {
        let contents = self.contents();
        Ok(StoredLedger {
            chain: contents.chain.values().cloned().collect(),
            leaves: contents.leaves.clone(),
        })
    }
}
