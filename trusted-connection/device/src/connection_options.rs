//! What all commands that connect are told.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use attestation::Policy;
use attested_tls::Attester;
use clap::Args;
use rustls_pki_types::DnsName;
use trusted_connection::policy_files;

use crate::connection::{Connector, DeviceIdentity};
use crate::crl_options::CrlOptions;
use crate::root_of_trust::RootOfTrustOptions;
use crate::settings::Settings;

/// What all commands that connect are told.
#[derive(Clone, Debug, Args)]
pub struct ConnectionOptions {
    /// What is expected of the service.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    #[command(flatten)]
    crls: CrlOptions,
    /// A name that the service's certificate must have, too, and that is sent to it in the place of
    /// HOST. Without it no name is compared: the policy says which VM is meant.
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    server_name: Option<DnsName<'static>>,
    /// This device's certificate for TLS in PEM, and behind it those that lead to its issuer.
    #[arg(long, value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// The private key of that certificate in PEM.
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    #[command(flatten)]
    root_of_trust: RootOfTrustOptions,
}

impl ConnectionOptions {
    /// What makes the connections.
    pub(crate) fn connector(&self, settings: &Settings) -> Result<Connector> {
        self.connector_with(self.attester()?, settings)
    }

    /// What makes evidence of this device, if it has an identity.
    pub(crate) fn attester(&self) -> Result<Option<Arc<dyn Attester>>> {
        self.root_of_trust.attester()
    }

    /// What makes the connections, by the files as they are now. A TPM is opened once: `attester` has it.
    pub(crate) fn connector_with(
        &self,
        attester: Option<Arc<dyn Attester>>,
        settings: &Settings,
    ) -> Result<Connector> {
        let file = settings.policy(self.policy.as_deref())?;
        let policy = Arc::new(load_policy(file)?);
        let device = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => DeviceIdentity::from_files(certificate, key)?,
            _ => DeviceIdentity::none(),
        };
        let device = match attester {
            Some(attester) => device.attested(attester),
            None => device,
        };
        let crls = Arc::new(self.crls.open(settings)?);
        let connector = Connector::new(policy, device, self.server_name.clone())
            .with_context(|| format!("the policy {} cannot be used", file.display()))?;
        Ok(connector.with_crls(crls))
    }
}

/// Reads a policy, and says which one if it cannot be used.
pub fn load_policy(path: &Path) -> Result<Policy> {
    policy_files::load(path)
        .with_context(|| format!("the policy {} cannot be used", path.display()))
}

fn parse_name(text: &str) -> Result<DnsName<'static>, String> {
    DnsName::try_from(text.to_owned()).map_err(|_| "it is no DNS name".to_owned())
}
