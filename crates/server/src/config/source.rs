//! Where a value of the configuration came from.

use std::fmt;
use std::path::PathBuf;

/// Where a value of the configuration came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nothing set it: the built-in default.
    Default,
    /// A program that put a [`Config`](super::Config) together in code.
    Program,
    /// The configuration file.
    File {
        /// The file, as it was named.
        path: PathBuf,
        /// Line of the key, the first being 1.
        line: usize,
    },
    /// A variable of the environment.
    Environment {
        /// Name of the variable.
        name: String,
    },
    /// A command-line flag.
    Flag {
        /// The flag, with its dashes; of `--set`, with the key.
        name: String,
    },
}

impl Source {
    /// Place of all flags in the order of [`place`](Self::place).
    pub(super) const FLAG_PLACE: (u8, usize) = (2, 0);

    /// For the order of messages: the file from its top, the environment, the flags.
    pub(super) fn place(&self) -> (u8, usize) {
        match self {
            Self::File { line, .. } => (0, *line),
            Self::Environment { .. } => (1, 0),
            Self::Flag { .. } => Self::FLAG_PLACE,
            Self::Default | Self::Program => (u8::MAX, 0),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Program => f.write_str("set by the program"),
            Self::File { path, line } => {
                write!(f, "{}:{line}", printable(&path.to_string_lossy()))
            }
            Self::Environment { name } => write!(f, "environment variable {}", printable(name)),
            Self::Flag { name } => write!(f, "flag {}", printable(name)),
        }
    }
}

/// Longest piece of input that a message repeats, in characters.
const PRINTED_CHARACTERS: usize = 120;

/// `text` on one line and of bounded length, for messages and comments.
pub(super) fn printable(text: &str) -> String {
    let mut printed = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == PRINTED_CHARACTERS {
            printed.push('…');
            break;
        }
        if character.is_control() {
            printed.extend(character.escape_debug());
        } else {
            printed.push(character);
        }
    }
    printed
}
