//! The object of a command: `basin/stream`, with or without `s2://` before it.
//!
//! The first slash ends the basin's name; a stream's name may have more of them.

use std::fmt;
use std::str::FromStr as _;

use s2_sdk::types::{BasinName, StreamName, StreamNamePrefix};

use crate::term::plain;

/// The rule for names of basins, for messages.
const BASIN_RULE: &str = "a basin's name has 8 to 48 of the characters a-z, 0-9 and -, \
                          and begins and ends with a letter or a digit";
/// The rule for names of streams, for messages.
const STREAM_RULE: &str =
    "a stream's name has 1 to 512 bytes, none of them NUL, and is neither . nor ..";

/// A stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamTarget {
    /// Its basin.
    pub basin: BasinName,
    /// Its name in the basin.
    pub stream: StreamName,
}

impl fmt::Display for StreamTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.basin, plain(&self.stream))
    }
}

/// A basin or a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A basin.
    Basin(BasinName),
    /// A stream.
    Stream(StreamTarget),
}

/// The streams of a basin whose names have a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The basin.
    pub basin: BasinName,
    /// The prefix.
    pub prefix: StreamNamePrefix,
}

/// Reads `basin/stream`.
pub fn stream(text: &str) -> Result<StreamTarget, String> {
    match target(text)? {
        Target::Stream(target) => Ok(target),
        Target::Basin(basin) => Err(format!(
            "this names a basin; write {basin}/STREAM for a stream in it"
        )),
    }
}

/// Reads `basin` or `basin/stream`.
pub fn target(text: &str) -> Result<Target, String> {
    match split(text) {
        (name, None) => Ok(Target::Basin(basin(name)?)),
        (name, Some(stream)) => Ok(Target::Stream(StreamTarget {
            basin: basin(name)?,
            stream: StreamName::from_str(stream).map_err(|e| format!("{}: {STREAM_RULE}", e.0))?,
        })),
    }
}

/// Reads `basin`, `basin/` or `basin/prefix`.
pub fn listing(text: &str) -> Result<Listing, String> {
    let (name, prefix) = split(text);
    Ok(Listing {
        basin: basin(name)?,
        prefix: StreamNamePrefix::from_str(prefix.unwrap_or_default())
            .map_err(|e| format!("{}: {STREAM_RULE}", e.0))?,
    })
}

fn split(text: &str) -> (&str, Option<&str>) {
    let text = text.strip_prefix("s2://").unwrap_or(text);
    match text.split_once('/') {
        Some((basin, rest)) => (basin, Some(rest)),
        None => (text, None),
    }
}

fn basin(name: &str) -> Result<BasinName, String> {
    BasinName::from_str(name).map_err(|_| format!("`{}`: {BASIN_RULE}", plain(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_written_with_or_without_the_scheme_and_may_have_slashes() {
        for text in ["my-basin/a/b c", "s2://my-basin/a/b c"] {
            let target = stream(text).unwrap();
            assert_eq!(&*target.basin, "my-basin");
            assert_eq!(&*target.stream, "a/b c");
            assert_eq!(target.to_string(), "my-basin/a/b c");
        }
    }

    #[test]
    fn a_basin_where_a_stream_is_wanted_is_told_how_to_go_on() {
        let problem = stream("my-basin").unwrap_err();
        assert!(problem.contains("my-basin/STREAM"), "{problem}");
    }

    #[test]
    fn a_bad_name_is_answered_with_the_rule() {
        for text in ["short/x", "My-Basin/x", "my_basin/x", "-my-basin/x", "/x"] {
            let problem = stream(text).unwrap_err();
            assert!(problem.contains("8 to 48"), "{text}: {problem}");
        }
        for text in ["my-basin/", "my-basin/..", "my-basin/a\0b"] {
            let problem = stream(text).unwrap_err();
            assert!(problem.contains("1 to 512 bytes"), "{text}: {problem}");
        }
    }

    #[test]
    fn a_listing_takes_a_basin_alone_and_with_a_prefix() {
        assert_eq!(&*listing("my-basin").unwrap().prefix, "");
        assert_eq!(&*listing("my-basin/").unwrap().prefix, "");
        assert_eq!(&*listing("s2://my-basin/or").unwrap().prefix, "or");
    }
}
