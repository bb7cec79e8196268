//! The keys that variables of the environment set, under the names of Esker and of Statehouse.

use super::error::ConfigError;
use super::setting::Setting;

/// What the environment sets.
#[derive(Default)]
pub(super) struct Variables {
    /// The configuration file that it names.
    pub(super) file: Option<String>,
    /// The keys that it sets, in the order of the variables' names.
    pub(super) settings: Vec<Setting>,
    /// The keys that variables of Statehouse set; `settings` override them.
    pub(super) second: Vec<Setting>,
    /// Variables that are probably misspelt.
    pub(super) problems: Vec<ConfigError>,
    /// Other variables of the prefix.
    pub(super) warnings: Vec<String>,
}

/// The variables of a prefix, in the order of their names.
pub(super) fn variables<'a>(
    all: &'a [(String, String)],
    prefix: &str,
) -> Vec<&'a (String, String)> {
    let mut ours: Vec<_> = all
        .iter()
        .filter(|(name, _)| name.starts_with(prefix))
        .collect();
    ours.sort();
    ours
}
