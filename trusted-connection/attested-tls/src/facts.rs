//! What one end knows of its own connection once the handshake is done.

use attestation::Binding;
use attestation::connection::{
    ConnectionFacts, EXPORTER_LABEL, EndIdentity, Role, TlsParameters, exporter_context,
};
use rustls::{CommonState, HandshakeKind, ProtocolVersion};

use crate::error::TlsFault;
use crate::message::Request;
use crate::parties::Peer;
use crate::tls::first_identity;

/// Both ends of a connection and its parameters.
#[derive(Clone, Debug)]
pub(crate) struct Handshaken {
    /// Which end this one is.
    pub(crate) role: Role,
    pub(crate) server: EndIdentity,
    pub(crate) client: Option<EndIdentity>,
    pub(crate) parameters: TlsParameters,
    pub(crate) peer: Peer,
}

impl Handshaken {
    /// Looks at a connection whose handshake is done. `own` is what this end showed in it.
    pub(crate) fn of(
        state: &CommonState,
        role: Role,
        own: Option<EndIdentity>,
    ) -> Result<Self, TlsFault> {
        if state.protocol_version() != Some(ProtocolVersion::TLSv1_3) {
            return Err(TlsFault::Version);
        }
        match state.handshake_kind() {
            Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest) => {}
            Some(HandshakeKind::Resumed) | None => return Err(TlsFault::Resumed),
        }
        let suite = state
            .negotiated_cipher_suite()
            .ok_or(TlsFault::Exporter)?
            .suite();
        let group = state
            .negotiated_key_exchange_group()
            .ok_or(TlsFault::Exporter)?
            .name();
        let parameters = TlsParameters {
            version: u16::from(ProtocolVersion::TLSv1_3),
            suite: u16::from(suite),
            group: u16::from(group),
        };
        let certificates: Vec<_> = state
            .peer_certificates()
            .unwrap_or_default()
            .iter()
            .map(|certificate| certificate.clone().into_owned())
            .collect();
        let theirs = match certificates.is_empty() {
            true => None,
            false => Some(first_identity(&certificates)?),
        };
        let (server, client) = match role {
            Role::Server => (own, theirs),
            Role::Client => (theirs, own),
        };
        Ok(Self {
            role,
            server: server.ok_or(TlsFault::NoCertificate)?,
            client,
            parameters,
            peer: Peer {
                certificates,
                identity: theirs,
                parameters,
            },
        })
    }

    /// What evidence of one end is bound to, for a request on this connection. `export` computes
    /// the exporter for a label and a context.
    pub(crate) fn binding(
        &self,
        attester: Role,
        request: &Request,
        export: impl FnOnce(&[u8], &[u8]) -> Result<[u8; 32], rustls::Error>,
    ) -> Result<Binding, TlsFault> {
        let exporter = export(
            EXPORTER_LABEL,
            &exporter_context(attester, request.sequence, &request.nonce),
        )
        .map_err(|_| TlsFault::Exporter)?;
        let facts = ConnectionFacts {
            attester,
            exporter,
            nonce: &request.nonce,
            server: self.server,
            client: self.client,
            parameters: self.parameters,
        };
        Ok(facts.binding())
    }

    /// The other end's role.
    pub(crate) fn peer_role(&self) -> Role {
        match self.role {
            Role::Server => Role::Client,
            Role::Client => Role::Server,
        }
    }
}
