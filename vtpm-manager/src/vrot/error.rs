//! Records that cannot be used.

use cert_chain::VrotId;

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Not what this program writes.
    #[error("the record of vRoT {vrot} cannot be read: the store is damaged")]
    Cbor {
        /// Whose.
        vrot: VrotId,
        /// What is wrong.
        #[source]
        source: minicbor::decode::Error,
    },
    /// It stands in the place of another vRoT's.
    #[error("the record of vRoT {expected} is that of vRoT {found}: the store was altered")]
    Displaced {
        /// Where it stands.
        expected: VrotId,
        /// What it says.
        found: VrotId,
    },
    /// A key in it is none.
    #[error("the {which} in the record of vRoT {vrot} is none: the store is damaged")]
    Key {
        /// Whose.
        vrot: VrotId,
        /// Which key.
        which: &'static str,
    },
    /// There is nothing.
    #[error("the store has states of vRoT {vrot}, but no record: the store is damaged")]
    Missing {
        /// Whose.
        vrot: VrotId,
    },
    /// From a newer program.
    #[error(
        "the record of vRoT {vrot} has version {found}, this program reads version {known}: use the newer program"
    )]
    Version {
        /// Whose.
        vrot: VrotId,
        /// The version found.
        found: u8,
        /// The newest one that this program reads.
        known: u8,
    },
}
