//! Attested connections from a device to a service.
//!
//! A [`Connector`] has a policy. It makes a connection whose other end was appraised by that policy, or
//! none: [`Connector::connect`] returns the stream together with the result, and there is no other way
//! to the stream. While it lives, the connection is attested anew, and ends if that is not possible.
//! [`Connector::replace`] takes another policy into force, for connections that live, too.

mod address;
mod changes;
mod error;
mod identity;
mod setting;
mod tls;
mod verifier;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use attestation::Policy;
use attestation::policy::ExpectedKeyExchange;
use attested_tls::tls::{ClientTls, KeyExchange};
use attested_tls::{Attested, ConnectionError, Deadlines, connect};
use rustls_pki_types::{DnsName, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use trusted_connection::crl_files::CrlFiles;

pub use address::{AddressError, ServiceAddress};
pub use changes::{Change, changes};
pub use error::{ConnectError, SetupError};
pub use identity::DeviceIdentity;
pub use tls::BelowTheIssuer;
pub use verifier::{Appraised, NotAccepted};

use error::SHORTEST_LIFETIME;
use setting::{InForce, Judging, Setting};
use verifier::ServiceVerifier;

/// For finding the service's addresses and reaching one of them.
const REACH: Duration = Duration::from_secs(10);

/// Makes attested connections to services that a policy accepts. All clones are one.
#[derive(Clone)]
pub struct Connector {
    in_force: InForce,
}

impl Connector {
    /// Connections to services that `policy` accepts, by a device that shows this of itself.
    ///
    /// Which VM it is, evidence says, and the policy names VM or tenant and hosts. So no name is
    /// compared with the service's certificate unless `server_name` is one: then the certificate must
    /// be for that name, too.
    pub fn new(
        policy: Arc<Policy>,
        device: DeviceIdentity,
        server_name: Option<DnsName<'static>>,
    ) -> Result<Self, SetupError> {
        let lifetime = policy.result_lifetime().as_secs();
        if lifetime < SHORTEST_LIFETIME {
            return Err(SetupError::Lifetime { found: lifetime });
        }
        let exchange = match policy.connection().key_exchange {
            ExpectedKeyExchange::Any => KeyExchange::HybridFirst,
            ExpectedKeyExchange::Hybrid => KeyExchange::HybridOnly,
        };
        let server_name = server_name.map(ServerName::DnsName);
        let servers = BelowTheIssuer::new(policy.anchors(), server_name.clone(), exchange);
        let servers = Arc::new(servers);
        let tls = match device.key {
            None => ClientTls::anonymous(servers, exchange)?,
            Some(key) => ClientTls::with_certificate(key, servers, exchange)?,
        };
        let setting = Setting {
            judging: Judging {
                policy,
                crls: Arc::default(),
            },
            tls,
            attester: device.attester,
            server_name,
            deadlines: Deadlines::default(),
        };
        Ok(Self {
            in_force: InForce::new(setting),
        })
    }

    /// Revocation lists beside those that evidence carries. A file that changes is read anew by the next
    /// round of attestation, of connections that live, too.
    pub fn with_crls(self, crls: Arc<CrlFiles>) -> Self {
        self.in_force.change(|setting| setting.judging.crls = crls);
        self
    }

    /// Gives peers other deadlines than the default ones.
    pub fn with_deadlines(self, deadlines: Deadlines) -> Self {
        self.in_force
            .change(|setting| setting.deadlines = deadlines);
        self
    }

    /// Puts another one in the place of this connector and all its clones. Connections are made as that
    /// one would from now on; those that live are judged by its policy from their next round of
    /// attestation on, and end then if it does not accept them. Revocation lists, and what they have
    /// shown, stay this connector's.
    pub fn replace(&self, by: &Self) {
        let mut by = by.in_force.get();
        self.in_force.change(|setting| {
            by.judging.crls = Arc::clone(&setting.judging.crls);
            *setting = by;
        });
    }

    /// The policy.
    pub fn policy(&self) -> Arc<Policy> {
        self.in_force.get().judging.policy
    }

    /// Reaches a service, and has it attest itself.
    pub async fn connect(
        &self,
        service: &ServiceAddress,
    ) -> Result<Attested<Appraised>, ConnectError> {
        let unreachable = |source| ConnectError::Unreachable {
            service: service.clone(),
            source,
        };
        let stream = timeout(REACH, TcpStream::connect(service.host_and_port()))
            .await
            .map_err(|_| unreachable(io::ErrorKind::TimedOut.into()))?
            .map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        self.attest(stream, service).await
    }

    /// Has the service at the other end of a transport attest itself.
    pub async fn attest<IO>(
        &self,
        transport: IO,
        service: &ServiceAddress,
    ) -> Result<Attested<Appraised>, ConnectError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let verifier = Arc::new(ServiceVerifier::new(self.in_force.clone()));
        let setting = self.in_force.get();
        let name = setting.server_name.as_ref().unwrap_or(service.name());
        connect(
            transport,
            &setting.tls,
            name.clone(),
            setting.attester,
            Arc::clone(&verifier),
            setting.deadlines,
        )
        .await
        .map_err(|source| match (source, verifier.why_not()) {
            (ConnectionError::Refused(_), Some(why)) => ConnectError::NotAccepted {
                service: service.clone(),
                why,
            },
            (source, _) => ConnectError::not_attested(service.clone(), source),
        })
    }
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector")
            .field("policy", self.policy().digest())
            .finish_non_exhaustive()
    }
}
