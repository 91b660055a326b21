//! What is configured.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use cert_chain::TenantNaming;

/// Where the API listens, whom it admits, and what it allows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where connections are accepted.
    pub listen: Vec<Listen>,
    /// How the host authenticates itself.
    pub certificate: ServerCertificate,
    /// Who names tenants. There is at least one.
    pub authorities: Vec<AuthoritySettings>,
    /// Files of revocation lists.
    pub crls: Vec<PathBuf>,
    /// How old the revocation list of an authority may be. Without it none is demanded, and one that is
    /// there is heeded.
    pub crl_max_age: Option<Duration>,
    /// What each tenant is allowed.
    pub limits: Limits,
}

/// Where connections are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// At an address of the host.
    At(SocketAddr),
    /// At the socket that the service manager passes under the name `tenants` (sd_listen_fds(3)).
    Passed,
}

/// How the host authenticates itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerCertificate {
    /// With a key that is made at each start, for the host's name, certified by the host IK.
    OfHostIk,
    /// With these files, which are read at the start.
    Files {
        /// The certificate and those above it but the root, in PEM.
        certificate: PathBuf,
        /// Its private key in PEM.
        key: PathBuf,
    },
}

/// Whose certificates are tenants'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthoritySettings {
    /// The certificate of the CA that issues them, in PEM.
    pub root: PathBuf,
    /// How they name tenants.
    pub naming: TenantNaming,
}

/// What each tenant is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time, those that follow events among them.
    pub connections: u32,
    /// Requests in a minute, a quarter of them at once.
    pub requests_per_minute: u32,
    /// Requests for evidence in a minute, each of which may be about all its VMs.
    pub evidence_per_minute: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            requests_per_minute: 1200,
            evidence_per_minute: 120,
        }
    }
}
