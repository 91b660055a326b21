//! `GeneralizedTime` as time stamps have it (RFC 3161 §2.4.2): in UTC, perhaps with fractions of seconds.

use std::time::Duration;

use der::asn1::Any;
use der::{Tag, Tagged};
use rustls_pki_types::UnixTime;
use time::{Date, Month, PrimitiveDateTime, Time};

/// The first whole second that is not before the time.
pub(super) fn read(value: &Any) -> Option<UnixTime> {
    if value.tag() != Tag::GeneralizedTime {
        return None;
    }
    let text = std::str::from_utf8(value.value()).ok()?;
    let text = text.strip_suffix('Z')?;
    let (whole, fraction) = match text.split_once('.') {
        // No zeros at the end, and no empty fraction.
        Some((whole, fraction)) => {
            let digits = fraction.bytes().all(|byte| byte.is_ascii_digit());
            let short = !fraction.is_empty() && fraction.len() <= 9;
            if !digits || !short || fraction.ends_with('0') {
                return None;
            }
            (whole, 1)
        }
        None => (text, 0),
    };
    if whole.len() != 14 || !whole.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let part = |from: usize, to: usize| whole.get(from..to)?.parse::<u8>().ok();
    let year = whole.get(..4)?.parse::<i32>().ok()?;
    let month = Month::try_from(part(4, 6)?).ok()?;
    let date = Date::from_calendar_date(year, month, part(6, 8)?).ok()?;
    let time = Time::from_hms(part(8, 10)?, part(10, 12)?, part(12, 14)?).ok()?;
    let seconds = PrimitiveDateTime::new(date, time)
        .assume_utc()
        .unix_timestamp();
    let seconds = u64::try_from(seconds).ok()?.checked_add(fraction)?;
    Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
}
