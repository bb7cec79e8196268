//! What can be wrong with a configuration.
//!
//! Every message names the key or file, where the value came from, what is wrong and what would be right.
//! Codes are stable: programs may rely on them, and users may search for them.

use std::path::PathBuf;

use super::key::{Key, keys};
use super::kind::Raw;
use super::source::{Source, printable};
use super::suggest;

/// The codes of [`ConfigError`], each with what it means.
pub const CODES: &[(&str, &str)] = &[
    (
        "config_unreadable",
        "The configuration file that was named cannot be read, or is no text of reasonable size.",
    ),
    ("config_syntax", "The configuration file is not TOML."),
    (
        "config_unknown_key",
        "A key, section or environment variable that does not exist; the message suggests one that does.",
    ),
    (
        "config_bad_value",
        "A value has the wrong type or form, or is out of bounds.",
    ),
    (
        "config_bad_flag",
        "A `--set` flag has no `=`, or sets a key that another flag sets.",
    ),
    ("config_conflict", "Two values do not go together."),
    (
        "config_insecure_listen",
        "`listen` or `state.listen` is an address that other machines can reach, and neither `root-token-file` nor `insecure-no-auth` is set.",
    ),
    (
        "config_several",
        "More than one of these at once; the message lists them all.",
    ),
];

/// Why there is no configuration.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The configuration file could not be read.
    #[error(
        "cannot read the configuration file `{}` ({named_by}): {problem}",
        printable(&path.to_string_lossy())
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Where its path came from.
        named_by: Source,
        /// What the operating system reported, or what is wrong with the file as a whole.
        problem: String,
    },

    /// The configuration file is not TOML.
    #[error("{from}: not TOML: {problem}")]
    Syntax {
        /// File and line.
        from: Source,
        /// What the parser expected.
        problem: String,
    },

    /// A key, section or variable that does not exist.
    #[error("unknown {}; {suggestion}", unknown(key, from))]
    UnknownKey {
        /// What was written.
        key: String,
        /// Where.
        from: Source,
        /// What was probably meant, or what there is.
        suggestion: String,
    },

    /// A value that its key cannot have.
    #[error("bad value of `{key}` ({from}): {problem}; allowed: {allowed}")]
    BadValue {
        /// The key.
        key: String,
        /// Where the value came from.
        from: Source,
        /// The value and what is wrong with it.
        problem: String,
        /// What would be right.
        allowed: String,
    },

    /// A flag that cannot be understood or contradicts another one.
    #[error("bad flag `{}`: {problem}", printable(flag))]
    BadFlag {
        /// The flag as it was given.
        flag: String,
        /// What is wrong with it and what to do.
        problem: String,
    },

    /// Two values that do not go together.
    #[error("{problem}; {remedy}")]
    Conflict {
        /// The keys, the first being the one that breaks the rule.
        keys: Vec<String>,
        /// Both values, where they came from, and the rule.
        problem: String,
        /// What to do.
        remedy: String,
    },

    /// A listener that everyone could reach, without authentication.
    #[error(
        "`{key}` = {address} ({from}) can be reached from other machines, and requests need no access \
         token: anyone who reaches it could read, write and delete everything; have them need one with \
         `root-token-file` (flags --root-token-file, --create-root-token), listen on a loopback address such as \
         127.0.0.1:{}, or set `insecure-no-auth` (flag --insecure-no-auth) if that is meant",
        address.rsplit(':').next().unwrap_or_default()
    )]
    InsecureListen {
        /// The key.
        key: &'static str,
        /// The address.
        address: String,
        /// Where it came from.
        from: Source,
    },

    /// More than one problem.
    #[error("{} problems in the configuration:{}", problems.len(), list(problems))]
    Several {
        /// The problems, at least two, none of them `Several`.
        problems: Vec<ConfigError>,
    },
}

impl ConfigError {
    /// The error of a value that its key cannot have.
    pub(super) fn bad_value(key: &Key, raw: &Raw, from: Source, problem: &str) -> ConfigError {
        ConfigError::BadValue {
            key: key.path.clone(),
            from,
            problem: match key.kind.shown(raw) {
                Some(shown) => format!("{shown}: {problem}"),
                None => problem.to_string(),
            },
            allowed: key.allowed(),
        }
    }

