//! The printed form of keys, sizes and tables.

use std::fmt::Write as _;

use esker_repository::inventory::State;
use esker_repository::sweep::OrphanReason;
use serde::Serialize;
use time::OffsetDateTime;

use crate::failure::Failure;
use crate::json;
use crate::term::{ago, count, second};

/// Prints one JSON document.
pub fn print_json(document: &impl Serialize) -> Result<(), Failure> {
    json::print_with(document, Ok(()))
}

/// `1 file`, `20 files`.
pub fn files(number: u64) -> String {
    counted(number, "file")
}

/// `1 object`, `20 objects`.
pub fn objects(number: u64) -> String {
    counted(number, "object")
}

/// `1 snapshot`, `20 snapshots`.
pub fn snapshots(number: u64) -> String {
    counted(number, "snapshot")
}

/// `1 upload`, `20 uploads`.
pub fn counted(number: u64, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        n => format!("{} {noun}s", count(n)),
    }
}

/// `2026-11-20 12:09:07 (3 min ago)`.
pub fn created(at: OffsetDateTime) -> String {
    let now = OffsetDateTime::now_utc();
    let age = match (now - at).try_into() {
        Ok(age) => ago(age),
        // The clock of another node is ahead, or this one is behind.
        Err(_) => "by a clock that is ahead of this one".to_owned(),
    };
    format!("{} ({age})", second(at))
}

/// Why a snapshot is kept, in a word or two.
pub fn states(states: &[State]) -> String {
    let words: Vec<_> = states
        .iter()
        .map(|state| match state {
            State::Newest => "newest",
            State::Retained => "retained",
            State::Pinned => "pinned",
            State::Abandoned => "abandoned",
        })
        .collect();
    words.join(", ")
}

/// Why an object may be deleted.
pub fn orphan_reason(why: OrphanReason) -> &'static str {
    match why {
        OrphanReason::UnreferencedFile => "no kept snapshot has this file",
        OrphanReason::UnretainedSnapshot => "it belongs to a snapshot that is not kept",
    }
}

/// A table: columns as wide as their content; those in `right` are flush right.
pub fn table(head: &[&str], rows: &[Vec<String>], right: &[usize]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let head: Vec<String> = head.iter().map(|h| (*h).to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if index > 0 {
                line.push_str("  ");
            }
            // Writing to a string cannot fail.
            let _ = if right.contains(&index) {
                write!(line, "{cell:>width$}")
            } else {
                write!(line, "{cell:<width$}")
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_as_wide_as_its_cells_and_has_no_blanks_at_line_ends() {
        let rows = [
            vec!["a".into(), "10".into()],
            vec!["bbb".into(), "9".into()],
        ];
        assert_eq!(
            table(&["x", "n"], &rows, &[1]),
            "x     n\na    10\nbbb   9\n"
        );
    }
}
