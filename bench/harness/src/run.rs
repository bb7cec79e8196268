//! One run of a benchmark: its directory, its notes, its parts.

use std::fmt::{Debug, Display};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use clap::ValueEnum;

use crate::args::PartArgs;
use crate::machine::Machine;
use crate::page::{self, Page, Section};
use crate::scratch::Scratch;

/// The context of all parts.
pub struct Run {
    /// The scratch directory, which is removed when this is dropped.
    pub scratch: PathBuf,
    /// Runs of each measurement.
    pub runs: usize,
    /// Whether sizes are small.
    pub quick: bool,
    machine: Machine,
    began: Instant,
    _directory: Scratch,
}

impl Run {
    /// Begins a run.
    ///
    /// # Errors
    ///
    /// If there is no directory to work in, or the machine cannot be described.
    pub fn begin<P: ValueEnum + Send + Sync + 'static>(args: &PartArgs<P>) -> anyhow::Result<Run> {
        let directory = Scratch::new(args.scratch.as_deref())?;
        Ok(Run {
            scratch: directory.path().to_owned(),
            runs: args.runs.into(),
            quick: args.quick,
            machine: Machine::describe(directory.path())?,
            began: Instant::now(),
            _directory: directory,
        })
    }

    /// Prints a line to standard error, with the time since the beginning.
    pub fn note(&self, what: impl Display) {
        eprintln!("[{:>5.0} s] {what}", self.began.elapsed().as_secs_f64());
    }

    /// A new directory of a part.
    ///
    /// # Errors
    ///
    /// If it cannot be made.
    pub fn dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        let dir = self.scratch.join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    /// Begins a part, while `load` of the machine is in use by others.
    pub fn part<P: Debug>(&self, part: &P, load: f64) -> Part {
        self.note(format!(
            "{part:?}; {:.0} % of the machine are in use",
            load * 100.0
        ));
        Part {
            name: format!("{part:?}"),
            date: page::now(),
            load,
        }
    }

    /// Writes the page.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn write(&self, page: &Page<'_>, sections: &[Section], out: &Path) -> anyhow::Result<()> {
        std::fs::write(out, page.text(&self.machine, sections))
            .with_context(|| format!("cannot write {}", out.display()))?;
        println!("Written to {}", out.display());
        Ok(())
    }
}

/// A part that is measured.
pub struct Part {
    name: String,
    date: String,
    load: f64,
}

impl Part {
    /// Prints the table of a section, and returns the section with the date and the load.
    ///
    /// # Errors
    ///
    /// If the part failed.
    pub fn end(self, section: anyhow::Result<Section>) -> anyhow::Result<Section> {
        let section = Section {
            date: self.date,
            load: self.load,
            ..section.context(self.name)?
        };
        println!("{}", section.table());
        Ok(section)
    }
}
