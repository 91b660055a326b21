//! Validation of a tenant's certificate, with the outcome as a type.

use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::extensions::GeneralName;

use crate::identifiers::{IdentifierError, Tenant};
use crate::path::{ChainError, ChainMember, root_of};
use crate::profile::tenant::TenantCertificate;
use crate::profile::{Fields, ProfileError};
use crate::revocation::CheckedRevocation;
use crate::serial::CertificateSerial;
use crate::signature_algorithms;
use crate::trust_anchors::TrustAnchors;

/// Whose certificates make a client a tenant, and how they name it.
#[derive(Clone, Debug)]
pub struct TenantAuthority {
    anchors: TrustAnchors,
    naming: TenantNaming,
}

/// How a certificate names a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TenantNaming {
    /// As the identity issuer does: `urn:vrot:tenant:<tenant>`, and nothing else.
    Profile,
    /// By the only URI among its alternative names that begins so: the rest is the tenant.
    Uri(String),
    /// By its subject's only common name.
    CommonName,
}

/// A certificate that a trusted authority made itself for a client in TLS, and the tenant that it names.
///
/// It establishes whom that authority named. Who holds the key, the handshake establishes.
#[derive(Clone, Debug)]
pub struct VerifiedTenantCertificate {
    tenant: Tenant,
    serial: CertificateSerial,
    not_after: UnixTime,
    revocation: CheckedRevocation,
}

impl TenantAuthority {
    /// Certificates that these roots signed themselves, or the CA among them that is configured as one.
    pub fn new(anchors: TrustAnchors, naming: TenantNaming) -> Self {
        Self { anchors, naming }
    }

    /// Its roots, with what is known and demanded about revocation.
    pub fn anchors(&self) -> &TrustAnchors {
        &self.anchors
    }

    /// The same with other knowledge about revocation.
    #[must_use]
    pub fn with_anchors(&self, anchors: TrustAnchors) -> Self {
        Self {
            anchors,
            naming: self.naming.clone(),
        }
    }
}

impl VerifiedTenantCertificate {
    /// Validates the certificate as of `at`, reads which tenant it names, and looks for it in the
    /// revocation lists that the anchors come with.
    pub fn verify(
        der: &[u8],
        authority: &TenantAuthority,
        at: UnixTime,
    ) -> Result<Self, ChainError> {
        let member = ChainMember::Client;
        let own = CertificateDer::from(der);
        let leaf = EndEntityCert::try_from(&own)
            .map_err(|source| ChainError::Malformed { member, source })?;
        let valid = authority.anchors.valid_at(at);
        let path = leaf
            .verify_for_usage(
                signature_algorithms::ALL,
                &valid,
                // Whoever names tenants is configured, not whoever that one lets name some.
                &[],
                at,
                KeyUsage::client_auth(),
                None,
                None,
            )
            .map_err(ChainError::from_validation)?;
        let root = root_of(&authority.anchors, &path)?;
        let refused = |source| ChainError::Profile { member, source };
        let read = match &authority.naming {
            TenantNaming::Profile => TenantCertificate::read(der),
            naming => of_another_ca(der, naming),
        };
        let certificate = read.map_err(refused)?;
        let revocation = authority.anchors.revocation_of(
            certificate.tenant.as_str(),
            &certificate.serial,
            &root.anchor,
            at,
        )?;
        Ok(Self {
            tenant: certificate.tenant,
            serial: certificate.serial,
            not_after: certificate.not_after.min(root.validity.not_after),
            revocation,
        })
    }

    /// The tenant that it names.
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// Its number.
    pub fn serial(&self) -> &CertificateSerial {
        &self.serial
    }

    /// Until when certificate and root are valid, and the revocation list is what was demanded.
    pub fn not_after(&self) -> UnixTime {
        self.revocation.limit(self.not_after)
    }
}

/// A certificate of a CA that has its own profiles: it says that it is for clients, and names one tenant.
fn of_another_ca(der: &[u8], naming: &TenantNaming) -> Result<TenantCertificate, ProfileError> {
    const URI: ProfileError = ProfileError::Names {
        field: "subject alternative name",
    };
    let fields = Fields::read(der)?;
    fields.check_extensions_parse()?;
    let purposes = fields.key_purposes()?.unwrap_or_default();
    if !purposes.iter().any(|purpose| purpose == "clientAuth") {
        return Err(ProfileError::ExtendedKeyUsage {
            expected: "for clients (clientAuth)",
        });
    }
    let tenant: Result<Tenant, IdentifierError> = match naming {
        TenantNaming::CommonName => {
            let name = fields.only_common_name_of_several();
            name.ok_or(ProfileError::Names { field: "subject" })?
                .parse()
        }
        TenantNaming::Profile | TenantNaming::Uri(_) => {
            let prefix = match naming {
                TenantNaming::Uri(prefix) => prefix.as_str(),
                _ => crate::profile::tenant::TENANT_URI,
            };
            let names = fields.alternative_names()?.iter();
            let mut named = names.filter_map(|name| match name {
                GeneralName::URI(uri) => uri.strip_prefix(prefix),
                _ => None,
            });
            let (Some(name), None) = (named.next(), named.next()) else {
                return Err(URI);
            };
            name.parse()
        }
    };
    Ok(TenantCertificate {
        tenant: tenant.map_err(ProfileError::Tenant)?,
        serial: fields.serial(),
        not_after: fields.not_after(),
    })
}
