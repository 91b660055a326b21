//! Requests on the control channel: numbers in big endian, lengths that cannot be trusted.

use std::fmt;

use crate::engine::StateKind;

/// A TPM's state, with the keys in it: `Debug` shows its length only.
#[derive(Clone, PartialEq, Eq)]
pub struct Blob(pub Vec<u8>);

/// A request, read completely.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// `CMD_GET_CAPABILITY`
    GetCapability,
    /// `CMD_INIT`
    Init {
        /// Whether volatile state is to be forgotten.
        delete_volatile: bool,
    },
    /// `CMD_SHUTDOWN`
    Shutdown,
    /// `CMD_GET_TPMESTABLISHED`
    GetEstablished,
    /// `CMD_SET_LOCALITY`
    SetLocality(u8),
    /// `CMD_HASH_START`
    HashStart,
    /// `CMD_HASH_DATA`
    HashData(Vec<u8>),
    /// `CMD_HASH_END`
    HashEnd,
    /// `CMD_CANCEL_TPM_CMD`
    Cancel,
    /// `CMD_STORE_VOLATILE`
    StoreVolatile,
    /// `CMD_RESET_TPMESTABLISHED`
    ResetEstablished(u8),
    /// `CMD_GET_STATEBLOB`
    GetStateBlob {
        /// Which part of the state; `None` for a number that names none.
        kind: Option<StateKind>,
        /// Whether the state is wanted without the encryption of stored states.
        decrypted: bool,
        /// Where in the blob to start.
        offset: u32,
    },
    /// `CMD_SET_STATEBLOB`
    SetStateBlob {
        /// Which part of the state; `None` for a number that names none.
        kind: Option<StateKind>,
        /// Whether the VMM says that the state is encrypted as stored states are.
        encrypted: bool,
        /// The blob.
        blob: Blob,
    },
    /// `CMD_STOP`
    Stop,
    /// `CMD_GET_CONFIG`
    GetConfig,
    /// `CMD_SET_DATAFD`; the descriptor comes as ancillary data.
    SetDataFd,
    /// `CMD_SET_BUFFERSIZE`
    SetBufferSize {
        /// Zero asks for the size.
        wanted: u32,
    },
    /// `CMD_GET_INFO`
    GetInfo {
        /// What about (`TPMLIB_InfoFlags`).
        flags: u64,
        /// Where in the description to start.
        offset: u32,
    },
    /// `CMD_LOCK_STORAGE`
    LockStorage,
    /// A number that names no request.
    Unknown(u32),
}

/// Why the channel cannot go on: where the next request starts is no longer known.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RequestError {
    /// A length beyond all reason.
    #[error("a request announces {length} bytes of data; at most {MAX_BLOB} are accepted")]
    TooLong {
        /// The length announced.
        length: u32,
    },
}

/// libtpms's permanent state has at most about 200 KiB, the volatile one far less.
pub const MAX_BLOB: usize = swtpm_state::MAX_STATE;

/// `PTM_STATE_FLAG_DECRYPTED`
const DECRYPTED: u32 = 1;
/// `PTM_STATE_FLAG_ENCRYPTED`
pub(super) const ENCRYPTED: u32 = 2;

/// Flag of `CMD_INIT`.
const DELETE_VOLATILE: u32 = 1;

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({} bytes)", self.0.len())
    }
}

