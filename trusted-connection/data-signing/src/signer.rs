//! Who signs.

use std::error::Error;
use std::time::{SystemTime, UNIX_EPOCH};

use attestation::Nonce;
use cert_chain::{Digest32, TpmName};
use signed_data::{Credentials, Source};

/// What a source's TPM or its host say when something is not possible.
pub type BoxedError = Box<dyn Error + Send + Sync>;

/// A TPM with a key for data, of a VM or of a device.
pub trait DataSigner {
    /// Name of the key.
    fn key(&self) -> TpmName;

    /// Whose TPM it is, as its certificate says.
    fn source(&self) -> Source;

    /// A number that no other signature of this TPM has or will have, higher than all before.
    fn number(&mut self) -> Result<u64, BoxedError>;

    /// What proves the key, without evidence. It may change, as certificates are renewed.
    fn credentials(&mut self) -> Result<Credentials, BoxedError>;

    /// Evidence that answers this challenge and is bound to signed data, in CBOR.
    fn evidence(&mut self, nonce: Nonce) -> Result<Vec<u8>, BoxedError>;

    /// Signs a SHA-256 value: two scalars of 32 bytes, as COSE has them (RFC 9053 §2.1).
    fn sign(&mut self, hash: &Digest32) -> Result<[u8; 64], BoxedError>;

    /// The present time, in seconds since 1970.
    fn now(&self) -> Result<u64, BoxedError> {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(now) => Ok(now.as_secs()),
            Err(_) => Err("the clock shows a time before 1970".into()),
        }
    }
}
