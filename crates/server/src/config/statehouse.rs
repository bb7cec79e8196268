//! The variables of Statehouse, as second names of keys.
//!
//! They override the file, and variables of Esker override them. A variable without a corresponding key
//! is answered with an explanation: there is no store in memory alone, and every commit is synced. An
//! unknown variable with the prefix is a warning, since other programs set such variables.

use super::error::ConfigError;
use super::key::keys;
use super::kind::Raw;
use super::setting::Setting;
use super::source::{Source, printable};
use super::suggest;
use super::variables::{Variables, variables};

/// What the names of the variables start with.
pub(super) const STATEHOUSE_PREFIX: &str = "STATEHOUSE_";

/// The variables, the key that each sets, and how its text is read.
const VARIABLES: &[(&str, &str, Meaning)] = &[
    ("STATEHOUSE_ADDR", LISTEN, Meaning::Address),
    ("STATEHOUSE_LISTEN_ADDR", LISTEN, Meaning::Address),
    ("STATEHOUSE_DATA_DIR", "data-dir", Meaning::Plain),
    (
        "STATEHOUSE_SNAPSHOT_INTERVAL",
        "state.snapshot-interval",
        Meaning::Plain,
    ),
    (
        "STATEHOUSE_TX_TIMEOUT_MS",
        "state.transaction-timeout",
        Meaning::Milliseconds,
    ),
    (FSYNC, "", Meaning::Fsync),
    (MEMORY, "", Meaning::Memory),
];

const LISTEN: &str = "state.listen";
const FSYNC: &str = "STATEHOUSE_FSYNC_ON_COMMIT";
const MEMORY: &str = "STATEHOUSE_USE_MEMORY";

#[derive(Clone, Copy)]
enum Meaning {
    /// As the key defines it.
    Plain,
    /// An address, where `localhost` is accepted too.
    Address,
    /// A number of milliseconds.
    Milliseconds,
    /// Whether commits are synced. They always are.
    Fsync,
    /// Whether the store is in memory alone. It never is.
    Memory,
}

/// Rows of a table for the documentation.
pub(super) fn table() -> String {
    let row = |(name, key, meaning): &(&str, &str, Meaning)| match meaning {
        Meaning::Plain | Meaning::Address => format!("| `{name}` | `{key}` |\n"),
        Meaning::Milliseconds => format!("| `{name}` | `{key}`, in milliseconds |\n"),
        Meaning::Fsync => {
            format!("| `{name}` | none: every commit is synced. `0` and `false` are warned of |\n")
        }
        Meaning::Memory => format!(
            "| `{name}` | none: the store is durable. `1` and `true` are an error, `0` and `false` mean no |\n"
        ),
    };
    VARIABLES.iter().map(row).collect()
}

/// Reads the variables.
pub(super) fn read(all: &[(String, String)]) -> Variables {
    let mut read = Variables::default();
    for (name, value) in variables(all, STATEHOUSE_PREFIX) {
        let from = Source::Environment { name: name.clone() };
        let known = VARIABLES.iter().find(|(known, ..)| known == name);
        let Some((name, path, meaning)) = known else {
            read.warnings.push(unknown(name));
            continue;
        };
        let raw = match meaning {
            Meaning::Plain => Raw::Bare(value.clone()),
            Meaning::Address => Raw::Bare(address(value)),
            Meaning::Milliseconds => match value.trim().parse::<u64>() {
                Ok(number) => Raw::Bare(format!("{number}ms")),
                Err(_) => {
                    read.problems.push(ConfigError::BadValue {
                        key: (*path).into(),
                        from,
                        problem: format!(
                            "{} is not a whole number of milliseconds",
                            Raw::Bare(value.clone())
                        ),
                        allowed: "such as `30000`".into(),
                    });
                    continue;
                }
            },
            Meaning::Fsync => {
                match switch(name, value, &from) {
                    Ok(true) => {}
                    Ok(false) => read.warnings.push(format!(
                        "environment variable {name} is \"{}\", but every commit is synced all the \
                         same: what is acknowledged survives a loss of power; unset the variable",
                        printable(value)
                    )),
                    Err(problem) => read.problems.push(problem),
                }
                continue;
            }
            Meaning::Memory => {
                match switch(name, value, &from) {
                    Ok(false) => {}
                    Ok(true) => read.problems.push(ConfigError::BadValue {
                        key: (*name).into(),
                        from,
                        problem: format!(
                            "{}: this store is durable, there is none in memory alone",
                            Raw::Bare(value.clone())
                        ),
                        allowed:
                            "`0` or `false`; unset the variable, and for a store to throw away \
                                  name a temporary directory with --data-dir"
                                .into(),
                    }),
                    Err(problem) => read.problems.push(problem),
                }
                continue;
            }
        };
        // A test ensures that there is one.
        let Some(key) = keys().by_path(path) else {
            continue;
        };
        match read.settings.iter().find(|it| it.key.path == key.path) {
            Some(earlier) if earlier.raw == raw => {}
            Some(earlier) => read.problems.push(ConfigError::Conflict {
                keys: vec![key.path.clone()],
                problem: format!(
                    "`{path}` is set to two values, by {} to {} and by {from} to {raw}",
                    earlier.from, earlier.raw
                ),
                remedy: "keep one of them".into(),
            }),
            None => read.settings.push(Setting { key, raw, from }),
        }
    }
    read
}

/// An address in the form of the key. `localhost` is resolved here.
fn address(text: &str) -> String {
    match text.trim().strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    }
}

fn switch(name: &str, value: &str, from: &Source) -> Result<bool, ConfigError> {
    match value.trim().to_ascii_lowercase().as_str() {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(ConfigError::BadValue {
            key: name.into(),
            from: from.clone(),
            problem: format!("{} is neither yes nor no", Raw::Bare(value.to_owned())),
            allowed: "`1`, `true`, `0` or `false`".into(),
        }),
    }
}

fn unknown(name: &str) -> String {
    let names = VARIABLES.iter().map(|(name, ..)| *name);
    let suggestion = match suggest::nearest(name, names.clone()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => {
            let names: Vec<_> = names.map(|name| format!("`{name}`")).collect();
            format!("those that are understood are {}", names.join(", "))
        }
    };
    format!(
        "environment variable {} is not known and is ignored; {suggestion}",
        printable(name)
    )
}
