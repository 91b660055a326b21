//! Commands by which an issuer revokes, and says so.

use std::path::PathBuf;
use std::time::Duration;

use cert_chain::{CertificateSerial, RevocationReason};
use clap::{Args, ValueEnum};

/// `issuer revoke`
#[derive(Debug, Args)]
pub(crate) struct RevokeArguments {
    /// The issuer's folder.
    #[arg(long = "dir", alias = "directory", value_name = "DIR")]
    pub(crate) directory: PathBuf,
    #[command(flatten)]
    pub(crate) whose: WhoseArguments,
    /// Why. A key that somebody else may have is not certified again.
    #[arg(long, value_enum)]
    pub(crate) reason: Reason,
    /// Make a revocation list at once, in this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) crl: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) lifetime: LifetimeArgument,
}

/// Whose certificates.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct WhoseArguments {
    /// All certificates of a host, by its label or its whole name. With a host, all its vRoTs are
    /// refused.
    #[arg(long, value_name = "NAME")]
    pub(crate) host: Option<String>,
    /// All certificates of a device, by its path or its whole name.
    #[arg(long, value_name = "NAME")]
    pub(crate) device: Option<String>,
    /// One certificate, by its serial number in hexadecimal.
    #[arg(long, value_name = "HEX")]
    pub(crate) serial: Option<CertificateSerial>,
    /// The certificates of this issuer in a file: PEM, DER, or the message of `issuer certify`.
    #[arg(long, value_name = "FILE")]
    pub(crate) certificate: Option<PathBuf>,
}

/// `issuer crl`
#[derive(Debug, Args)]
pub(crate) struct CrlArguments {
    /// The issuer's folder.
    #[arg(long = "dir", alias = "directory", value_name = "DIR")]
    pub(crate) directory: PathBuf,
    #[command(flatten)]
    pub(crate) lifetime: LifetimeArgument,
    /// Where to write the list, in PEM.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

/// How long a list lives.
#[derive(Debug, Args)]
pub(crate) struct LifetimeArgument {
    /// In how many days there is a newer list at the latest.
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=366))]
    pub(crate) days: u16,
}

/// Why a certificate is revoked.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Reason {
    /// Somebody else may have the key, or rule the machine.
    KeyCompromise,
    /// There is another certificate.
    Superseded,
    /// The machine is out of use.
    CessationOfOperation,
    /// The machine is not to have it any more.
    PrivilegeWithdrawn,
    /// It is not said.
    Unspecified,
}

impl LifetimeArgument {
    pub(crate) fn lifetime(&self) -> Duration {
        Duration::from_secs(u64::from(self.days) * 24 * 60 * 60)
    }
}

impl From<Reason> for RevocationReason {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::KeyCompromise => Self::KeyCompromise,
            Reason::Superseded => Self::Superseded,
            Reason::CessationOfOperation => Self::CessationOfOperation,
            Reason::PrivilegeWithdrawn => Self::PrivilegeWithdrawn,
            Reason::Unspecified => Self::Unspecified,
        }
    }
}
