//! A migration blob: a header, and around the state's layer another one.

use zeroize::Zeroizing;

use crate::header::{ENCRYPTED, Header, LENGTH, MIGRATION_DATA, MIGRATION_ENCRYPTED};
use crate::layer::{MIGRATION, STATE};
use crate::{FormatError, Key};

/// The keys at one end of a migration.
#[derive(Clone, Copy, Debug, Default)]
pub struct BlobKeys<'k> {
    /// Of the state's files (`--key`).
    pub state: Option<&'k Key>,
    /// Of the migration (`--migration-key`).
    pub migration: Option<&'k Key>,
}

/// A blob, and what is to be said of it beside it.
#[derive(Clone, PartialEq, Eq)]
pub struct StateBlob {
    /// The blob.
    pub bytes: Zeroizing<Vec<u8>>,
    /// Whether the state in it is encrypted with the key of the state's files
    /// (`PTM_STATE_FLAG_ENCRYPTED`); the migration's key does not count.
    pub is_encrypted: bool,
}

impl std::fmt::Debug for StateBlob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StateBlob({} bytes)", self.bytes.len())
    }
}

/// A blob with this state. Under the key of the state's files it is encrypted unless the other end
/// asked for it `decrypted` (`PTM_STATE_FLAG_DECRYPTED`), under the migration's key always.
pub fn write_blob(
    state: &[u8],
    keys: BlobKeys<'_>,
    decrypted: bool,
) -> Result<StateBlob, FormatError> {
    let state_key = keys.state.filter(|_| !decrypted);
    let (inner, state_flags) = STATE.wrap(state, state_key)?;
    let (outer, migration_flags) = MIGRATION.wrap(&inner, keys.migration)?;
    let flags = state_flags | migration_flags | MIGRATION_DATA;
    Ok(StateBlob {
        bytes: Header::prepend(flags, &outer)?,
        is_encrypted: state_key.is_some(),
    })
}

/// The state in a blob. With a migration key it must be encrypted with that. The key of the state's
/// files is used if the blob is said to be encrypted with it, by its header or by `is_encrypted`
/// (`PTM_STATE_FLAG_ENCRYPTED`).
pub fn read_blob(
    blob: &[u8],
    keys: BlobKeys<'_>,
    is_encrypted: bool,
) -> Result<Zeroizing<Vec<u8>>, FormatError> {
    let (header, body) = Header::parse(blob)?;
    let Header { version, flags } = header;
    if flags & MIGRATION_ENCRYPTED != 0 && keys.migration.is_none() {
        return Err(FormatError::KeyMissing { key: "migration" });
    }
    let inner = MIGRATION.unwrap(version, flags, body, LENGTH, keys.migration)?;
    let is_encrypted = is_encrypted || flags & ENCRYPTED != 0;
    if is_encrypted && keys.state.is_none() {
        return Err(FormatError::KeyMissing { key: "state" });
    }
    let state_key = keys.state.filter(|_| is_encrypted);
    STATE.unwrap(version, flags, &inner, 0, state_key)
}
