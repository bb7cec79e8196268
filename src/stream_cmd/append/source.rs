//! The input of an append: a file or standard input.

use std::fs::File;
use std::io::{IsTerminal as _, Read};
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};

use crate::failure::Failure;
use crate::output;

/// The input of an append: a file or standard input.
pub struct Source {
    pub input: Box<dyn Read + Send>,
    /// Size in bytes, if it is a file.
    size: Option<u64>,
    /// Whether a person types the lines.
    pub is_typed: bool,
}

impl Source {
    /// Opens a file, or standard input without a path.
    pub fn open(path: Option<&Path>) -> Result<Source, Failure> {
        let Some(path) = path.filter(|path| *path != "-") else {
            return Ok(Source {
                is_typed: std::io::stdin().is_terminal(),
                input: Box::new(std::io::stdin()),
                size: None,
            });
        };
        let cannot = |e| Failure::wrong("io", format!("cannot read {}: {e}", path.display()));
        let file = File::open(path).map_err(cannot)?;
        let metadata = file.metadata().map_err(cannot)?;
        if metadata.is_dir() {
            return Err(cannot(std::io::ErrorKind::IsADirectory.into()));
        }
        Ok(Source {
            input: Box::new(file),
            size: metadata.is_file().then_some(metadata.len()),
            is_typed: false,
        })
    }

    /// A progress bar for a file, on a terminal.
    pub fn bar(&self) -> ProgressBar {
        let Some(size) = self.size.filter(|_| output::draws_progress()) else {
            return ProgressBar::hidden();
        };
        let bar = ProgressBar::new(size);
        let template = "{bar:30} {percent:>3} %  {binary_bytes} of {binary_total_bytes}, \
                        {binary_bytes_per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
        }
        bar
    }
}
