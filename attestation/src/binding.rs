//! What a piece of evidence is for, beyond answering a challenge.

use std::fmt;

use cert_chain::Digest32;
use minicbor::{Decode, Encode};

/// What evidence is bound to. It stands in the evidence as the attester computed it, and a verifier
/// holds it against a [`Purpose`], so evidence made for one purpose cannot be presented for another.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Binding {
    /// Nothing but the challenge.
    #[n(0)]
    None,
    /// A connection, as [`ConnectionFacts`](crate::connection::ConnectionFacts) tell it from others.
    #[n(1)]
    Connection(#[n(0)] Digest32),
    /// The authority of a SPIFFE trust domain, as [`TrustDomain`](crate::spiffe::TrustDomain) tells it
    /// from others.
    #[n(2)]
    Node(#[n(0)] Digest32),
    /// Data that are signed beside it, of which its challenge is made.
    #[n(3)]
    SignedData,
}

/// What a verifier asks evidence for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To answer a challenge that was sent in the clear. It says nothing about any connection.
    Challenge,
    /// To attest one end of a connection.
    Connection {
        /// The binding that the verifier computed from its own end.
        binding: Binding,
        /// SHA-256 of the SubjectPublicKeyInfo with which that end authenticated itself.
        key: Digest32,
    },
    /// To attest a node of a SPIFFE trust domain.
    Node {
        /// The binding to that trust domain.
        binding: Binding,
    },
    /// To say what a VM was when it signed data.
    SignedData,
}

impl Purpose {
    /// What evidence for this purpose is bound to.
    pub fn binding(&self) -> &Binding {
        match self {
            Self::Challenge => &Binding::None,
            Self::SignedData => &Binding::SignedData,
            Self::Connection { binding, .. } | Self::Node { binding } => binding,
        }
    }
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("a challenge alone"),
            Self::Connection(value) => write!(f, "the connection {value}"),
            Self::Node(value) => write!(f, "the SPIFFE trust domain with the binding {value}"),
            Self::SignedData => f.write_str("data that are signed beside it"),
        }
    }
}
