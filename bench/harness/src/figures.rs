//! The figures of the parts of a benchmark: those of this run, and those of earlier runs that a file remembers.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::ValueEnum;

use crate::args::PartArgs;
use crate::page::{Page, Section};
use crate::run::Run;

/// The figures. `P` names the parts.
pub struct Figures<P> {
    file: Option<PathBuf>,
    /// By the name of the part.
    known: BTreeMap<String, Section>,
    measured: Vec<Section>,
    parts: PhantomData<P>,
}

impl<P: ValueEnum + Debug + Send + Sync + 'static> Figures<P> {
    /// The figures that the file of the arguments remembers, if they name one.
    ///
    /// # Errors
    ///
    /// If there is a file, and it cannot be read or has no figures.
    pub fn begin(args: &PartArgs<P>) -> anyhow::Result<Figures<P>> {
        let known = match &args.figures {
            Some(path) if path.exists() => serde_json::from_slice(&std::fs::read(path)?)
                .with_context(|| format!("{} has no figures", path.display()))?,
            _ => BTreeMap::new(),
        };
        Ok(Figures {
            file: args.figures.clone(),
            known,
            measured: Vec::new(),
            parts: PhantomData,
        })
    }

    /// Adds what was measured of a part, also to the file.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn add(&mut self, part: &P, section: Section) -> anyhow::Result<()> {
        self.measured.push(section.clone());
        self.known.insert(name(part), section);
        if let Some(path) = &self.file {
            std::fs::write(path, serde_json::to_vec_pretty(&self.known)?)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// Writes the page, if all parts are known and sizes were not small.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn write(&self, run: &Run, page: &Page<'_>, out: &Path) -> anyhow::Result<()> {
        let parts = P::value_variants().iter();
        let sections: Option<Vec<_>> = parts
            .map(|part| self.known.get(&name(part)).cloned())
            .collect();
        match sections {
            Some(sections) if !run.quick => run.write(page, &sections, out),
            _ => Ok(()),
        }
    }

    /// 1 if this run missed a target, 0 otherwise.
    pub fn exit_code(&self) -> ExitCode {
        let mut figures = self.measured.iter().flat_map(|section| &section.figures);
        ExitCode::from(u8::from(figures.any(|figure| figure.met == Some(false))))
    }
}

fn name(part: &impl Debug) -> String {
    format!("{part:?}")
}
