//! The list of all keys, made from the JSON schema of [`Config`] and its defaults.
//!
//! A key is at the top level or in one section: `listen`, `log.segment-size`. The list is in the order of
//! the fields. Everything about a key is written at its field. A field whose schema is no [`Kind`] would
//! be missing from the list; a test ensures that there is none.
//!
//! A key or section may have a second name, under which other programs know it. It is accepted wherever
//! the first is, and never printed.

use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::kind::{Kind, Raw};
use super::values::Config;

/// Prefix of environment variables that are meant for Esker.
pub(super) const VARIABLE_PREFIX: &str = "ESKER_";

/// One key of the configuration.
#[derive(Debug)]
pub(super) struct Key {
    /// The section, unless the key is at the top level.
    pub(super) section: Option<String>,
    /// The name in its section.
    pub(super) name: String,
    /// The second name, in the same section.
    pub(super) alias: Option<String>,
    /// Section and name: `log.segment-size`.
    pub(super) path: String,
    /// The variable of the environment that sets it: `ESKER_LOG__SEGMENT_SIZE`.
    pub(super) variable: String,
    /// The same by the second name.
    alias_variable: Option<String>,
    /// Whether it may be unset, which is the value `null`.
    pub(super) optional: bool,
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
    /// The second name, which may be that of a section in a section: `worker.snapshots`.
    pub(super) alias: Option<String>,
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
                alias: alias(field),
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

    /// JSON maps are sorted by name; the serialized defaults have the order of the fields.
    fn sort(&mut self) {
        let text = serde_json::to_string_pretty(&Config::default()).unwrap_or_default();
        let lines = || text.lines().map(str::trim_start);
        let section_place = |name: &str| {
            let line = format!("\"{name}\": {{");
            lines().position(|at| at == line)
        };
        self.sections
            .sort_by_key(|section| section_place(&section.name));
        self.keys.sort_by_key(|key| {
            let section = key.section.as_deref().map(section_place);
            let first_line = section.flatten().unwrap_or_default();
            let line = format!("\"{}\": ", key.name);
            let inside = lines()
                .skip(first_line)
                .position(|at| at.starts_with(&line));
            (section, inside)
        });
    }

    /// The key of this name in this section, either by either name.
    pub(super) fn find(&self, section: Option<&str>, name: &str) -> Option<&Key> {
        let section = match section {
            Some(written) => Some(self.section(written)?.name.as_str()),
            None => None,
        };
        self.of_section(section)
            .find(|key| key.name == name || key.alias.as_deref() == Some(name))
    }

    /// The key of this path, such as `log.segment-size`.
    pub(super) fn by_path(&self, path: &str) -> Option<&Key> {
        match path.rsplit_once('.') {
            Some((section, name)) => self.find(Some(section), name),
            None => self.find(None, path),
        }
    }

    /// The key that this variable of the environment sets.
    pub(super) fn by_variable(&self, variable: &str) -> Option<&Key> {
        let mut keys = self.keys.iter();
        let own = keys.find(|key| {
            key.variable == variable || key.alias_variable.as_deref() == Some(variable)
        });
        own.or_else(|| self.by_section_alias(variable))
    }

    /// The key that this variable sets by the second name of its section:
    /// `ESKER_WORKER__SNAPSHOTS__DESTINATION`.
    fn by_section_alias(&self, name: &str) -> Option<&Key> {
        self.sections.iter().find_map(|section| {
            let alias = section.alias.as_deref()?.replace('.', "__");
            self.of_section(Some(&section.name)).find(|key| {
                let mut names = [Some(&key.name), key.alias.as_ref()].into_iter().flatten();
                names.any(|key| variable(Some(&alias), key) == name)
            })
        })
    }

    /// The section of this name, or of this second name.
    pub(super) fn section(&self, name: &str) -> Option<&Section> {
        let mut sections = self.sections.iter();
        sections.find(|section| section.name == name || section.alias.as_deref() == Some(name))
    }

    /// Whether a section's second name is that of a section in this one.
    pub(super) fn is_above_a_section(&self, name: &str) -> bool {
        let mut aliases = self
            .sections
            .iter()
            .filter_map(|section| section.alias.as_deref());
        aliases.any(|alias| {
            alias
                .split_once('.')
                .is_some_and(|(above, _)| above == name)
        })
    }

