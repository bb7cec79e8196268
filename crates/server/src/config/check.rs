//! Checks of a whole configuration: each value within its bounds, and values that go together.

use std::fmt::Display;

use serde_json::Value;

use super::error::ConfigError;
use super::key::{Key, keys, tree};
use super::kind::Raw;
use super::load::bad_value;
use super::source::Source;
use super::units::ByteCount;
use super::values::Config;

/// The rules between values, as the documentation lists them. [`rules`] enforces them.
pub(super) const RULES: &[&str] = &[
    "`listen` must be a loopback address unless `insecure-no-auth` is `true` (there are no access \
     tokens yet).",
    "`log.purge-threshold` must be at least `log.segment-size`.",
    "`store.write-buffers-total` must be at least `store.write-buffer`.",
    "`limits.append-inflight` must be at least `limits.append-session-inflight`.",
];

impl Config {
    /// Checks a configuration that was put together in code: every value within its bounds, and
    /// values that go together. One that [`load`](super::load) returned has passed.
    ///
    /// # Errors
    ///
    /// All problems, as [`load`](super::load) reports them.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let values = tree(self);
        let source = |key: &Key| match key.value(&values) == Some(&key.default) {
            true => Source::Default,
            false => Source::Program,
        };
        let mut problems = Vec::new();
        for key in &keys().keys {
            let raw = raw(key.value(&values).unwrap_or(&Value::Null));
            if let Err(problem) = key.kind.read(&raw) {
                problems.push(bad_value(key, &raw, source(key), &problem));
            }
        }
        ConfigError::all(problems)?;
        let source_of = |path: &str| keys().by_path(path).map_or(Source::Default, source);
        ConfigError::all(rules(self, &source_of))
    }
}

/// A serialized value, as a file would have said it.
fn raw(value: &Value) -> Raw {
    match value {
        Value::String(text) => Raw::Text(text.clone()),
        Value::Bool(value) => Raw::Boolean(*value),
        Value::Number(number) => match number.as_i128() {
            Some(number) => Raw::Integer(number),
            None => Raw::Other {
                what: "a number with a fraction",
                text: number.to_string(),
            },
        },
        Value::Null | Value::Array(_) | Value::Object(_) => Raw::Other {
            what: "no value",
            text: String::new(),
        },
    }
}

/// What breaks the rules between values. `source` tells where a key's value came from.
pub(super) fn rules(config: &Config, source: &dyn Fn(&str) -> Source) -> Vec<ConfigError> {
    let mut problems = Vec::new();
    let reachable = !config.listen.ip().to_canonical().is_loopback();
    if reachable && !config.insecure_no_auth {
        problems.push(ConfigError::InsecureListen {
            address: config.listen.to_string(),
            from: source("listen"),
        });
    }
    let mut at_least = |greater: (&str, ByteCount), lesser: (&str, ByteCount), reason: &str| {
        if greater.1 >= lesser.1 {
            return;
        }
        let said = |(key, value): (&str, ByteCount)| -> String {
            format!("`{key}` = {value} ({})", source(key))
        };
        problems.push(ConfigError::Conflict {
            keys: vec![greater.0.into(), lesser.0.into()],
            problem: format!("{} is less than {}: {reason}", said(greater), said(lesser)),
            remedy: format!("raise `{}` or lower `{}`", greater.0, lesser.0),
        });
    };
    at_least(
        ("log.purge-threshold", config.log.purge_threshold),
        ("log.segment-size", config.log.segment_size),
        "the log gives space back by whole segments",
    );
    at_least(
        (
            "store.write-buffers-total",
            config.store.write_buffers_total,
        ),
        ("store.write-buffer", config.store.write_buffer),
        "the total must have room for one",
    );
    at_least(
        ("limits.append-inflight", config.limits.append_inflight),
        (
            "limits.append-session-inflight",
            config.limits.append_session_inflight,
        ),
        "one session must be able to use what it may",
    );
    problems
}

/// What is allowed and yet may not be what was meant.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    if !config.listen.ip().to_canonical().is_loopback() {
        warnings.push(format!(
            "`listen` = {} can be reached from other machines without an access token \
             (`insecure-no-auth`): whoever reaches it can read, write and delete everything",
            config.listen
        ));
    }
    // Each partition and the catalog may hold back that much log before its database is flushed.
    let partitions = u64::from(config.partitions) + 1;
    let held_back = ByteCount::new(partitions.saturating_mul(config.log.flush_after.as_u64()));
    if held_back > config.log.purge_threshold {
        warnings.push(too_much_log(partitions, held_back, config));
    }
    warnings
}

fn too_much_log(partitions: u64, held_back: impl Display, config: &Config) -> String {
    format!(
        "`log.flush-after` = {} times {partitions} partitions (with the catalog) is {held_back}, \
         more than `log.purge-threshold` = {}: the log may grow to the former before space comes \
         back; lower `log.flush-after` or raise `log.purge-threshold`",
        config.log.flush_after, config.log.purge_threshold
    )
}
