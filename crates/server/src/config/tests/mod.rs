//! What the configuration promises, one file per promise.

mod bad_values;
mod documentation;
mod precedence;
mod round_trip;
mod rules;
mod second_names;
mod secrets;
mod statehouse;
mod unknown_keys;
mod unset;

use std::path::PathBuf;

use super::{ConfigError, Loaded, Overrides, load};

/// A configuration file in a directory of its own, which lives as long as this.
struct ConfigFile {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl ConfigFile {
    fn new(text: impl AsRef<[u8]>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("esker.toml");
        std::fs::write(&path, text).expect("the file is written");
        Self {
            _directory: directory,
            path,
        }
    }

    /// How a message names a line of this file.
    fn line(&self, line: usize) -> String {
        format!("{}:{line}", self.path.display())
    }

    fn overrides(&self) -> Overrides {
        Overrides {
            config: Some(self.path.clone()),
            ..Overrides::default()
        }
    }

    fn load(&self) -> Result<Loaded, ConfigError> {
        load(&self.overrides(), env(&[]))
    }

    /// The error of a file that must not load.
    fn refused(&self) -> ConfigError {
        self.load().expect_err("the file must be refused")
    }
}

fn env(variables: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
    let owned = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
    variables.iter().map(owned).collect::<Vec<_>>().into_iter()
}

fn from_env(variables: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    load(&Overrides::default(), env(variables))
}

fn from_set(set: &[&str]) -> Result<Loaded, ConfigError> {
    let overrides = Overrides {
        set: set.iter().map(|set| set.to_string()).collect(),
        ..Overrides::default()
    };
    load(&overrides, env(&[]))
}

/// Fails unless the error has this code and its message contains all of these.
#[track_caller]
fn assert_says(error: &ConfigError, code: &str, parts: &[&str]) {
    assert_eq!(error.code(), code, "{error}");
    let message = error.to_string();
    for part in parts {
        assert!(
            message.contains(part),
            "the message does not contain `{part}`: {message}"
        );
    }
}
