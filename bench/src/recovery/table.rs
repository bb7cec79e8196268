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
    pub what: String,
    pub figure: String,
    pub beside: String,
    pub target: String,
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
    pub title: String,
    /// How it was measured.
    pub how: String,
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

/// The page for the documentation: what it is about, the target of `make` that writes it, and how
/// everything on it was measured.
pub fn page(
    title: &str,
    target: &str,
    how: &str,
    machine: &Machine,
    sections: &[Section],
) -> String {
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
         - Machine: {}, {} cores, {:.0} GiB memory, Linux {}, {}{shared}\n\
         - {how}\n\n",
        machine.cpu, machine.cores, machine.memory_gib, machine.kernel, machine.file_system
    );
    for section in sections {
        text.push_str(&section.table());
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// Now, as the page has it.
pub fn now() -> String {
    let now = OffsetDateTime::now_utc();
    format!("{} {:02}:{:02} UTC", now.date(), now.hour(), now.minute())
}
