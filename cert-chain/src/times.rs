//! Points in time as people read them.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Seconds since 1970 as in RFC 3339; the bare number where there is no such date.
pub(crate) fn rfc3339(seconds: u64) -> String {
    let date = i64::try_from(seconds).ok().and_then(|seconds| {
        let date = OffsetDateTime::from_unix_timestamp(seconds).ok()?;
        date.format(&Rfc3339).ok()
    });
    date.unwrap_or_else(|| format!("{seconds} s after 1970 began"))
}
