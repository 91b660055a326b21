//! Commands by which an issuer lets tenants in, and shuts them out.

use std::time::Duration;

use cert_chain::TenantKey;
use cert_chain::profile::tenant_uri;

use super::revocation::{Revocation, table};
use crate::arguments::{AddArguments, RevokeTenantArguments, TenantCommand};
use crate::error::CtlError;
use crate::files::{Destination, Kind, make, not_needed, read};
use crate::issuer::{IssuerError, IssuerFolder, Whose};
use crate::output::Output;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) fn run(command: &TenantCommand, output: &Output) -> Result<(), CtlError> {
    match command {
        TenantCommand::Add(arguments) => add(arguments, output),
        TenantCommand::List { directory, tenant } => {
            let known = IssuerFolder::open(directory)?.tenants(tenant.as_ref())?;
            output.result(
                &serde_json::json!({ "certificates": known }),
                || match known.is_empty() {
                    true => "no certificate of a tenant is known".to_owned(),
                    false => table(&known).render(),
                },
            )
        }
        TenantCommand::Revoke(arguments) => revoke(arguments, output),
    }
}

fn add(arguments: &AddArguments, output: &Output) -> Result<(), CtlError> {
    if arguments.key.new_key.as_ref() == Some(&arguments.out) {
        return Err(CtlError::Argument(
            "--new-key and --out name one file: the key and its certificate need two".to_owned(),
        ));
    }
    let issuer = IssuerFolder::open(&arguments.directory)?;
    let place = Destination::open(&arguments.out, Kind::pem("CERTIFICATE"))?;
    let key = match (&arguments.key.csr, &arguments.key.new_key) {
        (Some(csr), _) => {
            TenantKey::of_request(&read(csr)?).map_err(|error| not_needed(csr, error.into()))?
        }
        (None, Some(file)) => {
            let (key, private) = TenantKey::generate().map_err(|source| IssuerError::Tenant {
                tenant: arguments.tenant.clone(),
                source,
            })?;
            // Before it is certified: a certificate whose key is lost would be of no use.
            make(file, private.as_bytes(), 0o600)?;
            key
        }
        (None, None) => unreachable!("the command line demands one of both"),
    };
    let lifetime = DAY.saturating_mul(arguments.days.into());
    let certificate = issuer.certify_tenant(&arguments.tenant, key, lifetime)?;
    place.write(certificate.as_bytes())?;
    let made = serde_json::json!({
        "tenant": arguments.tenant,
        "certificate": arguments.out,
        "key": arguments.key.new_key,
    });
    output.result(&made, || {
        format!(
            "certified tenant {}: {}",
            arguments.tenant,
            arguments.out.display()
        )
    })
}

fn revoke(arguments: &RevokeTenantArguments, output: &Output) -> Result<(), CtlError> {
    let issuer = IssuerFolder::open(&arguments.directory)?;
    let subject = tenant_uri(&arguments.tenant);
    let whose = match &arguments.serial {
        None => Whose::Tenant(arguments.tenant.clone()),
        Some(serial) => {
            let known = issuer.tenants(Some(&arguments.tenant))?;
            match known.iter().any(|record| record.serial == *serial) {
                true => Whose::Serial(serial.clone()),
                false => return Err(IssuerError::NothingIssued { subject }.into()),
            }
        }
    };
    Revocation {
        whose: vec![whose],
        reason: arguments.reason.into(),
        crl: arguments.crl.as_deref(),
        lifetime: arguments.lifetime.lifetime(),
        directory: &arguments.directory,
    }
    .carry_out(&issuer, output)
}
