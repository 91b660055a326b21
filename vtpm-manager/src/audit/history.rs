//! What earlier lines tell the manager.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader};

use cert_chain::VrotId;
use serde::Deserialize;

use super::{AuditError, AuditLog};

/// Lines that are looked for later.
#[derive(Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Told {
    RecoveryFound { batch: u64 },
    StoreRecovered { recovery: ToldRecovery },
    VrotDeleted { vrot: VrotId },
}

#[derive(Deserialize)]
struct ToldRecovery {
    batch: u64,
}

impl AuditLog {
    /// Whether a line says that the recovery was carried out, or found, that is this batch of the
    /// store. Reads the log from the beginning. Blocks.
    pub fn tells_of_recovery(&self, batch: u64) -> Result<bool, AuditError> {
        let mut found = false;
        self.look_back(|told| {
            found |= match told {
                Told::RecoveryFound { batch: told } => *told == batch,
                Told::StoreRecovered { recovery } => recovery.batch == batch,
                Told::VrotDeleted { .. } => false,
            };
        })?;
        Ok(found)
    }

    /// The vRoTs whose keys were destroyed. Reads the log from the beginning. Blocks.
    pub fn deleted(&self) -> Result<BTreeSet<VrotId>, AuditError> {
        let mut deleted = BTreeSet::new();
        self.look_back(|told| {
            if let Told::VrotDeleted { vrot } = told {
                deleted.insert(*vrot);
            }
        })?;
        Ok(deleted)
    }

    /// That the lines are this log's was checked when it was opened.
    fn look_back(&self, mut at: impl FnMut(&Told)) -> Result<(), AuditError> {
        let failed = |source| AuditError::File {
            path: self.path.clone(),
            action: "read",
            source,
        };
        for line in BufReader::new(File::open(&self.path).map_err(failed)?).lines() {
            // Other events do not fit.
            if let Ok(told) = serde_json::from_str(&line.map_err(failed)?) {
                at(&told);
            }
        }
        Ok(())
    }
}
