//! Puts the configuration together from defaults, file, environment and flags.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::check;
use super::environment::{self, CONFIG_VARIABLE};
use super::error::ConfigError;
use super::file;
use super::key::tree;
use super::overrides::Overrides;
use super::setting::Setting;
use super::source::Source;
use super::values::Config;
use super::variables::Variables;

/// A configuration that was loaded and checked, and where its values came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// For each key that is set (`log.segment-size`): its source, of several the one that won.
    pub sources: BTreeMap<String, Source>,
    /// Settings that are allowed but may not be intended. To be written to the log at the start.
    pub warnings: Vec<String>,
    /// Settings that the defaults leave open, which a server logs at its start, after the warnings. A
    /// check of a configuration does not report them.
    pub reminders: Vec<String>,
    /// The configuration file that was read.
    pub file: Option<PathBuf>,
}

impl Loaded {
    /// Where the value of a key (`log.segment-size`) came from.
    pub fn source(&self, key: &str) -> Source {
        self.sources.get(key).cloned().unwrap_or(Source::Default)
    }
}

/// Puts the configuration together: the file overrides the defaults, the environment the file, and the
/// flags the environment. `env` is the environment, such as [`environment`](super::environment) returns;
/// variables that start with neither `ESKER_` nor `STATEHOUSE_` are ignored. Apart from the one file that
/// `--config` or `ESKER_CONFIG` names, this accesses nothing outside the program.
///
/// # Errors
///
/// All problems of all sources, including values that a later source would have replaced. Rules between
/// values are checked only if each value is valid by itself.
pub fn load(
    overrides: &Overrides,
    env: impl Iterator<Item = (String, String)>,
) -> Result<Loaded, ConfigError> {
    let environment = environment::read(env);
    let (flags, flag_problems) = overrides.read();
    let file = named_file(overrides, &environment);

    let mut settings = Vec::new();
    let mut problems = Vec::new();
    if let Some((path, named_by)) = &file {
        (settings, problems) = file::read(path, named_by.clone());
    }
    problems.extend(set_twice(&settings));
    problems.extend(set_twice(&environment.settings));
    settings.extend(environment.second);
    settings.extend(environment.settings);
    settings.extend(flags);
    problems.extend(environment.problems);
    problems.extend(flag_problems);

    let mut config = Config::default();
    let mut values = tree(&config);
    let mut sources = BTreeMap::new();
    for Setting { key, raw, from } in settings {
        let replaced = key
            .read(&raw)
            .and_then(|value| key.replace(&mut values, value));
        match replaced {
            Ok(replaced) => {
                config = replaced;
                sources.insert(key.path.clone(), from);
            }
            Err(problem) => problems.push(ConfigError::bad_value(key, &raw, from, &problem)),
        }
    }
    problems.sort_by_key(ConfigError::place);
    ConfigError::all(problems)?;
    ConfigError::all(check::rules(&config, &|key: &str| {
        sources.get(key).cloned().unwrap_or(Source::Default)
    }))?;

    let mut warnings = environment.warnings;
    warnings.extend(check::warnings(&config));
    Ok(Loaded {
        reminders: check::reminders(&config),
        config,
        sources,
        warnings,
        file: file.map(|(path, _)| path),
    })
}

/// An error for each key that one source sets under both of its names. (For flags this is checked where
/// they are read.)
fn set_twice(settings: &[Setting]) -> Vec<ConfigError> {
    let mut problems = Vec::new();
    for (index, later) in settings.iter().enumerate() {
        let mut earlier = settings[..index].iter();
        if let Some(earlier) = earlier.find(|earlier| earlier.key.path == later.key.path) {
            problems.push(ConfigError::Conflict {
                keys: vec![later.key.path.clone()],
                problem: format!(
                    "`{}` is set twice, under two names: {} and {}",
                    later.key.path, earlier.from, later.from
                ),
                remedy: "keep one of them".into(),
            });
        }
    }
    problems
}

/// The configuration file, if one is named, and what names it.
fn named_file(overrides: &Overrides, environment: &Variables) -> Option<(PathBuf, Source)> {
    if let Some(path) = &overrides.config {
        return Some((
            path.clone(),
            Source::Flag {
                name: "--config".into(),
            },
        ));
    }
    let path = environment.file.as_ref()?;
    Some((
        path.into(),
        Source::Environment {
            name: CONFIG_VARIABLE.into(),
        },
    ))
}
