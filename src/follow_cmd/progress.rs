//! Bars on standard error, where that is a terminal.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output;
use crate::term::rate;

/// Interval at which a bar is drawn and a wait is checked.
pub const TICK: Duration = Duration::from_millis(100);

/// A spinner, for work whose progress is unknown.
pub fn spinner(message: String) -> ProgressBar {
    if !output::draws_progress() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner().with_message(message);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(TICK);
    bar
}

/// A bar that counts records up to the tail.
pub struct Records {
    bar: ProgressBar,
    from: u64,
    begun: Instant,
}

impl Records {
    /// From a position to a tail.
    pub fn new(from: u64, tail: u64) -> Records {
        let bar = match output::draws_progress() {
            true => ProgressBar::new(tail.saturating_sub(from)),
            false => ProgressBar::hidden(),
        };
        let template =
            "{bar:30} {percent:>3} %  {human_pos} of {human_len} records, {msg}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
        }
        Records {
            bar,
            from,
            begun: Instant::now(),
        }
    }

    /// Moves the bar to a position.
    pub fn at(&self, position: u64) {
        let done = position.saturating_sub(self.from);
        if done == 0 {
            return;
        }
        // The tail has moved meanwhile.
        if self.bar.length().is_some_and(|length| done > length) {
            self.bar.set_length(done);
        }
        self.bar.set_message(rate(done, self.begun.elapsed()));
        self.bar.set_position(done);
    }

    /// Removes the bar.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
