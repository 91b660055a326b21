//! What is written down of tenants' connections: anybody can come again and again, so little of it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use api_types::WithCauses;
use cert_chain::{CertificateSerial, Tenant};
use tenant_api::Notice;
use tokio::sync::mpsc;

use crate::audit::Event;
use crate::manager::Manager;
use crate::rate_limit::{Quota, Repetition};

/// Certificates that are told apart; beyond, they are forgotten, and written down once more.
const MOST_CERTIFICATES: usize = 4096;
const REFUSALS_PER_MINUTE: u32 = 12;

/// What was written down already.
struct Written {
    certificates: HashSet<(Tenant, CertificateSerial)>,
    refusals: Repetition,
    lines: Quota,
}

/// Writes down which certificates came for the first time, and, now and then, that somebody was refused.
pub(super) async fn write_down(manager: &Arc<Manager>, mut notices: mpsc::Receiver<Notice>) {
    let mut written = Written {
        certificates: HashSet::new(),
        refusals: Repetition::default(),
        lines: Quota::per_minute(REFUSALS_PER_MINUTE, Instant::now()),
    };
    while let Some(notice) = notices.recv().await {
        match written.event(notice, Instant::now()) {
            // It comes once: a full disk gets it later.
            Some(admitted @ Event::TenantAdmitted { .. }) => {
                manager.guarded().record_or_keep(vec![admitted]).await;
            }
            // Others come again, and strangers are not to fill what is kept.
            Some(event) => {
                if let Err(error) = manager.guarded().record(event).await {
                    let error = WithCauses(&error);
                    tracing::error!(%error, "a tenant's connection could not be recorded");
                }
            }
            None => {}
        }
    }
    std::future::pending().await
}

impl Written {
    fn event(&mut self, notice: Notice, now: Instant) -> Option<Event> {
        match notice {
            Notice::Admitted {
                tenant,
                certificate,
                address,
            } => {
                if self.certificates.len() >= MOST_CERTIFICATES {
                    self.certificates.clear();
                }
                let serial = certificate.to_string();
                // Each CA numbers its own certificates.
                let is_new = self.certificates.insert((tenant.clone(), certificate));
                is_new.then(|| Event::TenantAdmitted {
                    tenant,
                    certificate: serial.into(),
                    address: address.to_string().into(),
                })
            }
            Notice::Refused { address, reason } => {
                let times = self.refusals.count(now)?;
                let reason = match times {
                    1 => reason,
                    more => format!("{more} times since the last such line: {reason}"),
                };
                self.lines.admit(now).then(|| Event::TenantRefused {
                    address: address.to_string().into(),
                    reason: reason.into(),
                })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn whoever_comes_all_the_time_makes_one_line_a_minute_and_each_certificate_one()
    -> anyhow::Result<()> {
        let start = Instant::now();
        let mut written = Written {
            certificates: HashSet::new(),
            refusals: Repetition::default(),
            lines: Quota::per_minute(REFUSALS_PER_MINUTE, start),
        };
        let address = "192.0.2.1".parse()?;
        let refused = || Notice::Refused {
            address,
            reason: "no TLS".to_owned(),
        };
        let lines = |written: &mut Written, at| {
            (0..1000)
                .filter_map(|_| written.event(refused(), at))
                .count()
        };
        assert_eq!(lines(&mut written, start), 1);
        assert_eq!(lines(&mut written, start + Duration::from_secs(61)), 1);
        // Two CAs may have given the same number.
        for tenant in ["acme", "other"] {
            let admitted = Notice::Admitted {
                tenant: tenant.parse()?,
                certificate: "0102".parse()?,
                address,
            };
            assert!(written.event(admitted.clone(), start).is_some(), "{tenant}");
            assert!(written.event(admitted, start).is_none(), "{tenant}");
        }
        Ok(())
    }
}
