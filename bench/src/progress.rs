//! Progress of the bench, on standard error.
//!
//! On a terminal this is one bar; elsewhere it is one line per finished step, so that a log shows the
//! progress of a run.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Progress over a known number of steps.
pub struct Progress {
    bar: ProgressBar,
    terminal: bool,
    began: Instant,
}

impl Progress {
    /// Begins to show `steps` steps.
    pub fn new(steps: u64) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} [{elapsed_precise}] {pos}/{len} {wide_msg}")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        Self {
            bar,
            terminal,
            began: Instant::now(),
        }
    }

    /// Shows the current step.
    pub fn doing(&self, what: String) {
        self.bar.set_message(what);
    }

    /// Counts one step and prints its result.
    pub fn done(&self, what: &str) {
        self.bar.inc(1);
        self.note(what);
    }

    /// Prints a note.
    pub fn note(&self, what: &str) {
        if self.terminal {
            self.bar.println(what);
        } else {
            eprintln!("[{:>5.0} s] {what}", self.began.elapsed().as_secs_f64());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
