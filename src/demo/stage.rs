//! The output of the demo: headings, sentences, figures and progress bars.
//!
//! The text goes to standard output and is the same with and without a terminal, except for colours. Bars go
//! to standard error, on a terminal only, and are erased at the end.

use std::fmt::Display;
use std::io::Write as _;
use std::time::Instant;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::term::{Paint, took};

/// Width of the labels of figures.
const LABEL_WIDTH: usize = 22;
/// Width of the numbers of figures.
const NUMBER_WIDTH: usize = 10;
/// Redraws of the bars, per second: the whole act takes less than a second.
const REDRAWS: u8 = 30;

/// The output, and the state of the current act.
pub struct Stage {
    paint: Paint,
    bars: MultiProgress,
    act: Option<Instant>,
}

impl Stage {
    /// Before the first act.
    pub fn new() -> Stage {
        Stage {
            paint: Paint::stdout(),
            bars: MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(REDRAWS)),
            act: None,
        }
    }

    /// The first line.
    pub fn title(&self, text: &str) {
        self.line(self.paint.bold(text));
    }

    /// Begins an act.
    pub fn act(&mut self, number: usize, title: &str) {
        self.line("");
        self.line(self.paint.bold(format_args!("{number}. {title}")));
        self.act = Some(Instant::now());
    }

    /// Ends an act, and prints how long it took.
    pub fn end_act(&mut self) {
        if let Some(began) = self.act.take() {
            self.line(
                self.paint
                    .dim(format_args!("   done in {}", took(began.elapsed()))),
            );
        }
    }

    /// A sentence of an act.
    pub fn say(&self, text: impl Display) {
        self.line(format_args!("   {text}"));
    }

    /// A number, what it counts, and a remark.
    pub fn figure(&self, label: &str, number: impl Display, remark: impl Display) {
        let number = number.to_string();
        let row = format!("     {label:LABEL_WIDTH$}{number:>NUMBER_WIDTH$}   {remark}");
        self.line(row.trim_end());
    }

    /// Something that was checked, and holds.
    pub fn holds(&self, text: impl Display) {
        self.line(format_args!("   {} {text}", self.paint.green("✓")));
    }

    /// The last line.
    pub fn curtain(&self, text: impl Display) {
        self.line("");
        self.line(self.paint.bold(text));
    }

    /// A line of its own, at the margin.
    pub fn line(&self, text: impl Display) {
        // If standard output has no reader any more, the exit code still reports the result.
        let _ = writeln!(std::io::stdout().lock(), "{text}");
    }

    /// A bar that counts up to `total`. It is hidden without a terminal.
    pub fn bar(&self, label: &'static str, total: u64) -> ProgressBar {
        let bar = self.bars.add(ProgressBar::new(total));
        let template = "   {prefix:>9} {bar:40} {human_pos} of {human_len}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸ "));
        }
        bar.set_prefix(label);
        bar.tick();
        bar
    }
}
