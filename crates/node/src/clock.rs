//! The time: the stamps of commands, and ages.
//!
//! Schedules: a time in the future means that a clock was ahead, and what it schedules is due now
//! ([`past_age`]). Deletions: an age may be too small, but is never too large because of a jump
//! ([`now_ms_for_ages`], and [`esker_repository::steady`] for the rule).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use esker_repository::env::steady_now;
use esker_repository::steady::CLOCK_TOLERANCE;
use time::OffsetDateTime;

/// The time in milliseconds since the epoch.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// Milliseconds since the epoch in RFC 3339, to the second.
pub(crate) fn rfc3339_of(ms: u64) -> String {
    let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|at| {
            at.format(&time::format_description::well_known::Rfc3339)
                .ok()
        })
        .unwrap_or_else(|| format!("{ms} ms after the epoch"))
}

/// As [`now_ms`], for ages after which something is deleted: it does not follow a jump ahead.
pub(crate) fn now_ms_for_ages() -> u64 {
    let ms = steady_now().0.unix_timestamp_nanos() / 1_000_000;
    u64::try_from(ms).unwrap_or(0)
}

/// The age of a time by this machine's clock; `None` if it is in the future: then this machine's clock was
/// ahead at that time, or is behind now.
pub(crate) fn past_age(of: OffsetDateTime) -> Option<Duration> {
    past_age_at(of, OffsetDateTime::now_utc())
}

/// The same, as of a given time.
pub(crate) fn past_age_at(of: OffsetDateTime, now: OffsetDateTime) -> Option<Duration> {
    (of <= now + CLOCK_TOLERANCE).then(|| Duration::try_from(now - of).unwrap_or_default())
}

/// The age of a time by this machine's clock; zero if it is in the future.
pub(crate) fn age_of(of: OffsetDateTime) -> Duration {
    Duration::try_from(OffsetDateTime::now_utc() - of).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_from_the_future_has_no_age_and_clocks_may_differ_a_little() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(1000);
        let second = Duration::from_secs(1);
        assert_eq!(past_age_at(now - 5 * second, now), Some(5 * second));
        assert_eq!(
            past_age_at(now + CLOCK_TOLERANCE, now),
            Some(Duration::ZERO)
        );
        assert_eq!(past_age_at(now + CLOCK_TOLERANCE + second, now), None);
    }
}
