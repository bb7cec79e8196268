//! Figures, and the page that has them.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::machine::Machine;

/// Fraction of the machine that other programs may use without a remark.
const DISTURBANCE: f64 = 0.15;

/// One line of a table.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// The result, with its unit.
    pub figure: String,
    /// The figure that it is compared with.
    pub beside: String,
    /// The target of the figure.
    pub target: String,
    /// Whether the target is met; `None` without a target.
    pub met: Option<bool>,
}

impl Figure {
    /// A figure without a target.
    pub fn plain(what: impl Into<String>, figure: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            figure: figure.into(),
            ..Self::default()
        }
    }

    /// Adds the figure that it is compared with.
    pub fn beside(mut self, beside: impl Into<String>) -> Self {
        self.beside = beside.into();
        self
    }

    /// Adds a target, and whether it is met.
    pub fn target(mut self, target: impl Into<String>, met: bool) -> Self {
        self.target = target.into();
        self.met = Some(met);
        self
    }
}

/// The results of a part of the bench.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Section {
    /// The title.
    pub title: String,
    /// How it was measured.
    pub how: String,
    /// The figures.
    pub figures: Vec<Figure>,
    /// The date of the measurement.
    pub date: String,
    /// Fraction of the machine that other programs used just before.
    pub load: f64,
}

impl Section {
    /// The figures as a Markdown table.
    pub fn table(&self) -> String {
        let mut text = format!("## {}\n\n{}\n\n", self.title, self.how);
        text.push_str("| what | figure | beside | target | met |\n|---|---|---|---|---|\n");
        for figure in &self.figures {
            let met = match figure.met {
                None => "",
                Some(true) => "yes",
                Some(false) => "no",
            };
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {met} |",
                figure.what, figure.figure, figure.beside, figure.target
            );
        }
        let _ = writeln!(
            text,
            "\nMeasured {}; just before, other programs used {:.0} % of the machine.",
            self.date,
            self.load * 100.0
        );
        text
    }
}

/// A page of the documentation.
pub struct Page<'a> {
    /// The title.
    pub title: &'a str,
    /// The target of `make` that writes it.
    pub target: &'a str,
    /// How everything on it was measured.
    pub how: &'a str,
}

impl Page<'_> {
    /// Its text.
    pub fn text(&self, machine: &Machine, sections: &[Section]) -> String {
        let Page { title, target, how } = self;
        let shared = match sections.iter().any(|section| section.load > DISTURBANCE) {
            true => {
                ". It was shared with other work while these figures were taken: times vary by a \
                 factor of two from run to run, and those of different tables cannot be compared"
            }
            false => "",
        };
        let mut text = format!(
            "# Benchmarks: {title}\n\n\
             This page is written by the bench itself (`make {target}`); it is not edited by hand.\n\n\
             - Machine: {machine}{shared}\n\
             - {how}\n\n"
        );
        for section in sections {
            text.push_str(&section.table());
            text.push('\n');
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    }
}

/// The current time, in the form of the page.
pub fn now() -> String {
    let now = OffsetDateTime::now_utc();
    format!("{} {:02}:{:02} UTC", now.date(), now.hour(), now.minute())
}
