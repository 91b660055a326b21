//! TLS 1.3 connections whose ends attest themselves before the first byte of data.
//!
//! After the handshake each end may demand evidence of the other. The evidence is bound to this very
//! connection ([`attestation::connection::ConnectionFacts`]), and the data stream exists only together with the
//! appraisal of it: [`connect`] and [`accept`] return both or neither. An appraisal has an end; before
//! that the peer is asked again while data flows, and a connection whose peer cannot be appraised
//! anew is closed.
//!
//! This crate does not know what evidence is made of or how it is judged: an [`Attester`] makes it and
//! a [`Verifier`] judges it. `docs/connection.md` draws the protocol.

mod buffers;
mod clock;
mod collecting;
mod driver;
mod end;
mod error;
mod facts;
mod frame;
#[cfg(feature = "testing")]
pub mod fuzzing;
mod gate;
pub mod key_files;
mod message;
mod parties;
mod rounds;
mod stream;
pub mod tls;
mod turns;

pub use end::{Attested, Deadlines, accept, connect};
pub use error::{
    CloseReason, ConnectionError, EvidenceRefused, NoEvidence, ProtocolError, Stage, TlsFault,
};
pub use message::{Demand, Format};
pub use parties::{
    Appraisal, Attester, CertificateAlone, Demands, EvidenceFuture, NoDemand, Peer, Unattested,
    Verifier,
};
pub use stream::AttestedStream;
