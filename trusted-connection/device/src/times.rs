//! Times as people read and write them (RFC 3339).

use std::time::Duration;

use rustls_pki_types::UnixTime;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Seconds since 1970.
pub(crate) fn rfc3339(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok();
    let time = time.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    let text = time.and_then(|time| time.format(&Rfc3339).ok());
    text.unwrap_or_else(|| format!("{seconds} s after 1970"))
}

pub(crate) fn parse_time(text: &str) -> Result<UnixTime, String> {
    let time = OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|error| format!("{error}; write it like 2026-06-01T12:00:00Z"))?;
    u64::try_from(time.unix_timestamp())
        .map(|seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
        .map_err(|_| "it lies before 1970".to_owned())
}
