//! The effective configuration, written as TOML.

use serde_json::Value;

use super::key::{Key, keys, tree};
use super::kind::Kind;
use super::load::Loaded;
use super::secret::HIDDEN;
use super::source::printable;

/// The effective configuration as TOML that loads to the same configuration, except for secrets: they and
/// unset keys are comments. A comment after a value names what set it; values without one are defaults.
/// The first line names the file.
pub fn show(loaded: &Loaded) -> String {
    let values = tree(&loaded.config);
    let file = match &loaded.file {
        Some(path) => format!("# File: {}\n", printable(&path.to_string_lossy())),
        None => "# No file was named.\n".into(),
    };
    file + &document(|key| {
        let line = assignment(key, key.value(&values).unwrap_or(&key.default));
        match loaded.sources.get(&key.path) {
            Some(source) => format!("{line}  # {source}\n"),
            None => format!("{line}\n"),
        }
    })
}

/// The same for programs: for each key (`log.segment-size`) its value, which is null if it is unset, and
/// what set it. The values of secrets are hidden.
pub fn show_json(loaded: &Loaded) -> Value {
    let values = tree(&loaded.config);
    let entry = |key: &Key| {
        let value = key.value(&values).unwrap_or(&key.default);
        let value = match key.kind {
            Kind::Secret if !value.is_null() => Value::from(HIDDEN),
            _ => value.clone(),
        };
        let source = loaded.source(&key.path).to_string();
        let shown = serde_json::json!({ "value": value, "source": source });
        (key.path.clone(), shown)
    };
    let file = loaded
        .file
        .as_ref()
        .map(|path| path.to_string_lossy().into_owned());
    let keys: serde_json::Map<_, _> = keys().keys.iter().map(entry).collect();
    serde_json::json!({ "file": file, "keys": keys })
}

/// A TOML document of all keys, section by section; `entry` writes the lines of a key.
pub(super) fn document(entry: impl Fn(&Key) -> String) -> String {
    let mut text: String = keys().of_section(None).map(&entry).collect();
    for section in &keys().sections {
        text.push_str(&format!("\n[{}]\n", section.name));
        text.extend(keys().of_section(Some(&section.name)).map(&entry));
    }
    text
}

/// `name = value`, in TOML; a comment if there is no value, or it must not be shown.
pub(super) fn assignment(key: &Key, value: &Value) -> String {
    let name = &key.name;
    match value {
        Value::Null if key.default.is_null() => format!("# {name} = (unset)"),
        // It has to be written, because unset is not the default.
        Value::Null => format!("{name} = \"\""),
        _ if key.kind == Kind::Secret => format!("# {name} = {HIDDEN}"),
        value => format!("{name} = {}", toml_value(value)),
    }
}

/// A serialized value in TOML.
pub(super) fn toml_value(value: &Value) -> String {
    match value {
        Value::String(text) => toml::Value::from(text.as_str()).to_string(),
        other => other.to_string(),
    }
}
