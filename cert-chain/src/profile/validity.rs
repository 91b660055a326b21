//! When a certificate is valid.

use std::time::Duration;

use rustls_pki_types::UnixTime;
use time::OffsetDateTime;

use super::IssueError;
use super::fields::{Fields, ProfileError};

/// First and last second of a certificate's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

/// How far a certificate is dated back, for verifiers whose clock is slow.
pub const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);

impl Validity {
    /// Valid for `lifetime` from `now` on, and dated back by [`CLOCK_SKEW`].
    pub fn starting(now: UnixTime, lifetime: Duration) -> Result<Self, IssueError> {
        let now = now.as_secs();
        let not_after = now
            .checked_add(lifetime.as_secs())
            .ok_or(IssueError::Validity)?;
        Ok(Self {
            not_before: date(now.saturating_sub(CLOCK_SKEW.as_secs()))?,
            not_after: date(not_after)?,
        })
    }

    /// The validity that a certificate states, whatever else it says.
    pub fn of_certificate(der: &[u8]) -> Result<Self, ProfileError> {
        let fields = Fields::read(der)?;
        let date = |at: UnixTime| date(at.as_secs()).map_err(|_| ProfileError::Malformed);
        Ok(Self {
            not_before: date(fields.not_before())?,
            not_after: date(fields.not_after())?,
        })
    }

    /// First second.
    pub fn not_before(&self) -> UnixTime {
        unix(self.not_before)
    }

    /// Last second.
    pub fn not_after(&self) -> UnixTime {
        unix(self.not_after)
    }

    pub(super) fn apply(&self, params: &mut rcgen::CertificateParams) {
        params.not_before = self.not_before;
        params.not_after = self.not_after;
    }

    /// The same as dates.
    pub(super) fn dates(&self) -> (OffsetDateTime, OffsetDateTime) {
        (self.not_before, self.not_after)
    }

    /// Cut at the end of the issuing certificate: what outlives it could not be verified.
    pub(super) fn within(mut self, issuer_not_after: UnixTime) -> Result<Self, IssueError> {
        let end = date(issuer_not_after.as_secs())?;
        if end <= self.not_before {
            return Err(IssueError::IssuerExpired);
        }
        self.not_after = self.not_after.min(end);
        Ok(self)
    }
}

pub(super) fn date(seconds: u64) -> Result<OffsetDateTime, IssueError> {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or(IssueError::Validity)
}

fn unix(date: OffsetDateTime) -> UnixTime {
    let seconds = u64::try_from(date.unix_timestamp()).unwrap_or(0);
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Issuer;
    use crate::{Domain, TrustAnchors};

    /// Where calendars, counters and encodings end.
    const TIMES: [u64; 12] = [
        0,
        1,
        300,
        2_524_607_999,
        2_524_608_000,
        1 << 31,
        1 << 32,
        253_402_300_799,
        253_402_300_800,
        1 << 62,
        i64::MAX as u64,
        u64::MAX,
    ];

    #[test]
    fn a_certificate_of_any_time_is_made_or_refused() -> Result<(), Box<dyn std::error::Error>> {
        let domain: Domain = "example.org".parse()?;
        let mut made = 0;
        for now in TIMES {
            for lifetime in TIMES {
                let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
                let Ok(validity) = Validity::starting(now, Duration::from_secs(lifetime)) else {
                    continue;
                };
                let Ok(issuer) = Issuer::create(domain.clone(), validity) else {
                    continue;
                };
                made += 1;
                // What was made can be read, at whatever time somebody looks at it.
                let anchors = TrustAnchors::from_pem(&issuer.certificate_pem())?;
                for at in TIMES {
                    let at = UnixTime::since_unix_epoch(Duration::from_secs(at));
                    let _ = anchors.valid_at(at);
                }
            }
        }
        assert!(made > 20, "{made}");
        Ok(())
    }
}
