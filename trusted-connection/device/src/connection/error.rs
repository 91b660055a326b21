//! Why there is no attested connection to a service.

use std::error::Error;
use std::io;
use std::sync::Arc;

use attested_tls::ConnectionError;
use attested_tls::tls::TlsSetupError;
use rustls::CertificateError;

use super::address::ServiceAddress;
use super::verifier::NotAccepted;

/// Why a service is not connected to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No connection.
    #[error("{service} cannot be reached")]
    Unreachable {
        /// The service.
        service: ServiceAddress,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It showed evidence, and that was not accepted.
    #[error("{service} is not connected to: its evidence is not accepted")]
    NotAccepted {
        /// The service.
        service: ServiceAddress,
        /// Why.
        #[source]
        why: Box<NotAccepted>,
    },
    /// It has a certificate for TLS that is none of a vRoT's.
    #[error("{service} is not connected to: its certificate is not that of a vRoT's TLS key")]
    NoVrot {
        /// The service.
        service: ServiceAddress,
        /// How the certificate departs from that.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
    /// It did not get as far as evidence.
    #[error("{service} is not connected to")]
    NotAttested {
        /// The service.
        service: ServiceAddress,
        /// Why.
        #[source]
        source: ConnectionError,
    },
}

impl ConnectError {
    /// No evidence of `service` was judged.
    pub(super) fn not_attested(service: ServiceAddress, source: ConnectionError) -> Self {
        let in_the_handshake = match &source {
            ConnectionError::Io(error) => error.get_ref(),
            _ => None,
        };
        match in_the_handshake.and_then(|error| error.downcast_ref()) {
            Some(rustls::Error::InvalidCertificate(CertificateError::Other(why))) => Self::NoVrot {
                service,
                source: Arc::clone(&why.0),
            },
            _ => Self::NotAttested { service, source },
        }
    }
}

/// Why no connections can be made at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// Results end before they can be made anew.
    #[error(
        "the policy's results live for {found} s, and no connection can be attested anew in that \
         time: set `result_lifetime_s` in [freshness] to at least {SHORTEST_LIFETIME}"
    )]
    Lifetime {
        /// What the policy says.
        found: u64,
    },
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
}

/// A connection is attested anew after half of a result's life, which takes a second on a slow TPM.
pub(crate) const SHORTEST_LIFETIME: u64 = 2;
