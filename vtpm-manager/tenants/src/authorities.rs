//! Which certificates are a tenant's: those of configured authorities that were not revoked.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bounded_file::read_bounded;
use cert_chain::path::ChainError;
use cert_chain::{
    RevocationDemand, TenantAuthority, TrustAnchorError, TrustAnchors, VerifiedTenantCertificate,
};
use crl_files::{CrlFiles, CrlFilesError};
use rustls_pki_types::UnixTime;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::settings::{AuthoritySettings, Settings};

/// The authorities that name tenants, and what they revoked.
#[derive(Debug)]
pub struct Authorities {
    authorities: Vec<TenantAuthority>,
    crls: CrlFiles,
    /// Tells when revocation lists are others than before.
    changed: watch::Sender<u64>,
}

/// Why an authority cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// A revocation list.
    #[error(transparent)]
    Crl(#[from] CrlFilesError),
    /// The file cannot be read.
    #[error("the certificate of an authority for tenants, `{}`, cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It holds something else.
    #[error("the certificate of an authority for tenants, `{}`, cannot be used", path.display())]
    Root {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: TrustAnchorError,
    },
}

/// A few certificates.
const MAX_ROOTS: usize = 64 * 1024;
/// How soon a list that was replaced counts for connections that are open.
const LOOK: Duration = Duration::from_secs(2);

impl Authorities {
    /// Reads their certificates and lists.
    pub fn open(settings: &Settings) -> Result<Self, AuthorityError> {
        let demand = match settings.crl_max_age {
            Some(max_age) => RevocationDemand::Listed { max_age },
            None => RevocationDemand::NotAsked,
        };
        let open = |authority: &AuthoritySettings| {
            let roots = roots(&authority.root)?.demanding(demand);
            Ok(TenantAuthority::new(roots, authority.naming.clone()))
        };
        let authorities = settings.authorities.iter().map(open);
        Ok(Self {
            authorities: authorities.collect::<Result<_, AuthorityError>>()?,
            crls: CrlFiles::open(&settings.crls)?,
            changed: watch::Sender::new(0),
        })
    }

    /// Which tenant a certificate names now. The first authority that accepts it decides; without one,
    /// the refusal that says most.
    pub(crate) fn verify(
        &self,
        certificate: &[u8],
    ) -> Result<VerifiedTenantCertificate, ChainError> {
        let lists = self.crls.for_verification();
        let now = now();
        let mut refused = ChainError::OtherIssuer;
        for authority in &self.authorities {
            let authority = authority.with_anchors(authority.anchors().with_lists(&lists));
            match VerifiedTenantCertificate::verify(certificate, &authority, now) {
                Ok(verified) => return Ok(verified),
                Err(ChainError::OtherIssuer) => {}
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    /// Tells when revocation lists are others than before.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Looks for lists that were replaced, without end.
    pub(crate) async fn follow_lists(&self) {
        let newest = || {
            let lists = self.crls.lists();
            let facts = lists
                .iter()
                .map(|list| (list.number().clone(), list.this_update()));
            facts.collect::<Vec<_>>()
        };
        let mut known = newest();
        loop {
            sleep(LOOK).await;
            let found = newest();
            if found != known {
                known = found;
                self.changed
                    .send_modify(|count| *count = count.wrapping_add(1));
            }
        }
    }
}

fn roots(path: &Path) -> Result<TrustAnchors, AuthorityError> {
    let file = read_bounded(path, MAX_ROOTS).map_err(|source| AuthorityError::Read {
        path: path.to_owned(),
        source,
    })?;
    TrustAnchors::from_pem(&file).map_err(|source| AuthorityError::Root {
        path: path.to_owned(),
        source,
    })
}

/// By the host's clock.
pub(crate) fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    UnixTime::since_unix_epoch(since.unwrap_or_default())
}
