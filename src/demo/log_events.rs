//! Events in a server's log: its recovery and its snapshots.
//!
//! Its lines are text for people: `Snapshot loaded partition=3 source=local snapshot lsn=7 …`. Only the lines
//! and fields that the demo reports are parsed, by their text and the names of the fields.

use std::time::Duration;

/// The events that were found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Entries of the log that were replayed.
    pub replayed: Option<u64>,
    /// How long that took.
    pub replay: Option<Duration>,
    /// How long it took to find, fetch, check and import copies.
    pub restore: Option<Duration>,
    /// Copies that partitions were loaded from.
    pub loaded: Vec<Copy>,
    /// Snapshots that were put into the repository.
    pub put: Vec<Copy>,
}

/// A copy of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// The partition.
    pub partition: u64,
    /// The last LSN that it covers.
    pub lsn: u64,
    /// Its files.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
}

impl Told {
    /// Parses the lines of a log.
    pub fn of(log: &str) -> Told {
        let mut told = Told::default();
        for line in log.lines() {
            if let Some((before, rest)) = line.split_once(": Replaying ")
                && before.ends_with("esker_node::recovery")
            {
                told.replayed = rest.split(' ').next().and_then(|n| n.parse().ok());
            } else if line.contains(": Partitions recovered ") {
                told.replay = field(line, "replay").and_then(duration);
                told.restore = field(line, "restore").and_then(duration);
            } else if line.contains(": Snapshot loaded ") {
                told.loaded.extend(copy(line, number(line, "lsn")));
            } else if line.contains(": a snapshot was put into the repository ") {
                told.put.extend(copy(line, lsn_of_name(line)));
            }
        }
        told
    }

    /// The copy with the longest history: the stream's, since nothing else is written to.
    pub fn longest(copies: &[Copy]) -> Option<&Copy> {
        copies.iter().max_by_key(|copy| copy.lsn)
    }
}

fn copy(line: &str, lsn: Option<u64>) -> Option<Copy> {
    Some(Copy {
        partition: number(line, "partition")?,
        lsn: lsn?,
        files: number(line, "files")?,
        bytes: number(line, "bytes")?,
    })
}

/// `snapshot="lsn_00000000000000000007-snap_1…"`.
fn lsn_of_name(line: &str) -> Option<u64> {
    let name = field(line, "snapshot")?.trim_matches('"');
    name.strip_prefix("lsn_")?.split('-').next()?.parse().ok()
}

fn number(line: &str, name: &str) -> Option<u64> {
    field(line, name)?.parse().ok()
}

/// The first word of a field's value.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split(' ')
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// `1.582µs`, `159.514174ms`, `2.5s`.
fn duration(text: &str) -> Option<Duration> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(end);
    let seconds = match unit {
        "ns" => 1e-9,
        "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_is_read_from_the_log() {
        let told = Told::of(
            "2026-11-21T16:01:46Z  INFO esker_node::recovery::rebuild: Snapshot loaded partition=2 source=local snapshot lsn=7 files=2 bytes=62179 took=22.9ms\n\
             2026-11-21T16:01:46Z  INFO esker_node::recovery: Replaying 1 log entries of the partitions events=1\n\
             2026-11-21T16:01:46Z  INFO esker_node::recovery: Partitions recovered restore=108.5ms replay=292.5µs total=2.5s\n\
             2026-11-21T16:01:47Z  INFO esker_node::snapshots::uploader: a snapshot was put into the repository partition=2 snapshot=\"lsn_00000000000000000009-snap_153\" reason=the repository has none files=2 bytes=62180 bytes_uploaded=5 took=77.9ms\n",
        );
        let copy = |lsn, bytes| Copy {
            partition: 2,
            lsn,
            files: 2,
            bytes,
        };
        let expected = Told {
            replayed: Some(1),
            replay: Some(Duration::from_nanos(292_500)),
            restore: Some(Duration::from_micros(108_500)),
            loaded: vec![copy(7, 62179)],
            put: vec![copy(9, 62180)],
        };
        assert_eq!(told, expected);
    }

    #[test]
    fn what_is_not_told_is_not_made_up() {
        assert_eq!(Told::of("something else\n"), Told::default());
        assert_eq!(duration("5 parsecs"), None);
        assert_eq!(duration(""), None);
    }
}
