//! Commands of the identity issuer.

use std::path::PathBuf;

use cert_chain::{Domain, TpmName};
use clap::{Args, Subcommand};

use super::revocation::{CrlArguments, RevokeArguments};
use super::tenant::TenantCommand;
use crate::issuer::OperatorKeyChange;

#[derive(Debug, Subcommand)]
pub(crate) enum IssuerCommand {
    /// Make an issuer: a key and a root certificate.
    Init {
        /// The issuer's folder.
        #[arg(long = "dir", alias = "directory", value_name = "DIR")]
        directory: PathBuf,
        /// The DNS domain in which hosts are named.
        #[arg(long)]
        domain: Domain,
        /// Certificates (PEM) of the TPM makers whose TPMs are accepted.
        #[arg(long, value_name = "PEM")]
        tpm_roots: PathBuf,
        /// Public keys (PEM) of the operators who approve what hosts boot. Hosts under other keys
        /// are not certified, and without any, no host is.
        #[arg(long, value_name = "PEM", num_args = 1..)]
        operator_keys: Vec<PathBuf>,
    },
    /// The operator keys that the issuer accepts.
    OperatorKey {
        #[command(subcommand)]
        command: OperatorKeyCommand,
    },
    /// Check a host's or device's request, and challenge its TPM.
    Challenge {
        /// The issuer's folder.
        #[arg(long = "dir", alias = "directory", value_name = "DIR")]
        directory: PathBuf,
        /// The request.
        #[arg(long, value_name = "FILE")]
        request: PathBuf,
        /// The request is a device's, and this is the name that the device is to get in the issuer's
        /// domain. Nothing else says that the device is yours: without this, only hosts are challenged.
        #[arg(long, value_name = "NAME", conflicts_with = "replace_operator_key")]
        device: Option<String>,
        /// Where to write the challenge.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        #[command(flatten)]
        change: OperatorKeyChangeArgument,
    },
    /// Check a host's or device's answer, and certify it.
    Certify {
        /// The issuer's folder.
        #[arg(long = "dir", alias = "directory", value_name = "DIR")]
        directory: PathBuf,
        /// The answer.
        #[arg(long, value_name = "FILE")]
        answer: PathBuf,
        /// Where to write the certificate.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Tenants that may ask managers about their VMs.
    Tenant {
        #[command(subcommand)]
        command: TenantCommand,
    },
    /// Revoke certificates: verifiers that get the next revocation list refuse them.
    Revoke(RevokeArguments),
    /// Make a revocation list: who is on it is refused until it expired.
    ///
    /// Make one regularly, before the last one ends, and hand it to devices and services.
    Crl(CrlArguments),
    /// List the certificates that the issuer made, and which of them it revoked.
    Certificates {
        /// The issuer's folder.
        #[arg(long = "dir", alias = "directory", value_name = "DIR")]
        directory: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum OperatorKeyCommand {
    /// Accept more keys.
    Add {
        /// The issuer's folder.
        #[arg(long = "dir", alias = "directory", value_name = "DIR")]
        directory: PathBuf,
        /// Public keys (PEM), as `host policy keygen` writes them.
        #[arg(value_name = "PEM", required = true)]
        keys: Vec<PathBuf>,
    },
    /// List the keys that are accepted.
    List {
        /// The issuer's folder.
        #[arg(long = "dir", alias = "directory", value_name = "DIR")]
        directory: PathBuf,
    },
    /// Accept a key no more, as when it was stolen. Certificates that hosts have stay valid.
    Remove {
        /// The issuer's folder.
        #[arg(long = "dir", alias = "directory", value_name = "DIR")]
        directory: PathBuf,
        /// The key's name.
        #[arg(value_name = "NAME")]
        operator_key: TpmName,
    },
}

#[derive(Debug, Args)]
pub(crate) struct OperatorKeyChangeArgument {
    /// Certify a host under another operator key than before. It is written down.
    #[arg(long)]
    pub(crate) replace_operator_key: bool,
}

impl OperatorKeyChangeArgument {
    pub(crate) fn change(&self) -> OperatorKeyChange {
        if self.replace_operator_key {
            OperatorKeyChange::Accept
        } else {
            OperatorKeyChange::Refuse
        }
    }
}