impl Request {
    /// Reads the request at the beginning of `bytes`: with it comes the number of bytes that it
    /// takes. `None` while it is not complete. A locality comes without the padding that may
    /// follow it: that is for [`RequestStream`](super::RequestStream) to tell.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, RequestError> {
        let mut reader = Reader { bytes, at: 0 };
        let Some(code) = reader.u32() else {
            return Ok(None);
        };
        let request = match code {
            1 => Some(Self::GetCapability),
            2 => reader.u32().map(|flags| Self::Init {
                delete_volatile: flags & DELETE_VOLATILE != 0,
            }),
            3 => Some(Self::Shutdown),
            4 => Some(Self::GetEstablished),
            5 => reader.locality().map(Self::SetLocality),
            6 => Some(Self::HashStart),
            7 => reader.blob()?.map(Self::HashData),
            8 => Some(Self::HashEnd),
            9 => Some(Self::Cancel),
            10 => Some(Self::StoreVolatile),
            11 => reader.locality().map(Self::ResetEstablished),
            12 => reader.get_state_blob(),
            13 => reader.set_state_blob()?,
            14 => Some(Self::Stop),
            15 => Some(Self::GetConfig),
            16 => Some(Self::SetDataFd),
            17 => reader.u32().map(|wanted| Self::SetBufferSize { wanted }),
            18 => reader.get_info(),
            19 => reader.u32().map(|_| Self::LockStorage),
            code => Some(Self::Unknown(code)),
        };
        Ok(request.map(|request| (request, reader.at)))
    }
}

struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl<'b> Reader<'b> {
    fn take(&mut self, length: usize) -> Option<&'b [u8]> {
        let end = self.at.checked_add(length)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        let bytes = self.take(4)?;
        bytes.try_into().ok().map(u32::from_be_bytes)
    }

    /// Without the padding that may follow.
    fn locality(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn get_info(&mut self) -> Option<Request> {
        let flags = self.take(8)?.try_into().ok().map(u64::from_be_bytes)?;
        let offset = self.u32()?;
        let _padding = self.u32()?;
        Some(Request::GetInfo { flags, offset })
    }

    fn blob(&mut self) -> Result<Option<Vec<u8>>, RequestError> {
        let Some(length) = self.u32() else {
            return Ok(None);
        };
        let size = usize::try_from(length)
            .ok()
            .filter(|size| *size <= MAX_BLOB)
            .ok_or(RequestError::TooLong { length })?;
        Ok(self.take(size).map(<[u8]>::to_vec))
    }

    fn kind(&mut self) -> Option<Option<StateKind>> {
        Some(match self.u32()? {
            1 => Some(StateKind::Permanent),
            2 => Some(StateKind::Volatile),
            3 => Some(StateKind::SaveState),
            _ => None,
        })
    }

    fn get_state_blob(&mut self) -> Option<Request> {
        let flags = self.u32()?;
        let kind = self.kind()?;
        let offset = self.u32()?;
        Some(Request::GetStateBlob {
            kind,
            decrypted: flags & DECRYPTED != 0,
            offset,
        })
    }

    fn set_state_blob(&mut self) -> Result<Option<Request>, RequestError> {
        let (Some(flags), Some(kind)) = (self.u32(), self.kind()) else {
            return Ok(None);
        };
        let blob = self.blob()?;
        Ok(blob.map(|blob| Request::SetStateBlob {
            kind,
            encrypted: flags & ENCRYPTED != 0,
            blob: Blob(blob),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_may_arrive_byte_by_byte() {
        let bytes = [
            0, 0, 0, 13, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 7, 8, 9, 0xee,
        ];
        for length in 0..19 {
            assert_eq!(
                Request::parse(bytes.get(..length).unwrap_or_default()),
                Ok(None)
            );
        }
        let request = Request::SetStateBlob {
            kind: Some(StateKind::Volatile),
            encrypted: false,
            blob: Blob(vec![7, 8, 9]),
        };
        assert_eq!(Request::parse(&bytes), Ok(Some((request, 19))));
    }

    #[test]
    fn no_state_is_ever_logged() {
        let request = Request::SetStateBlob {
            kind: None,
            encrypted: false,
            blob: Blob(vec![0xab; 40]),
        };
        assert!(format!("{request:?}").contains("Blob(40 bytes)"));
    }

    #[test]
    fn an_absurd_length_costs_no_memory() {
        for (code, before) in [(7, 0), (13, 8)] {
            let mut bytes = vec![0, 0, 0, code];
            bytes.extend(vec![0; before]);
            bytes.extend([0xff; 4]);
            assert_eq!(
                Request::parse(&bytes),
                Err(RequestError::TooLong { length: u32::MAX })
            );
        }
    }
}
