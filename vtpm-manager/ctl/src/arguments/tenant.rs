//! Commands by which an issuer lets tenants in.

use std::path::PathBuf;

use cert_chain::{CertificateSerial, Tenant};
use clap::{Args, Subcommand};

use super::revocation::{LifetimeArgument, Reason};

/// `issuer tenant`
#[derive(Debug, Subcommand)]
pub(crate) enum TenantCommand {
    /// Certify a tenant: with that certificate it may ask the managers of its VMs' hosts.
    Add(AddArguments),
    /// List the certificates of tenants.
    List {
        /// The issuer's folder.
        #[arg(long = "dir", alias = "directory", value_name = "DIR")]
        directory: PathBuf,
        /// Only those of this tenant.
        tenant: Option<Tenant>,
    },
    /// Revoke certificates of a tenant: managers that get the next revocation list refuse them, and end
    /// their connections.
    Revoke(RevokeTenantArguments),
}

/// `issuer tenant add`
#[derive(Debug, Args)]
pub(crate) struct AddArguments {
    /// The tenant, as `vtpmctl create --tenant` names it.
    pub(crate) tenant: Tenant,
    /// The issuer's folder.
    #[arg(long = "dir", alias = "directory", value_name = "DIR")]
    pub(crate) directory: PathBuf,
    /// Where to write the certificate, in PEM.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) key: KeyArguments,
    /// How many days the certificate lives.
    #[arg(long, value_name = "N", default_value_t = 90, value_parser = clap::value_parser!(u16).range(1..=825))]
    pub(crate) days: u16,
}

/// Whose key it is.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct KeyArguments {
    /// The tenant's request (PKCS #10, PEM), with a key that never leaves the tenant. What else it asks
    /// for is not heeded.
    #[arg(long, value_name = "FILE")]
    pub(crate) csr: Option<PathBuf>,
    /// Make a key here, and write it to this file, to be handed to the tenant.
    #[arg(long, value_name = "FILE")]
    pub(crate) new_key: Option<PathBuf>,
}

/// `issuer tenant revoke`
#[derive(Debug, Args)]
pub(crate) struct RevokeTenantArguments {
    /// The tenant.
    pub(crate) tenant: Tenant,
    /// The issuer's folder.
    #[arg(long = "dir", alias = "directory", value_name = "DIR")]
    pub(crate) directory: PathBuf,
    /// Only the certificate with this serial number, in hexadecimal.
    #[arg(long, value_name = "HEX")]
    pub(crate) serial: Option<CertificateSerial>,
    /// Why.
    #[arg(long, value_enum)]
    pub(crate) reason: Reason,
    /// Make a revocation list at once, in this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) crl: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) lifetime: LifetimeArgument,
}
