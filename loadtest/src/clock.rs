//! Unix time, RFC 3339 and the monotonic clock that the crowd is driven by.

use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

/// Milliseconds since the Unix epoch.
pub(crate) fn unix_now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.as_millis() as u64
}

/// `2026-01-31T12:00:00.250Z` as milliseconds since the Unix epoch; `None` for anything else or before 1970.
pub(crate) fn parse_ms(text: &str) -> Option<u64> {
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    u64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok()
}

/// Milliseconds since the Unix epoch as RFC 3339 in UTC, whole seconds or milliseconds.
pub(crate) fn format_ms(ms: u64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000)
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_else(|| "9999-12-31T23:59:59Z".into())
}

/// The monotonic instant of a Unix time on a clock that is `ahead_ms` ahead of this machine's; a past time is now.
pub(crate) fn instant_of(unix_ms: u64, ahead_ms: i64) -> Instant {
    let here = unix_ms.saturating_add_signed(-ahead_ms);
    Instant::now() + Duration::from_millis(here.saturating_sub(unix_now_ms()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_go_there_and_back() {
        let ms = parse_ms("2026-01-31T12:00:00.250Z").expect("valid");
        assert_eq!(parse_ms(&format_ms(ms)), Some(ms));
        assert_eq!(parse_ms("2026-01-31T13:00:00.250+01:00"), Some(ms));
        assert_eq!(parse_ms("yesterday"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_ahead_reaches_the_opening_sooner() {
        let opening = unix_now_ms() + 10_000;
        let wait = |ahead| instant_of(opening, ahead).duration_since(Instant::now()).as_millis();
        assert!((9_900..=10_000).contains(&wait(0)), "{}", wait(0));
        assert!((6_900..=7_000).contains(&wait(3_000)), "{}", wait(3_000));
        assert_eq!(instant_of(1, 0).duration_since(Instant::now()), Duration::ZERO);
    }
}
