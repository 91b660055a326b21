//! What an issuer does for tenants: certificates by which managers of hosts know them.

use std::time::Duration;

use api_types::Timestamp;
use cert_chain::profile::tenant_uri;
use cert_chain::{Tenant, TenantKey, TenantSpec, Validity, pem};

use super::certificates::CertificateRecord;
use super::error::IssuerError;
use super::folder::IssuerFolder;

impl IssuerFolder {
    /// Certifies a tenant's key, and writes the certificate down. In PEM.
    pub(crate) fn certify_tenant(
        &self,
        tenant: &Tenant,
        key: TenantKey,
        lifetime: Duration,
    ) -> Result<String, IssuerError> {
        let refused = |source| IssuerError::Tenant {
            tenant: tenant.clone(),
            source,
        };
        let spec = TenantSpec {
            tenant: tenant.clone(),
            key,
            validity: Validity::starting(Timestamp::now().unix_time(), lifetime)
                .map_err(refused)?,
        };
        let certificate = self.issuer().certify_tenant(&spec).map_err(refused)?;
        self.note_issued(&certificate)?;
        Ok(pem::encode_certificate(&certificate))
    }

    /// The certificates of all tenants, or of this one.
    pub(crate) fn tenants(
        &self,
        tenant: Option<&Tenant>,
    ) -> Result<Vec<CertificateRecord>, IssuerError> {
        let uri = tenant.map_or_else(|| URI.to_owned(), tenant_uri);
        let mut known = self.certificates()?;
        known.retain(|record| match tenant {
            Some(_) => record.subject == uri,
            None => record.subject.starts_with(&uri),
        });
        Ok(known)
    }
}

const URI: &str = cert_chain::profile::tenant::TENANT_URI;
