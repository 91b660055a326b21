//! What a program that is taken for swtpm and the manager say to each other. Each message is one
//! packet; at most one descriptor comes along.

use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Encode};
use sha2::{Digest, Sha256};

/// To the manager. The first message of a connection says what it is for.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ToManager {
    /// Makes a vRoT for a folder that has none. The folder comes along.
    #[n(0)]
    SetUp {
        /// What vRoT.
        #[n(0)]
        wanted: Wanted,
        /// See [`Lock`].
        #[n(1)]
        lock: Option<Lock>,
    },
    /// The file that [`ToManager::SetUp`] or [`ToManager::Replace`] was answered with lies in the
    /// folder. It comes along.
    #[n(1)]
    Written,
    /// Asks whether the folder's file is the one that the manager knows. It comes along.
    #[n(2)]
    Check {
        /// See [`Lock`].
        #[n(0)]
        lock: Option<Lock>,
    },
    /// Deletes the vRoT of a folder, whose file comes along, and makes another one for it.
    #[n(3)]
    Replace {
        /// What vRoT.
        #[n(0)]
        wanted: Wanted,
        /// See [`Lock`].
        #[n(1)]
        lock: Option<Lock>,
    },
    /// Starts the vRoT of a folder, whose file comes along. It runs as long as this connection lasts.
    #[n(4)]
    Start {
        /// See [`Lock`].
        #[n(0)]
        lock: Option<Lock>,
    },
    /// The same after the manager was restarted: the vRoT runs, and its VM goes on.
    #[n(5)]
    Rejoin {
        /// See [`Lock`].
        #[n(0)]
        lock: Option<Lock>,
    },
    /// After [`ToManager::Start`]: a VMM wants to attach.
    #[n(6)]
    Attach,
    /// After [`ToManager::Start`]: stops the vRoT.
    #[n(7)]
    Stop,
    /// Has the vRoT of a folder, whose file comes along, have these PCR banks and no others, from its next
    /// start on.
    #[n(8)]
    ActivateBanks {
        /// `TPM_ALG_ID` of each.
        #[n(0)]
        banks: Vec<u16>,
        /// See [`Lock`].
        #[n(1)]
        lock: Option<Lock>,
    },
}

/// SHA-256 value of the secret that the launcher gave, where it gives one: without it, the folder's
/// file starts nothing. The state does not depend on it.
#[derive(Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct Lock(#[n(0)] ByteArray<32>);

impl Lock {
    /// Of this secret.
    pub fn of(secret: &[u8]) -> Self {
        Self(<[u8; 32]>::from(Sha256::digest(secret)).into())
    }

    /// The value.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for Lock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lock")
    }
}

/// What vRoT is to be made.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Wanted {
    /// The VM's number; without one, the manager chooses it.
    #[n(0)]
    pub vm: Option<ByteArray<16>>,
    /// What people call the VM.
    #[n(1)]
    pub name: Option<String>,
    /// Whether nobody ordered it: a folder without a vRoT is about to be started. Then it must be
    /// certain that the folder never had one.
    #[n(2)]
    pub unasked: bool,
}

/// From the manager.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum FromManager {
    /// The vRoT is made; this is the content of the folder's file.
    #[n(0)]
    Made {
        /// See [`crate::folder_file`].
        #[n(0)]
        file: ByteVec,
    },
    /// The file is the folder's, and the vRoT is this one.
    #[n(1)]
    Known(#[n(0)] Named),
    /// The vRoT runs.
    #[n(2)]
    Started(#[n(0)] Named),
    /// A connection to the vRoT for a VMM comes along.
    #[n(3)]
    Attached,
    /// The vRoT is stopped, and its state durable.
    #[n(4)]
    Stopped,
    /// The vRoT has ended, by itself or on another order.
    #[n(5)]
    Ended {
        /// What is known of it.
        #[n(0)]
        reason: String,
    },
    /// It is not done.
    #[n(6)]
    Refused {
        /// Why, and what helps.
        #[n(0)]
        reason: String,
    },
    /// Not now: the manager is starting. The same may succeed in a moment.
    #[n(7)]
    NotYet {
        /// What it waits for.
        #[n(0)]
        reason: String,
    },
}

/// Which vRoT it is.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Named {
    /// Its number.
    #[n(0)]
    pub vrot: ByteArray<16>,
    /// Its VM's number.
    #[n(1)]
    pub vm: ByteArray<16>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Programs of one package and a manager of another may meet while packages are upgraded.
    #[test]
    fn messages_stay_as_they_are() {
        let wanted = Wanted {
            vm: Some([7; 16].into()),
            name: Some("web".to_owned()),
            unasked: false,
        };
        let lock = None;
        let bytes = minicbor::to_vec(ToManager::SetUp { wanted, lock }).unwrap_or_default();
        assert_eq!(
            hex::encode(bytes),
            "820081a3005007070707070707070707070707070707016377656202f4"
        );
        let lock = Some(Lock::of(b"secret"));
        let bytes = minicbor::to_vec(ToManager::Start { lock }).unwrap_or_default();
        assert_eq!(
            hex::encode(bytes),
            "8204815820\
             2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"
        );
        let banks = vec![0x0b, 0x0c];
        let bytes = minicbor::to_vec(ToManager::ActivateBanks { banks, lock: None });
        assert_eq!(hex::encode(bytes.unwrap_or_default()), "820881820b0c");
        let bytes = minicbor::to_vec(FromManager::Stopped).unwrap_or_default();
        assert_eq!(hex::encode(bytes), "820480");
    }
}
