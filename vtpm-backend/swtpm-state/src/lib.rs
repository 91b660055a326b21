//! How swtpm keeps and hands over the state of a TPM.
//!
//! [`read_state`] and [`write_state`] are the form of a state file, [`read_blob`] and [`write_blob`]
//! that of a migration blob, as the control channel carries it (`CMD_GET_STATEBLOB`); both may be
//! encrypted under a [`Key`]. A [`StateStore`] is a place for such files: a folder or one linear file,
//! with the lock by which swtpm and this project exclude each other.
//!
//! What is read here was written by somebody else: it is bounded, and read once into what it is.

mod cipher;
mod error;
mod header;
mod key;
mod key_options;
mod layer;
mod lock;
mod migration;
mod state_file;
mod store;
mod tlv;

pub use error::FormatError;
pub use key::{Key, KeyError, KeyForm, KeyFormat, KeySize, PassphraseKdf};
pub use key_options::{KeyOptions, KeyOptionsError, KeySource};
pub use migration::{BlobKeys, StateBlob, read_blob, write_blob};
pub use state_file::{read_state, write_state};
pub use store::{LinearError, Location, LocationError, StateStore, StoreError, StoreOptions};

/// The most bytes that a state, a state file or a blob may have: swtpm's own limit for blobs. libtpms
/// writes at most about 200 KiB.
pub const MAX_STATE: usize = 512 * 1024;

/// The parts of a TPM's state, as the control channel counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StateKind {
    /// What survives a loss of power: seeds, NV memory, persistent objects.
    Permanent = 1,
    /// What a running TPM holds: PCRs, sessions, transient objects.
    Volatile = 2,
    /// What a TPM 1.2 saved; a TPM 2.0 has none.
    SaveState = 3,
}

impl StateKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Permanent, Self::Volatile, Self::SaveState];

    /// What libtpms calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Permanent => "permall",
            Self::Volatile => "volatilestate",
            Self::SaveState => "savestate",
        }
    }
}
