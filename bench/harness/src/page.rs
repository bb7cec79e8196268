//! Figures, and the page that they stand on.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::machine::Machine;

/// Fraction of the machine that others may use without a remark.
const DISTURBANCE: f64 = 0.15;

/// One line of a table.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// What came of it, with its unit.
    pub figure: String,
    /// The figure that it is compared with.
    pub beside: String,
    /// What it should be.
    pub target: String,
    /// Whether it is.
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

    /// The same beside another.
    pub fn beside(mut self, beside: impl Into<String>) -> Self {
        self.beside = beside.into();
        self
    }

    /// The same with a target.
    pub fn target(mut self, target: impl Into<String>, met: bool) -> Self {
        self.target = target.into();
        self.met = Some(met);
        self
    }
}

/// What a part of the bench found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Section {
    /// What it is about.
    pub title: String,
    /// How it was measured.
    pub how: String,
    /// What came of it.
    pub figures: Vec<Figure>,
    /// When.
    pub date: String,
    /// Fraction of the machine that others used just before.
    pub load: f64,
}

impl Section {
    /// As Markdown.
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
    /// What it is about.
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

/// Now, as the page has it.
pub fn now() -> String {
    let now = OffsetDateTime::now_utc();
    format!("{} {:02}:{:02} UTC", now.date(), now.hour(), now.minute())
}
