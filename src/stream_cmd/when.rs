//! Points in time as people write them, as timestamps of records: milliseconds since 1970.

use esker_server::config::HumanDuration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The earliest time of the requested records: a time (`2026-11-20T12:00:00Z`, or without the zone in UTC, or
/// a date alone), how long ago (`10m`, `1h 30m`), or a timestamp (a number).
pub fn since(text: &str) -> Result<u64, String> {
    read(text, OffsetDateTime::now_utc())
}

fn read(text: &str, now: OffsetDateTime) -> Result<u64, String> {
    let text = text.trim();
    if text.bytes().all(|b| b.is_ascii_digit()) && !text.is_empty() {
        return text.parse().map_err(|_| "too large".into());
    }
    if let Ok(ago) = text.parse::<HumanDuration>() {
        let ago = i128::try_from(ago.as_duration().as_millis()).unwrap_or(i128::MAX);
        return milliseconds(milliseconds_of(now).saturating_sub(ago));
    }
    let text = text
        .strip_suffix(" UTC")
        .unwrap_or(text)
        .replacen(' ', "T", 1);
    ["", "Z", ":00Z", "T00:00:00Z"]
        .iter()
        .find_map(|rest| OffsetDateTime::parse(&format!("{text}{rest}"), &Rfc3339).ok())
        .ok_or_else(|| {
            "write a time (2026-11-20T12:00:00Z), how long ago (10m), or a timestamp in \
             milliseconds"
                .to_owned()
        })
        .and_then(|time| milliseconds(milliseconds_of(time)))
}

fn milliseconds_of(time: OffsetDateTime) -> i128 {
    time.unix_timestamp_nanos().div_euclid(1_000_000)
}

fn milliseconds(value: i128) -> Result<u64, String> {
    u64::try_from(value).map_err(|_| "no record is from before 1970".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 1_763_640_000_000;

    fn at_noon(text: &str) -> Result<u64, String> {
        let now = OffsetDateTime::from_unix_timestamp((NOON / 1000) as i64).unwrap();
        read(text, now)
    }

    #[test]
    fn a_time_may_be_absolute_relative_or_a_timestamp() {
        for (text, milliseconds) in [
            ("2025-11-20T12:00:00Z", NOON),
            ("2025-11-20T13:00:00+01:00", NOON),
            ("2025-11-20 12:00:00", NOON),
            ("2025-11-20 12:00:00.250 UTC", NOON + 250),
            ("2025-11-20 12:00", NOON),
            ("2025-11-20", NOON - 12 * 3_600_000),
            ("10m", NOON - 600_000),
            ("1h 30m", NOON - 5_400_000),
            ("17", 17),
        ] {
            assert_eq!(at_noon(text), Ok(milliseconds), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_answered_with_the_forms() {
        for text in ["", "yesterday", "2025-13-01", "10 parsecs"] {
            let problem = at_noon(text).unwrap_err();
            assert!(problem.contains("how long ago"), "{text}: {problem}");
        }
        assert!(at_noon("100000d").unwrap_err().contains("1970"));
    }
}
