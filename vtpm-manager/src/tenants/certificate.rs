//! The key with which the host authenticates itself to tenants: certified by the host IK, and renewed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api_types::{Timestamp, WithCauses};
use cert_chain::{Validity, issue_host_tls_certificate};
use rustls_pki_types::{CertificateDer, UnixTime};
use tenant_api::{HostTlsKey, ServerKey, ServerKeyError};
use tokio::time::sleep;

use crate::host::HostError;
use crate::manager::Manager;

/// How long such a certificate lives: whoever copies the key has it for no longer.
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// After which a new key gets a new one, by a clock that nobody sets.
const RENEWAL: Duration = Duration::from_secs(12 * 60 * 60);
/// Between two looks at whether the host has another certificate, and between attempts.
const LOOK: Duration = Duration::from_secs(2);

/// Why no key is certified.
#[derive(Debug, thiserror::Error)]
enum CertifyError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("the certificate of the key for tenants cannot be issued")]
    Issue(#[source] cert_chain::IssueError),
    #[error(transparent)]
    Key(#[from] ServerKeyError),
    #[error("the task that has it signed ended early")]
    Task(#[from] tokio::task::JoinError),
}

/// The present key's certificate.
struct Certified {
    at: Instant,
    /// As it was asked for: one that ends early, with the host's, would be replaced more and more often.
    validity: Validity,
    /// The host's own, below which it is.
    host: CertificateDer<'static>,
}

/// Has a key certified as soon as that is possible, and anew in time, without end.
pub(super) async fn keep_certified(manager: &Manager, server: &Arc<ServerKey>) {
    let mut present: Option<Certified> = None;
    let mut last_error = String::new();
    loop {
        let host = manager.host().enrolment();
        let host = host.map(|enrolment| enrolment.certificate.der().clone());
        let is_good = |certified: &Certified| {
            certified.at.elapsed() < RENEWAL
                && !is_due(&certified.validity, Timestamp::now().unix_time())
                && Some(&certified.host) == host.as_ref()
        };
        if !present.as_ref().is_some_and(is_good) {
            match certify(manager, server).await {
                Ok(certified) => {
                    tracing::info!("the key for tenants is certified");
                    present = Some(certified);
                    last_error.clear();
                }
                Err(error) => {
                    let error = WithCauses(&error).to_string();
                    if error != last_error {
                        tracing::warn!(
                            error,
                            "tenants cannot be served: the host's key for TLS has no certificate"
                        );
                        last_error = error;
                    }
                }
            }
        }
        sleep(LOOK).await;
    }
}

/// Whether a certificate is to be replaced by the host's clock, which may be set at any time: it is not
/// valid yet, or more than half of its life is over.
fn is_due(validity: &Validity, now: UnixTime) -> bool {
    let (from, to) = (
        validity.not_before().as_secs(),
        validity.not_after().as_secs(),
    );
    let middle = from + to.saturating_sub(from) / 2;
    !(from..=middle).contains(&now.as_secs())
}

async fn certify(manager: &Manager, server: &Arc<ServerKey>) -> Result<Certified, CertifyError> {
    let (enrolment, signer) = manager.host().issuer().await?;
    let key = HostTlsKey::generate()?;
    let host = enrolment.certificate.der().clone();
    let validity = Validity::starting(Timestamp::now().unix_time(), LIFETIME);
    let validity = validity.map_err(CertifyError::Issue)?;
    let (public, above) = (key.clone(), host.clone());
    let own = tokio::task::spawn_blocking(move || {
        issue_host_tls_certificate(&public, validity, &signer.later(), &above)
    });
    let own = own.await?.map_err(CertifyError::Issue)?;
    server.install(key, vec![own, host.clone()]);
    Ok(Certified {
        at: Instant::now(),
        validity,
        host,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_certificate_for_tenants_is_renewed_when_the_host_s_clock_was_set() -> anyhow::Result<()>
    {
        const DAY: u64 = 24 * 60 * 60;
        let issued = 1_800_000_000;
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let validity = Validity::starting(at(issued), LIFETIME)?;
        for (now, due) in [
            (issued - DAY, true),
            (issued - 10 * 60, true),
            (issued, false),
            (issued + DAY / 2 - 10 * 60, false),
            (issued + DAY / 2 + 1, true),
            (issued + DAY, true),
            (issued + 2 * DAY, true),
        ] {
            assert_eq!(is_due(&validity, at(now)), due, "{now}");
        }
        Ok(())
    }
}
