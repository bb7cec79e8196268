//! A clock for ages that does not follow jumps ahead.
//!
//! What is deleted by its age is deleted by a clock that somebody may set. The rule: **an age may be
//! computed too small, and is never too large because of a jump.** Within a process, the monotonic clock
//! measures the time that has passed. If the time of day gets ahead of that, ages are computed from the
//! time that has passed, for [`TRUST_AFTER`]: after that, what was young at the jump is that much older,
//! and the time of day is trusted again. If the time of day falls back, ages are computed from it at once.
//!
//! The time of day at the start of the process has to be taken as right: a clock that is ahead cannot be
//! distinguished from a machine that was off. Correctness does not depend on either clock; see
//! [`crate::sweep`].

use std::time::Duration;

use time::OffsetDateTime;

/// A time of day that differs for this long from what the monotonic clock yields is taken as right.
pub const TRUST_AFTER: Duration = Duration::from_secs(24 * 3600);
/// How far two correct clocks may be apart. Corrections up to this are followed at once.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// A clock for ages. See the module.
#[derive(Debug, Default)]
pub struct SteadyClock {
    anchor: Option<Anchor>,
}

#[derive(Clone, Copy, Debug)]
struct Anchor {
    time: OffsetDateTime,
    /// The monotonic time at which `time` was read.
    at: Duration,
    /// The monotonic time since which the time of day has differed by more than [`CLOCK_TOLERANCE`].
    off_since: Option<Duration>,
}

impl SteadyClock {
    /// Returns the time to compute ages with, for these readings of the time of day and of the monotonic
    /// clock, and by how much the time of day is ahead of it.
    pub fn read(
        &mut self,
        time_of_day: OffsetDateTime,
        monotonic: Duration,
    ) -> (OffsetDateTime, Duration) {
        let here = Anchor {
            time: time_of_day,
            at: monotonic,
            off_since: None,
        };
        let anchor = self.anchor.get_or_insert(here);
        let expected = anchor.time + monotonic.saturating_sub(anchor.at);
        let ahead = time_of_day - expected;
        if ahead.unsigned_abs() <= CLOCK_TOLERANCE {
            anchor.off_since = None;
            if ahead.is_positive() {
                *anchor = here;
            }
            return (time_of_day, Duration::ZERO);
        }
        let since = *anchor.off_since.get_or_insert(monotonic);
        if monotonic.saturating_sub(since) >= TRUST_AFTER {
            *anchor = here;
            return (time_of_day, Duration::ZERO);
        }
        match Duration::try_from(ahead) {
            Ok(ahead) => (expected, ahead),
            Err(_) => (time_of_day, Duration::ZERO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const START: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    /// Reads the clock; all times are in hours.
    fn read(clock: &mut SteadyClock, monotonic: i32, of_day: i32) -> (f64, f64) {
        let time = START + time::Duration::hours(of_day.into());
        let (steady, ahead) = clock.read(time, HOUR * monotonic.unsigned_abs());
        (
            (steady - START) / time::Duration::HOUR,
            ahead.as_secs_f64() / 3600.0,
        )
    }

    #[test]
    fn nothing_is_older_after_a_jump_ahead_than_the_time_that_passed() {
        let mut clock = SteadyClock::default();
        assert_eq!(read(&mut clock, 0, 0), (0.0, 0.0));
        assert_eq!(read(&mut clock, 1, 1), (1.0, 0.0));
        assert_eq!(read(&mut clock, 2, 5000), (2.0, 4998.0));
        assert_eq!(read(&mut clock, 25, 5023), (25.0, 4998.0));
        // The time of day was right after all: what existed at the jump is a day older.
        assert_eq!(read(&mut clock, 26, 5024), (5024.0, 0.0));
        assert_eq!(read(&mut clock, 27, 5025), (5025.0, 0.0));
    }

    #[test]
    fn a_clock_that_is_put_right_again_is_followed_at_once() {
        let mut clock = SteadyClock::default();
        read(&mut clock, 0, 0);
        assert_eq!(read(&mut clock, 1, 100), (1.0, 99.0));
        assert_eq!(read(&mut clock, 2, 2), (2.0, 0.0));
        // A second jump has its own time.
        assert_eq!(read(&mut clock, 3, 100), (3.0, 97.0));
        assert_eq!(read(&mut clock, 26, 123), (26.0, 97.0));
        assert_eq!(read(&mut clock, 27, 124), (124.0, 0.0));
    }

    #[test]
    fn a_clock_that_falls_back_makes_everything_younger() {
        let mut clock = SteadyClock::default();
        read(&mut clock, 0, 100);
        assert_eq!(read(&mut clock, 1, 0), (0.0, 0.0));
        assert_eq!(read(&mut clock, 2, 102), (102.0, 0.0), "back again");
        assert_eq!(read(&mut clock, 3, 2), (2.0, 0.0));
        // A day later the time of day is trusted, and a time ahead of it is a jump.
        assert_eq!(read(&mut clock, 27, 26), (26.0, 0.0));
        assert_eq!(read(&mut clock, 28, 128), (27.0, 101.0));
    }

    #[test]
    fn corrections_are_followed() {
        let mut clock = SteadyClock::default();
        for minute in 0_u32..600 {
            let passed = Duration::from_secs(60) * minute;
            // The time of day gains a second a minute.
            let time = START + passed + Duration::from_secs(1) * minute;
            assert_eq!(clock.read(time, passed), (time, Duration::ZERO));
        }
    }
}
