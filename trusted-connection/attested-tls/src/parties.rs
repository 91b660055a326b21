//! Who makes evidence and who judges it, as this crate sees them.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use attestation::connection::{EndIdentity, TlsParameters};
use attestation::{Binding, Nonce};
use rustls_pki_types::CertificateDer;

use crate::error::{EvidenceRefused, NoEvidence};
use crate::message::{Demand, Format};

/// Evidence on its way.
pub type EvidenceFuture = Pin<Box<dyn Future<Output = Result<Vec<u8>, NoEvidence>> + Send>>;

/// Makes evidence of this end.
///
/// The binding is of a connection of this end, computed here; an attester has to put it into what its
/// root of trust signs, and never takes one from anywhere else.
pub trait Attester: Send + Sync + 'static {
    /// Evidence that meets a demand, for a nonce and a connection.
    fn evidence(&self, demand: &Demand, nonce: Nonce, binding: Binding) -> EvidenceFuture;
}

/// An end that has no evidence to show.
#[derive(Clone, Copy, Debug)]
pub struct Unattested;

/// A client that has no evidence, but a certificate in the handshake: it says so where that is what is
/// demanded.
#[derive(Clone, Copy, Debug)]
pub struct CertificateAlone;

/// Judges the evidence of a peer.
pub trait Verifier: Send + Sync + 'static {
    /// What an accepted peer is known as.
    type Result: Clone + Send + Sync + 'static;

    /// What is demanded of a peer, asked once for each connection; never [`Demand::Nothing`].
    fn demand(&self) -> Demand;

    /// Judges evidence, which must answer this nonce for this binding and be of the peer with this
    /// identity. It may take a while: it is called where that keeps nothing else waiting.
    fn appraise(
        &self,
        evidence: &[u8],
        nonce: &Nonce,
        binding: &Binding,
        peer: &Peer,
    ) -> Result<Appraisal<Self::Result>, EvidenceRefused>;
}

/// Nothing is demanded of the peer: whoever gets through the handshake is accepted.
#[derive(Clone, Copy, Debug)]
pub struct NoDemand;

/// Evidence was accepted.
#[derive(Clone, Debug)]
pub struct Appraisal<R> {
    /// What is known about the peer.
    pub result: R,
    /// For how long.
    pub valid_for: Duration,
}

/// The other end, as the handshake authenticated it.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its certificates, its own first; none of a client that has no identity in TLS.
    pub certificates: Vec<CertificateDer<'static>>,
    /// Digests of its key and its own certificate.
    pub identity: Option<EndIdentity>,
    /// Version, suite and group of the connection.
    pub parameters: TlsParameters,
}

impl Attester for Unattested {
    fn evidence(&self, _: &Demand, _: Nonce, _: Binding) -> EvidenceFuture {
        Box::pin(std::future::ready(Err(NoEvidence::NoRootOfTrust)))
    }
}

impl Attester for CertificateAlone {
    fn evidence(&self, demand: &Demand, _: Nonce, _: Binding) -> EvidenceFuture {
        let is_enough = match demand {
            Demand::Evidence { formats, .. } => formats.contains(&Format::ClientCertificate),
            Demand::Nothing => false,
        };
        Box::pin(std::future::ready(if is_enough {
            Ok(Vec::new())
        } else {
            Err(NoEvidence::NoRootOfTrust)
        }))
    }
}

/// What is demanded of a peer: something, by a [`Verifier`], or nothing, by [`NoDemand`].
pub trait Demands: sealed::Sealed + Send + Sync + 'static {
    /// What an accepted peer is known as.
    type Result: Clone + Send + Sync + 'static;

    /// What is demanded.
    #[doc(hidden)]
    fn demanded(self) -> Demanded<Self::Result>;
}

/// [`Demands`], with what to do about them.
#[doc(hidden)]
pub enum Demanded<R> {
    /// Nothing, and the result that every peer gets.
    Nothing(R),
    /// Evidence.
    Evidence(std::sync::Arc<dyn Verifier<Result = R>>),
}

impl Demands for NoDemand {
    type Result = ();

    fn demanded(self) -> Demanded<()> {
        Demanded::Nothing(())
    }
}

impl<V: Verifier> Demands for std::sync::Arc<V> {
    type Result = V::Result;

    fn demanded(self) -> Demanded<V::Result> {
        Demanded::Evidence(self)
    }
}

mod sealed {
    /// Only [`NoDemand`](super::NoDemand) stands for no demand.
    pub trait Sealed {}
    impl Sealed for super::NoDemand {}
    impl<V: super::Verifier> Sealed for std::sync::Arc<V> {}
}
