//! What is wrong with a state file or a blob.

use locked_memory::NotLocked;

use crate::{KeySize, MAX_STATE};

/// Why a state file or a blob is not read, or cannot be written. Offsets are in bytes from its
/// beginning, or, within what was decrypted, from the beginning of that.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum FormatError {
    /// It is longer than any TPM's state.
    #[error("it has {length} bytes; at most {MAX_STATE} are accepted")]
    TooLong {
        /// Its length.
        length: usize,
    },
    /// It ends within its header.
    #[error("it has {length} bytes; a header alone has 10: it was cut, or is no state of swtpm")]
    NoHeader {
        /// Its length.
        length: usize,
    },
    /// Its header announces another length.
    #[error(
        "its header (offset 6) announces {announced} bytes, and it has {actual}: it was cut, or is no \
         state of swtpm"
    )]
    Length {
        /// By the header.
        announced: u32,
        /// As it is.
        actual: usize,
    },
    /// Its version is not known.
    #[error(
        "it has version {version} of the format and needs a reader of version {minimum}; versions 1 \
         and 2 are read"
    )]
    Version {
        /// Of the format.
        version: u8,
        /// The least that its reader must know.
        minimum: u8,
    },
    /// Its header has another length than that of both versions.
    #[error("its header (offset 2) says that it has {size} bytes itself; it must be 10")]
    HeaderSize {
        /// By the header.
        size: u16,
    },
    /// A field does not end where it should, or there is none.
    #[error("the field at offset {offset} does not end within it")]
    FieldLength {
        /// Where the field begins.
        offset: usize,
    },
    /// A field comes twice.
    #[error("the field with tag {tag} comes a second time at offset {offset}")]
    FieldTwice {
        /// Which field.
        tag: u16,
        /// Where.
        offset: usize,
    },
    /// There are more fields than the format has.
    #[error("it has more than {most} fields")]
    TooManyFields {
        /// The most that are accepted.
        most: usize,
    },
    /// A field is not there.
    #[error("it has no field with tag {tag}")]
    FieldMissing {
        /// Which field.
        tag: u16,
    },
    /// It is encrypted, and there is no key.
    #[error(
        "it is encrypted with the {key} key, and none was given: give the one that it was written with"
    )]
    KeyMissing {
        /// "state" or "migration".
        key: &'static str,
    },
    /// There is a key, and it is not encrypted: whoever wrote it did not know the key.
    #[error(
        "it is not encrypted, and a {key} key was given, under which anybody's state would be taken: \
         give no key, or a state that was written with it"
    )]
    NotEncrypted {
        /// "state" or "migration".
        key: &'static str,
    },
    /// The key has another size than the one it was written with.
    #[error("it was encrypted with a key of {} bits, and the {key} key has {}", needed.bits(), given.bits())]
    KeySize {
        /// "state" or "migration".
        key: &'static str,
        /// What it was written with.
        needed: KeySize,
        /// What is there.
        given: KeySize,
    },
    /// It was not written with this key, or it was altered.
    #[error("it was altered, or the {key} key is another one than it was written with")]
    NotAuthentic {
        /// "state" or "migration".
        key: &'static str,
    },
    /// What was encrypted has a length or a padding that encryption cannot give.
    #[error("what it has encrypted ends in no padding: it was altered")]
    Padding,
    /// The initialisation vector is too short.
    #[error("its initialisation vector has {length} bytes; it must have 16 at least")]
    InitialisationVector {
        /// Its length.
        length: usize,
    },
    /// The operating system gave no random numbers.
    #[error("the operating system gave no random numbers")]
    NoRandomNumbers,
    /// No memory can be locked.
    #[error(transparent)]
    NotLocked(#[from] NotLocked),
}
