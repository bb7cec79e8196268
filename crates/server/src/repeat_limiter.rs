//! Limits repeated warnings and errors: of one place in the code, at most [`MAX_REPEATS`] lines in
//! [`REPEAT_INTERVAL`] reach the log.
//!
//! Clients can cause warnings, so without a limit they could fill the disk that the log is on. What is
//! left out is counted, and the count is logged when the interval is over.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// Lines of one place in [`REPEAT_INTERVAL`]: enough for one line of each partition of a usual node, and
/// at most 5 lines a second over time.
const MAX_REPEATS: u32 = 50;
/// The interval of [`MAX_REPEATS`].
const REPEAT_INTERVAL: Duration = Duration::from_secs(10);

/// Leaves out what is repeated too often.
pub(crate) struct RepeatLimiter {
    /// By place in the code. The number of places is fixed.
    windows: Mutex<HashMap<Identifier, Window>>,
    /// The target of lines about the log itself, which are not limited.
    exempt: &'static str,
}

struct Window {
    begun: Instant,
    written: u32,
    suppressed: u64,
    place: &'static Metadata<'static>,
}

/// Lines that were left out.
#[derive(Debug, PartialEq)]
pub(crate) struct Suppressed {
    pub(crate) lines: u64,
    pub(crate) module: &'static str,
    pub(crate) line: u32,
}

impl RepeatLimiter {
    /// `exempt` is the target of events that are always written.
    pub(crate) fn new(exempt: &'static str) -> RepeatLimiter {
        RepeatLimiter {
            windows: Mutex::new(HashMap::new()),
            exempt,
        }
    }

    /// Whether an event of this place is written now.
    fn takes(&self, place: &'static Metadata<'static>, now: Instant) -> bool {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let window = windows.entry(place.callsite()).or_insert(Window {
            begun: now,
            written: 0,
            suppressed: 0,
            place,
        });
        if now.saturating_duration_since(window.begun) >= REPEAT_INTERVAL {
            window.begun = now;
            window.written = 0;
        }
        if window.written < MAX_REPEATS {
            window.written += 1;
            return true;
        }
        window.suppressed += 1;
        false
    }

    /// What was left out in intervals that are over. Each count is returned once.
    pub(crate) fn suppressed(&self, now: Instant) -> Vec<Suppressed> {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let over = windows.values_mut().filter(|window| {
            window.suppressed > 0 && now.saturating_duration_since(window.begun) >= REPEAT_INTERVAL
        });
        over.map(|window| Suppressed {
            lines: std::mem::take(&mut window.suppressed),
            module: window.place.module_path().unwrap_or(window.place.target()),
            line: window.place.line().unwrap_or(0),
        })
        .collect()
    }
}

impl<S: Subscriber> Layer<S> for &'static RepeatLimiter {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let place = event.metadata();
        // More detailed levels are enabled to see all of their lines.
        let limited = *place.level() <= Level::WARN && place.target() != self.exempt;
        !limited || self.takes(place, Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::log_writer::LogWriter;

    /// Bytes that a writer was given.
    #[derive(Clone, Default)]
    struct Written(std::sync::Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn repeated_warnings_are_limited_in_rate_by_place_and_their_number_is_known() {
        let written = Written::default();
        let writer: &'static LogWriter = Box::leak(Box::new(LogWriter::start(written.clone())));
        let limiter: &'static RepeatLimiter =
            Box::leak(Box::new(RepeatLimiter::new("esker_server::telemetry")));
        let layer = tracing_subscriber::fmt::layer().with_writer(writer);
        let subscriber = tracing_subscriber::registry().with(limiter).with(layer);
        let begun = Instant::now();
        tracing::subscriber::with_default(subscriber, || {
            for index in 0..10_000 {
                tracing::warn!(index, "repeated");
            }
            tracing::warn!("of another place");
            for _ in 0..MAX_REPEATS + 1 {
                tracing::info!("not limited");
            }
        });
        writer.flush(Duration::from_secs(30));
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let lines = |what: &str| text.lines().filter(|line| line.contains(what)).count();
        // A slow machine may need several intervals for them.
        let intervals = begun.elapsed().as_secs() / REPEAT_INTERVAL.as_secs() + 1;
        assert!(lines("repeated") <= MAX_REPEATS as usize * intervals as usize);
        assert_eq!(lines("of another place"), 1);
        assert_eq!(lines("not limited"), MAX_REPEATS as usize + 1);

        assert_eq!(limiter.suppressed(begun), [], "the interval is not over");
        let later = Instant::now() + REPEAT_INTERVAL;
        let suppressed = limiter.suppressed(later);
        assert_eq!(suppressed.len(), 1);
        assert_eq!(suppressed[0].lines as usize + lines("repeated"), 10_000);
        assert_eq!(suppressed[0].module, module_path!());
        assert_eq!(limiter.suppressed(later), []);
    }
}
