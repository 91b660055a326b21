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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use anyhow::Result;
    use rcgen::{CertificateParams, KeyPair};
    use rustls::client::{Resumption, WebPkiServerVerifier};
    use rustls::server::ServerSessionMemoryCache;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
    use rustls_pki_types::PrivateKeyDer;

    use super::*;
    use crate::tls::{KeyExchange, provider};

    const NAME: &str = "service.example";

    /// Both sides of a handshake, as they are configured nowhere else: they resume.
    fn resuming() -> Result<(Arc<ClientConfig>, Arc<ServerConfig>)> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new([NAME.to_owned()])?.self_signed(&key)?;
        let private = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let provider = provider(KeyExchange::HybridFirst);
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier.build()?)
            .with_no_client_auth();
        client.resumption = Resumption::in_memory_sessions(4);
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.into()], private)?;
        server.session_storage = ServerSessionMemoryCache::new(4);
        Ok((Arc::new(client), Arc::new(server)))
    }

    /// The client's side of a finished connection, with what the server sent after the handshake.
    fn connected(
        client: &Arc<ClientConfig>,
        server: &Arc<ServerConfig>,
    ) -> Result<ClientConnection> {
        let mut client = ClientConnection::new(client.clone(), NAME.try_into()?)?;
        let mut server = ServerConnection::new(server.clone())?;
        while client.wants_write() || server.wants_write() {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes)?;
            }
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                server.read_tls(&mut rest)?;
                server.process_new_packets()?;
            }
            let mut bytes = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut bytes)?;
            }
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                client.read_tls(&mut rest)?;
                client.process_new_packets()?;
            }
        }
        Ok(client)
    }

    #[test]
    fn a_handshake_that_resumes_another_gives_no_connection() -> Result<()> {
        let (client, server) = resuming()?;
        let first = connected(&client, &server)?;
        assert!(Handshaken::of(&first, Role::Client, None).is_ok());
        let second = connected(&client, &server)?;
        let refused = Handshaken::of(&second, Role::Client, None).err();
        assert_eq!(refused, Some(TlsFault::Resumed));
        Ok(())
    }
}
