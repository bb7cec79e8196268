//! Long work: a progress bar on a terminal, and an end at Ctrl-C.

use std::time::Duration;

use esker_repository::Progress;
use indicatif::{ProgressBar, ProgressStyle};

use super::target::Target;
use crate::failure::Failure;
use crate::interrupts::{self, Interrupts};
use crate::output;

/// Interval at which the bar is drawn.
const TICK: Duration = Duration::from_millis(100);
/// How long an interrupted command waits for aborts of multipart uploads.
const ABORTS: Duration = Duration::from_millis(700);

/// Waits for work, shows its progress, and drops it at Ctrl-C or SIGTERM; the failure then ends with `left`,
/// which describes what the interruption leaves behind.
pub async fn watch<T>(
    place: &Target,
    progress: &Progress,
    work: impl Future<Output = T>,
    left: &str,
) -> Result<T, Failure> {
    let mut interrupts = Interrupts::listen(left)?;
    let bar = bar();
    let done = {
        let mut work = std::pin::pin!(work);
        let mut ticks = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                done = &mut work => break Some(done),
                () = interrupts.next() => break None,
                _ = ticks.tick() => draw(&bar, progress),
            }
        }
    };
    bar.finish_and_clear();
    match done {
        Some(done) => Ok(done),
        None => {
            // The drop of the work has started the aborts.
            if place.destination().multipart().is_some() {
                tokio::time::sleep(ABORTS).await;
            }
            Err(interrupts::interrupted(left))
        }
    }
}

fn bar() -> ProgressBar {
    if !output::draws_progress() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    let template = "{bar:30} {percent:>3} %  {binary_bytes} of {binary_total_bytes}, {msg}, \
                    {binary_bytes_per_sec}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
    }
    bar
}

fn draw(bar: &ProgressBar, progress: &Progress) {
    // The amount of work is not known yet.
    if progress.bytes() == 0 {
        return;
    }
    bar.set_length(progress.bytes());
    bar.set_position(progress.bytes_done());
    bar.set_message(format!(
        "{} of {} files",
        progress.files_done(),
        progress.files()
    ));
}
