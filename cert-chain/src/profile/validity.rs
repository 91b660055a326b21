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

fn date(seconds: u64) -> Result<OffsetDateTime, IssueError> {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or(IssueError::Validity)
}

fn unix(date: OffsetDateTime) -> UnixTime {
    let seconds = u64::try_from(date.unix_timestamp()).unwrap_or(0);
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}