    /// Whether there is a section of this name, or of this second name.
    pub(super) fn is_section(&self, name: &str) -> bool {
        self.section(name).is_some()
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
        let (schema, optional) = without_null(field);
        let alias = alias(field);
        Some(Self {
            section: section.map(String::from),
            name: name.to_string(),
            variable: variable(section, name),
            alias_variable: alias.as_deref().map(|alias| variable(section, alias)),
            alias,
            optional,
            kind: Kind::of(&schema)?,
            default: default.clone(),
            meaning: meaning(field),
            path: path(section, name),
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

    /// Reads a source's value, as [`Kind::read`] does. The empty text unsets a key that may be unset.
    pub(super) fn read(&self, raw: &Raw) -> Result<Value, String> {
        match raw {
            Raw::Bare(text) | Raw::Text(text) if self.optional && text.trim().is_empty() => {
                Ok(Value::Null)
            }
            _ => self.kind.read(raw),
        }
    }

    /// The values that are allowed, in a few words.
    pub(super) fn allowed(&self) -> String {
        match self.optional {
            true => format!("{}; or `\"\"`, unset", self.kind.allowed()),
            false => self.kind.allowed(),
        }
    }

    /// The configuration of a [`tree`] with another value of this key, which [`read`](Self::read) has
    /// returned. On an error the tree is unchanged.
    pub(super) fn replace(&self, tree: &mut Value, value: Value) -> Result<Config, String> {
        let mut replaced = tree.clone();
        if let Some(place) = replaced.pointer_mut(&self.pointer()) {
            *place = value;
        }
        let config = serde_json::from_value(replaced.clone()).map_err(|error| error.to_string())?;
        *tree = replaced;
        Ok(config)
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

/// A configuration as a tree of values: texts, numbers and booleans, `null` for what is unset. Of secrets
/// it contains only that they are set.
pub(super) fn tree(config: &Config) -> Value {
    // All names are strings and all values are plain, so this cannot fail.
    serde_json::to_value(config).unwrap_or_default()
}

fn fields(schema: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let properties = schema.get("properties").and_then(Value::as_object);
    properties
        .into_iter()
        .flatten()
        .map(|(name, field)| (name.as_str(), field))
}

fn path(section: Option<&str>, name: &str) -> String {
    match section {
        Some(section) => format!("{section}.{name}"),
        None => name.into(),
    }
}

fn variable(section: Option<&str>, name: &str) -> String {
    let path = path(section, name);
    let variable = path.replace('.', "__").replace('-', "_").to_uppercase();
    format!("{VARIABLE_PREFIX}{variable}")
}

/// The second name of a key or section.
fn alias(field: &Value) -> Option<String> {
    field.get("x-alias")?.as_str().map(String::from)
}

/// The schema of a value that is set, and whether it may be unset: then the schema has a type `null`
/// among others, a word `null` among others, or a schema for `null` beside another one.
fn without_null(field: &Value) -> (Value, bool) {
    let mut schema = field.clone();
    let null = |value: &Value| value.is_null() || value == "null" || value["type"] == "null";
    let mut optional = false;
    for choices in ["type", "enum", "anyOf"] {
        let Some(list) = schema.get_mut(choices).and_then(Value::as_array_mut) else {
            continue;
        };
        optional |= list.iter().any(null);
        list.retain(|choice| !null(choice));
        if list.len() != 1 || choices == "enum" {
            continue;
        }
        let single = list.remove(0);
        match single {
            // Keywords around it (description, bounds) apply to it as well.
            Value::Object(inner) => {
                if let Some(outer) = schema.as_object_mut() {
                    outer.remove(choices);
                    for (name, value) in inner {
                        outer.entry(name).or_insert(value);
                    }
                }
            }
            single => schema[choices] = single,
        }
    }
    (schema, optional)
}

fn meaning(field: &Value) -> String {
    let text = field.get("description").and_then(Value::as_str);
    text.unwrap_or_default().replace('\n', " ")
}
