//! What a piece of evidence is for, beyond answering a challenge.

use std::fmt;

use cert_chain::Digest32;
use minicbor::{Decode, Encode};

/// What evidence is bound to. The verifier says what it expects; anything else is refused, so
/// evidence made for one purpose cannot be presented for another.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Binding {
    /// Nothing but the challenge.
    #[n(0)]
    None,
    /// A TLS session, by a value exported from it (RFC 9266).
    #[n(1)]
    TlsExporter(#[n(0)] Digest32),
    /// A public key, by the SHA-256 value of its SubjectPublicKeyInfo.
    #[n(2)]
    Key(#[n(0)] Digest32),
    /// A document, by its SHA-256 value.
    #[n(3)]
    Document(#[n(0)] Digest32),
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("a challenge alone"),
            Self::TlsExporter(value) => write!(f, "the TLS session {value}"),
            Self::Key(digest) => write!(f, "the key {digest}"),
            Self::Document(digest) => write!(f, "the document {digest}"),
        }
    }
}
