//! Which folder of the host a vRoT belongs to, where its VM's launcher keeps a folder for each VM.
//!
//! The folder holds a file with a random token ([`vrot_handover::folder_file`]); of that the record
//! holds the digest, and which file it is. So neither a copy of the folder nor another folder at the
//! same place is taken for it.

use cert_chain::Digest32;
use minicbor::{Decode, Encode};

/// A vRoT's folder.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct FolderBinding {
    /// SHA-256 value of the token, a zero byte, and the SHA-256 value of the launcher's secret, if it
    /// gives one.
    #[n(0)]
    pub token: Digest32,
    /// Where the folder was seen last.
    #[n(1)]
    pub path: String,
    /// Which file it is; none until it is written.
    #[n(2)]
    pub file: Option<FileIdentity>,
    /// Number of the user who set it up; since its file is written, of the file's owner.
    #[n(3)]
    pub uid: u32,
    /// Whether an operator said that the folder was restored: then another file with the right token
    /// takes the place of this one, once.
    #[n(4)]
    pub accepts_another: bool,
}

impl FolderBinding {
    /// Whether a file with the right token is the folder's.
    pub fn is_open_to(&self, file: FileIdentity) -> bool {
        self.accepts_another || self.file.is_none_or(|known| known == file)
    }
}

/// Which file of its file system a file is. A copy is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct FileIdentity {
    /// Number of its inode.
    #[n(0)]
    pub inode: u64,
    /// When it was made, in nanoseconds since 1970, where the file system tells.
    #[n(1)]
    pub born: Option<u64>,
}
