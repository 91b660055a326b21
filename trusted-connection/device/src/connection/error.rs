//! Why there is no attested connection to a service.

use std::io;

use attested_tls::ConnectionError;
use attested_tls::tls::TlsSetupError;

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
