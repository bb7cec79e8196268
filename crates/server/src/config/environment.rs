//! The environment: variables that set keys, and unknown ones that probably were meant to.
//!
//! A variable is named `ESKER_` and the key in capitals, with `-` written as `_` and the dot after a
//! section as `__`: `ESKER_LOG__SEGMENT_SIZE` sets `log.segment-size`. Other programs set variables of
//! that prefix too (Kubernetes does for a service named `esker`), so an unknown one is an error only if
//! it is close to a known one or starts with the name of a section and `__`. Any other is a warning.
//!
//! The variables of Statehouse are second names of keys; see [`statehouse`].

use super::error::ConfigError;
use super::key::{VARIABLE_PREFIX, keys};
use super::kind::Raw;
use super::setting::Setting;
use super::source::{Source, printable};
use super::statehouse::{self, STATEHOUSE_PREFIX};
use super::suggest;
use super::variables::{Variables, variables};

/// The variable that names the configuration file, unless `--config` does.
pub const CONFIG_VARIABLE: &str = "ESKER_CONFIG";

/// The variable that defines what an empty data directory means, unless `--bootstrap` does. It is no key,
/// because it applies to one start, and a file would apply to every start.
pub const BOOTSTRAP_VARIABLE: &str = "ESKER_BOOTSTRAP";

/// The variables of this process that are meant for Esker, for [`load`](super::load). Invalid UTF-8 in a
/// value becomes U+FFFD, so that the value is refused where it matters.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        let value = value.to_string_lossy().into_owned();
        let ours = [VARIABLE_PREFIX, STATEHOUSE_PREFIX];
        let ours = ours.iter().any(|prefix| name.starts_with(prefix));
        ours.then_some((name, value))
    })
}

/// Reads the environment.
pub(super) fn read(all: impl Iterator<Item = (String, String)>) -> Variables {
    let all: Vec<_> = all.collect();
    let statehouse = statehouse::read(&all);
    let mut read = Variables {
        second: statehouse.settings,
        problems: statehouse.problems,
        warnings: statehouse.warnings,
        ..Variables::default()
    };
    for (name, value) in variables(&all, VARIABLE_PREFIX) {
        let (name, value) = (name.clone(), value.clone());
        if name == CONFIG_VARIABLE {
            read.file = Some(value);
            continue;
        }
        if name == BOOTSTRAP_VARIABLE {
            continue;
        }
        let from = Source::Environment { name: name.clone() };
        match keys().by_variable(&name) {
            Some(key) => read.settings.push(Setting {
                key,
                raw: Raw::Bare(value),
                from,
            }),
            None => match meant(&name) {
                Some(suggestion) => read.problems.push(ConfigError::UnknownKey {
                    key: name,
                    from,
                    suggestion,
                }),
                None => read.warnings.push(format!(
                    "environment variable {} is not a key of the configuration and is ignored",
                    printable(&name)
                )),
            },
        }
    }
    read
}

/// What to do about an unknown variable, if it probably was meant to set a key.
fn meant(name: &str) -> Option<String> {
    let known = keys().keys.iter().map(|key| key.variable.as_str());
    if let Some(near) = suggest::nearest(name, known.chain([CONFIG_VARIABLE, BOOTSTRAP_VARIABLE])) {
        return Some(format!("did you mean `{near}`?"));
    }
    let path = name.strip_prefix(VARIABLE_PREFIX)?.to_lowercase();
    let (first, _) = path.split_once("__")?;
    let (above, _) = path.rsplit_once("__")?;
    let section = keys().section(first);
    let section = section.or_else(|| keys().section(&above.replace("__", ".")))?;
    let section = &section.name;
    let variables: Vec<_> = keys()
        .of_section(Some(section))
        .map(|key| format!("`{}`", key.variable))
        .collect();
    Some(format!(
        "the variables of [{section}] are {}",
        variables.join(", ")
    ))
}
