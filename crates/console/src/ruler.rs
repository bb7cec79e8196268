//! A partition's log as a ruler: from its head to its tail, each on its own scale.
//!
//! ```text
//!  head        archived     floor      durable    applied  tail
//!   |-------------|-----------|-----------|==========|------|
//!                                          a restart replays
//! ```

use maud::{Markup, html};

use crate::words::visible;

/// The width of the picture's own unit square; it scales with the page.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 34.0;
/// Where the line is.
const LINE: f64 = 14.0;
/// So that marks at the ends are whole.
const MARGIN: f64 = 8.0;
/// Entries that a ruler has at least: of a log with one entry to replay, that one is no whole ruler of alarm.
const MIN_SPAN: u64 = 50;

/// Positions of a partition.
#[derive(Clone, Debug, Default)]
pub struct Positions {
    /// First entry of the log.
    pub head: u64,
    /// Last LSN of the newest checkpoint.
    pub floor: u64,
    /// LSN of the oldest retained snapshot.
    pub archived: Option<u64>,
    /// LSN of the newest snapshot.
    pub newest: Option<u64>,
    /// Last LSN in the database's files.
    pub durable: u64,
    /// Last LSN in the database.
    pub applied: u64,
    /// Last entry of the log.
    pub tail: u64,
    /// Whether the repository lacks something of what comes after the newest snapshot; entries without effect do
    /// not count.
    pub is_at_risk: bool,
    /// What other nodes have applied: name and LSN.
    pub replicas: Vec<(String, u64)>,
}

/// From which LSN to which the picture reaches.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Scale {
    first: u64,
    last: u64,
}

impl Scale {
    fn of(positions: &Positions) -> Scale {
        let replicas = positions.replicas.iter().map(|(_, lsn)| *lsn);
        let known = [positions.floor, positions.durable, positions.applied];
        let known = known.into_iter().chain(positions.archived);
        let known = known.chain(positions.newest).chain(replicas);
        // What a checkpoint or snapshot covers may be gone from the log, and a replica may be ahead of what was
        // read here.
        let first = known.clone().fold(positions.head, u64::min);
        let last = known.fold(positions.tail, u64::max);
        Scale {
            first: first.min(last.saturating_sub(MIN_SPAN)),
            last,
        }
    }

    fn at(self, lsn: u64) -> f64 {
        let length = self.last.saturating_sub(self.first);
        if length == 0 {
            return WIDTH - MARGIN;
        }
        let part = lsn.saturating_sub(self.first) as f64 / length as f64;
        MARGIN + part.min(1.0) * (WIDTH - 2.0 * MARGIN)
    }
}

/// The picture. Its text is the same in words, for those who cannot see it.
pub fn ruler(positions: &Positions) -> Markup {
    let scale = Scale::of(positions);
    let x = |lsn| format!("{:.1}", scale.at(lsn));
    let width = |from, to| format!("{:.1}", (scale.at(to) - scale.at(from)).max(0.0));
    let replayed = positions.tail.saturating_sub(positions.durable);
    let at_risk = positions.newest.unwrap_or(0).max(scale.first);
    let mut marks = vec![
        ("head", positions.head),
        ("floor", positions.floor),
        ("durable", positions.durable),
        ("applied", positions.applied),
        ("tail", positions.tail),
    ];
    marks.extend(positions.archived.map(|lsn| ("archived", lsn)));
    marks.extend(positions.newest.map(|lsn| ("newest", lsn)));
    html! {
        svg.ruler viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" role="img"
            aria-label=(in_words(positions)) {
            rect.track x=(MARGIN) y=(LINE - 1.0) height="2" width=(WIDTH - 2.0 * MARGIN) {}
            rect.log x=(x(positions.head)) y=(LINE - 3.0) height="6"
                width=(width(positions.head, positions.tail)) rx="3" {}
            @if positions.is_at_risk && positions.tail > at_risk {
                rect.at-risk x=(x(at_risk)) y=(LINE + 8.0) height="3" width=(width(at_risk, positions.tail)) {
                    title { "the repository does not have this" }
                }
            }
            @if replayed > 0 {
                rect.replayed x=(x(positions.durable)) y=(LINE - 5.0) height="10"
                    width=(width(positions.durable, positions.tail)) {
                    title { "a restart replays this" }
                }
            }
            @for (name, lsn) in &marks {
                line class={ "mark " (name) } x1=(x(*lsn)) x2=(x(*lsn)) y1=(LINE - 10.0) y2=(LINE + 10.0) {
                    title { (name) " " (lsn) }
                }
            }
            @for (name, lsn) in &positions.replicas {
                circle.replica cx=(x(*lsn)) cy=(LINE + 14.0) r="4" {
                    title { (visible(name)) " has applied " (lsn) }
                }
            }
        }
    }
}

fn in_words(positions: &Positions) -> String {
    let Positions {
        head,
        floor,
        durable,
        applied,
        tail,
        ..
    } = positions;
    let optional = |lsn: Option<u64>| lsn.map_or("none".to_owned(), |lsn| lsn.to_string());
    let mut words = format!(
        "log from {head} to {tail}; checkpoint up to {floor}; database files up to {durable}; applied up to {applied}; \
         oldest snapshot {}; newest snapshot {}; a restart replays {} entries",
        optional(positions.archived),
        optional(positions.newest),
        tail.saturating_sub(*durable),
    );
    for (name, lsn) in &positions.replicas {
        words += &format!("; {} has applied {lsn}", visible(name));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_reaches_over_everything_that_is_marked() {
        let positions = Positions {
            head: 50,
            floor: 80,
            archived: Some(10),
            durable: 90,
            applied: 100,
            tail: 100,
            replicas: vec![("n2".into(), 103)],
            ..Positions::default()
        };
        let scale = Scale::of(&positions);
        assert_eq!(
            scale,
            Scale {
                first: 10,
                last: 103
            }
        );
        assert!(scale.at(10) < scale.at(50) && scale.at(50) < scale.at(103));
        assert!(scale.at(103) <= WIDTH - MARGIN + 0.001);
    }

    #[test]
    fn one_entry_is_a_small_part_of_a_ruler() {
        let positions = Positions {
            head: 1000,
            floor: 999,
            durable: 999,
            applied: 1000,
            tail: 1000,
            ..Positions::default()
        };
        let scale = Scale::of(&positions);
        let width = scale.at(1000) - scale.at(999);
        assert!(width > 0.0 && width < WIDTH / 40.0, "{width}");
        assert!(!ruler(&positions).0.contains("at-risk"));
        let lacking = Positions {
            is_at_risk: true,
            ..positions
        };
        assert!(ruler(&lacking).0.contains("at-risk"));
    }

    #[test]
    fn an_empty_log_has_a_ruler_too() {
        let shown = ruler(&Positions::default()).0;
        assert!(!shown.contains("NaN") && !shown.contains("inf"), "{shown}");
        assert!(!shown.contains("replayed\""), "{shown}");
    }
}
