//! The configuration file: which key it sets to what, and on which line.

use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::ConfigError;
use super::key::{Key, keys};
use super::kind::Raw;
use super::setting::Setting;
use super::source::Source;

/// Largest configuration file that is read, in bytes. One with all keys and comments has some 5 KiB; a
/// far larger file is another one, named by mistake.
const MAX_FILE: u64 = 1 << 20;

/// Reads the file. Returns what it sets, in the order of the file, and all that is wrong with it.
/// `named_by` is where its path came from.
pub(super) fn read(path: &Path, named_by: Source) -> (Vec<Setting>, Vec<ConfigError>) {
    let unreadable = |problem: String| ConfigError::Unreadable {
        path: path.to_path_buf(),
        named_by: named_by.clone(),
        problem,
    };
    if path.as_os_str().is_empty() {
        return (Vec::new(), vec![unreadable("the path is empty".into())]);
    }
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(path);
    let read = opened.and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
    if let Err(error) = read {
        return (Vec::new(), vec![unreadable(error.to_string())]);
    }
    if bytes.len() as u64 > MAX_FILE {
        let problem = format!("it is larger than {MAX_FILE} bytes, so it is no configuration");
        return (Vec::new(), vec![unreadable(problem)]);
    }
    match String::from_utf8(bytes) {
        Ok(text) => parse(&text, path),
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let before = &error.as_bytes()[..valid];
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            let source = Source::File {
                path: path.to_path_buf(),
                line,
            };
            let problem = "it is not UTF-8 text".to_string();
            (
                Vec::new(),
                vec![ConfigError::Syntax {
                    from: source,
                    problem,
                }],
            )
        }
    }
}

/// Reads the text of a file. `path` is for messages.
pub(super) fn parse(text: &str, path: &Path) -> (Vec<Setting>, Vec<ConfigError>) {
    let lines = Lines {
        text,
        path: path.to_path_buf(),
    };
    let table = match DeTable::parse(text) {
        Ok(table) => table,
        Err(error) => {
            let from = lines.source(error.span().unwrap_or_default());
            let problem = error.message().replace('\n', ", ");
            return (Vec::new(), vec![ConfigError::Syntax { from, problem }]);
        }
    };
    let mut found = Vec::new();
    let mut problems = Vec::new();
    for (name, value) in table.get_ref() {
        let from = lines.source(name.span());
        let name: &str = name.get_ref();
        if let Some(key) = keys().find(None, name) {
            found.push(setting(key, value, from));
        } else if let (true, Some(above)) =
            (keys().is_above_a_section(name), value.get_ref().as_table())
        {
            for (inner, value) in above {
                let from = lines.source(inner.span());
                let path = format!("{name}.{}", inner.get_ref());
                lines.section(&path, value, from, &mut found, &mut problems);
            }
        } else {
            lines.section(name, value, from, &mut found, &mut problems);
        }
    }
    // The parser sorts by name; messages follow the order of the file.
    found.sort_by_key(|setting| setting.from.place());
    (found, problems)
}

fn setting(key: &'static Key, value: &Spanned<DeValue<'_>>, from: Source) -> Setting {
    Setting {
        key,
        raw: raw(value.get_ref()),
        from,
    }
}

fn raw(value: &DeValue<'_>) -> Raw {
    let other = |what, text: &str| Raw::Other {
        what,
        text: text.to_string(),
    };
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Boolean(value) => Raw::Boolean(*value),
        DeValue::Integer(integer) => {
            match i128::from_str_radix(integer.as_str(), integer.radix()) {
                Ok(number) => Raw::Integer(number),
                Err(_) => other("so large a number", integer.as_str()),
            }
        }
        DeValue::Float(float) => other("a number with a fraction", float.as_str()),
        DeValue::Datetime(time) => other("a date or time", &time.to_string()),
        DeValue::Array(_) => other("an array", ""),
        DeValue::Table(_) => other("a table", ""),
    }
}

struct Lines<'a> {
    text: &'a str,
    path: PathBuf,
}

impl Lines<'_> {
    /// Reads what should be a section.
    fn section(
        &self,
        name: &str,
        value: &Spanned<DeValue<'_>>,
        from: Source,
        found: &mut Vec<Setting>,
        problems: &mut Vec<ConfigError>,
    ) {
        match (keys().is_section(name), value.get_ref().as_table()) {
            (false, Some(_)) => problems.push(ConfigError::unknown_section(name, from)),
            (false, None) => problems.push(match name.split_once('.') {
                Some((above, key)) if keys().is_above_a_section(above) => {
                    ConfigError::unknown_key(Some(above), key, from)
                }
                _ => ConfigError::unknown_key(None, name, from),
            }),
            (true, None) => problems.push(ConfigError::BadValue {
                key: name.into(),
                from,
                problem: format!("{} is not a section", raw(value.get_ref())),
                allowed: format!("`[{name}]`, with its keys on the lines below"),
            }),
            (true, Some(section)) => {
                for (inner, value) in section {
                    let from = self.source(inner.span());
                    let inner: &str = inner.get_ref();
                    match keys().find(Some(name), inner) {
                        Some(key) => found.push(setting(key, value, from)),
                        None => problems.push(ConfigError::unknown_key(Some(name), inner, from)),
                    }
                }
            }
        }
    }

    fn source(&self, span: Range<usize>) -> Source {
        let end = span.start.min(self.text.len());
        let before = &self.text.as_bytes()[..end];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        Source::File {
            path: self.path.clone(),
            line,
        }
    }
}