    /// The stable code, one of [`CODES`].
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "config_unreadable",
            Self::Syntax { .. } => "config_syntax",
            Self::UnknownKey { .. } => "config_unknown_key",
            Self::BadValue { .. } => "config_bad_value",
            Self::BadFlag { .. } => "config_bad_flag",
            Self::Conflict { .. } => "config_conflict",
            Self::InsecureListen { .. } => "config_insecure_listen",
            Self::Several { .. } => "config_several",
        }
    }

    /// The single problems: those of [`Several`](Self::Several), or this one.
    pub fn problems(&self) -> &[ConfigError] {
        match self {
            Self::Several { problems } => problems,
            single => std::slice::from_ref(single),
        }
    }

    /// One error of all problems; nothing if there are none.
    pub(super) fn all(mut problems: Vec<ConfigError>) -> Result<(), ConfigError> {
        match problems.len() {
            0 => Ok(()),
            1 => Err(problems.remove(0)),
            _ => Err(Self::Several { problems }),
        }
    }

    /// Its place in the order of problems: the file from its top, the environment, the flags.
    pub(super) fn place(&self) -> (u8, usize) {
        match self {
            Self::Unreadable { .. } => (0, 0),
            Self::BadFlag { .. } => Source::FLAG_PLACE,
            Self::Syntax { from, .. }
            | Self::UnknownKey { from, .. }
            | Self::BadValue { from, .. }
            | Self::InsecureListen { from, .. } => from.place(),
            Self::Conflict { .. } | Self::Several { .. } => (u8::MAX, 0),
        }
    }

    /// A key that does not exist, in a section or at the top level.
    pub(super) fn unknown_key(section: Option<&str>, name: &str, from: Source) -> Self {
        let key = match section {
            Some(section) => format!("{section}.{name}"),
            None => name.to_string(),
        };
        let suggestion = meant_key(section, name);
        Self::UnknownKey {
            key,
            from,
            suggestion,
        }
    }

    /// A section that does not exist.
    pub(super) fn unknown_section(name: &str, from: Source) -> Self {
        let sections = || keys().sections.iter().map(|section| section.name.as_str());
        let aliases = keys().sections.iter();
        let aliases = aliases.filter_map(|section| section.alias.as_deref());
        let suggestion = match suggest::nearest(name, sections().chain(aliases)) {
            Some(near) => format!("did you mean `[{near}]`?"),
            None => {
                let sections: Vec<_> = sections().map(|name| format!("[{name}]")).collect();
                format!("the sections are {}", sections.join(", "))
            }
        };
        Self::UnknownKey {
            key: format!("[{name}]"),
            from,
            suggestion,
        }
    }
}

/// What to write instead of an unknown key: a key of its section with a similar name, else one of another
/// section, else the list of what the section has.
fn meant_key(section: Option<&str>, name: &str) -> String {
    let section = section.map(|written| {
        let sections = keys().sections.iter().map(|section| section.name.as_str());
        match keys().section(written) {
            Some(section) => section.name.as_str(),
            None => suggest::nearest(written, sections).unwrap_or(written),
        }
    });
    let here = keys().of_section(section);
    let here = here.flat_map(|key| [Some(key.name.as_str()), key.alias.as_deref()]);
    let here = here.flatten();
    if let Some(key) = suggest::nearest(name, here).and_then(|near| keys().find(section, near)) {
        return format!("did you mean `{}`?", key.path);
    }
    // `segment-size` outside its section, or `[log] level`, which belongs to `[logs]`.
    let elsewhere = suggest::nearest(name, keys().keys.iter().map(|key| key.name.as_str()));
    let elsewhere = elsewhere.and_then(|near| keys().keys.iter().find(|key| key.name == near));
    // A whole path as one name, as in `"log.segment-size" = …`.
    let whole = suggest::nearest(name, keys().keys.iter().map(|key| key.path.as_str()));
    let whole = whole.and_then(|near| keys().by_path(near));
    if let Some(key) = elsewhere.or(whole) {
        return match &key.section {
            Some(section) => format!("did you mean `{}`, in the section [{section}]?", key.name),
            None => format!(
                "did you mean `{}`, which is at the top, above all sections?",
                key.name
            ),
        };
    }
    let list: Vec<_> = keys()
        .of_section(section)
        .map(|key| format!("`{}`", key.name))
        .collect();
    match section {
        Some(section) if list.is_empty() => {
            let sections: Vec<_> = keys()
                .sections
                .iter()
                .map(|section| format!("[{}]", section.name))
                .collect();
            format!(
                "there is no section [{}]; there are {}",
                printable(section),
                sections.join(", ")
            )
        }
        Some(section) => format!("the keys of [{section}] are {}", list.join(", ")),
        None => format!("the keys outside the sections are {}", list.join(", ")),
    }
}

fn unknown(key: &str, from: &Source) -> String {
    match from {
        Source::Environment { .. } => from.to_string(),
        _ if key.starts_with('[') => format!("section `{}` ({from})", printable(key)),
        _ => format!("key `{}` ({from})", printable(key)),
    }
}

fn list(problems: &[ConfigError]) -> String {
    problems
        .iter()
        .map(|problem| format!("\n  - {problem} [{}]", problem.code()))
        .collect()
}
