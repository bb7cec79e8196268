//! The list of all keys, made from the JSON schema of [`Config`] and its defaults.
//!
//! A key lives at the top level or in one section: `listen`, `log.segment-size`. The list is in the
//! order of the fields. Everything about a key is written at its field; a field whose schema is no
//! [`Kind`] would not be in the list, and a test sees to it that there is none.

use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::kind::Kind;
use super::values::Config;

/// What the name of a variable of the environment starts with, if it is meant for Esker.
pub(super) const VARIABLE_PREFIX: &str = "ESKER_";

/// One key of the configuration.
#[derive(Debug)]
pub(super) struct Key {
    /// The section, unless the key is at the top level.
    pub(super) section: Option<String>,
    /// The name in its section.
    pub(super) name: String,
    /// Section and name: `log.segment-size`.
    pub(super) path: String,
    /// The variable of the environment that sets it: `ESKER_LOG__SEGMENT_SIZE`.
    pub(super) variable: String,
    /// What its value may look like.
    pub(super) kind: Kind,
    /// The value that it has when nothing sets it, as the configuration serializes it.
    pub(super) default: Value,
    /// What it means: one paragraph.
    pub(super) meaning: String,
}

/// One section of the configuration.
#[derive(Debug)]
pub(super) struct Section {
    /// The name: `log`.
    pub(super) name: String,
    /// What its keys have in common: one paragraph.
    pub(super) meaning: String,
}

/// All keys and sections, in the order of the fields.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) keys: Vec<Key>,
    pub(super) sections: Vec<Section>,
}

/// The keys of [`Config`].
pub(super) fn keys() -> &'static Keys {
    static KEYS: LazyLock<Keys> = LazyLock::new(Keys::from_schema);
    &KEYS
}

impl Keys {
    fn from_schema() -> Self {
        let schema = schema();
        let defaults = tree(&Config::default());
        let mut all = Self {
            keys: Vec::new(),
            sections: Vec::new(),
        };
        for (name, field) in fields(&schema) {
            if field.get("properties").is_none() {
                all.keys
                    .extend(Key::new(None, name, field, &defaults[name]));
                continue;
            }
            all.sections.push(Section {
                name: name.into(),
                meaning: meaning(field),
            });
            for (key, inner) in fields(field) {
                all.keys
                    .extend(Key::new(Some(name), key, inner, &defaults[name][key]));
            }
        }
        all.sort();
        all
    }

    /// Maps of JSON are sorted by name; the order of the fields is that of the serialized defaults.
    fn sort(&mut self) {
        let text = toml::to_string(&Config::default()).unwrap_or_default();
        let place = |line: &str| {
            text.lines()
                .position(|candidate| candidate.starts_with(line))
        };
        let section_place = |name: &str| place(&format!("[{name}]"));
        self.sections
            .sort_by_key(|section| section_place(&section.name));
        self.keys.sort_by_key(|key| {
            let section = key.section.as_deref().map(section_place);
            let first_line = section.flatten().unwrap_or_default();
            let line = format!("{} = ", key.name);
            let inside = text
                .lines()
                .skip(first_line)
                .position(|at| at.starts_with(&line));
            (section, inside)
        });
    }

    /// The key of this name in this section.
    pub(super) fn find(&self, section: Option<&str>, name: &str) -> Option<&Key> {
        let mut keys = self.keys.iter();
        keys.find(|key| key.section.as_deref() == section && key.name == name)
    }

    /// The key of this path, such as `log.segment-size`.
    pub(super) fn by_path(&self, path: &str) -> Option<&Key> {
        self.keys.iter().find(|key| key.path == path)
    }

    /// The key that this variable of the environment sets.
    pub(super) fn by_variable(&self, variable: &str) -> Option<&Key> {
        self.keys.iter().find(|key| key.variable == variable)
    }

    /// Whether there is a section of this name.
    pub(super) fn is_section(&self, name: &str) -> bool {
        self.sections.iter().any(|section| section.name == name)
    }

    /// The keys of a section, or those at the top level.
    pub(super) fn of_section<'a>(&'a self, name: Option<&'a str>) -> impl Iterator<Item = &'a Key> {
        self.keys
            .iter()
            .filter(move |key| key.section.as_deref() == name)
    }
}

impl Key {
    fn new(section: Option<&str>, name: &str, field: &Value, default: &Value) -> Option<Self> {
        let path = match section {
            Some(section) => format!("{section}.{name}"),
            None => name.to_string(),
        };
        let variable = path.replace('.', "__").replace('-', "_").to_uppercase();
        Some(Self {
            section: section.map(String::from),
            name: name.to_string(),
            variable: format!("{VARIABLE_PREFIX}{variable}"),
            kind: Kind::of(field)?,
            default: default.clone(),
            meaning: meaning(field),
            path,
        })
    }

    /// The place of the key's value in a configuration's [`tree`].
    fn pointer(&self) -> String {
        format!("/{}", self.path.replace('.', "/"))
    }

    /// The value of this key in a configuration's [`tree`].
    pub(super) fn value<'a>(&self, tree: &'a Value) -> Option<&'a Value> {
        tree.pointer(&self.pointer())
    }

    /// The configuration with another value of this key, which [`Kind::read`] has returned.
    pub(super) fn replace(&self, config: &Config, value: Value) -> Result<Config, String> {
        let mut tree = tree(config);
        if let Some(place) = tree.pointer_mut(&self.pointer()) {
            *place = value;
        }
        serde_json::from_value(tree).map_err(|error| error.to_string())
    }
}

/// The JSON schema of the configuration, everything in place.
pub(super) fn schema() -> Value {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings
        .into_generator()
        .into_root_schema_for::<Config>()
        .to_value()
}

/// A configuration as a tree of values: texts, numbers and booleans.
pub(super) fn tree(config: &Config) -> Value {
    // All names are strings and all values are plain, so there is nothing that JSON cannot hold.
    serde_json::to_value(config).unwrap_or_default()
}

fn fields(schema: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let properties = schema.get("properties").and_then(Value::as_object);
    properties
        .into_iter()
        .flatten()
        .map(|(name, field)| (name.as_str(), field))
}

fn meaning(field: &Value) -> String {
    let text = field.get("description").and_then(Value::as_str);
    text.unwrap_or_default().replace('\n', " ")
}
