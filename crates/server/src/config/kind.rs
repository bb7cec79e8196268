//! What a value of a key may look like.
//!
//! A [`Raw`] is a value as a source has it: a typed value of the TOML file, or the bare text of a
//! variable or flag. [`Kind::read`] turns it into the JSON value that the configuration is made from, or
//! returns what is wrong with it; [`Kind::allowed`] describes what would be right. Both become part of
//! one message, and the latter of the documentation.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use s2_common::caps::MAX_LOCATION_NAME_LEN;
use s2_common::location::LocationName;
use serde_json::Value;
use tracing_subscriber::EnvFilter;

use super::destination_url;
use super::secret::{HIDDEN, SECRET_FORMAT, Secret};
use super::source::printable;
use super::suggest;
use super::units::{BYTE_COUNT_FORMAT, ByteCount, DURATION_FORMAT, HumanDuration};

/// Longest name of a cluster, in characters: that of a DNS label, so that it fits into other names.
const MAX_CLUSTER_NAME: usize = 63;

/// Longest text, in characters.
const MAX_TEXT: usize = 255;

/// Levels of messages, from the quietest.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A value that a source sets for a key.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Raw {
    /// Text of a variable or flag, whatever the type of the key.
    Bare(String),
    /// A string of the file.
    Text(String),
    /// An integer of the file.
    Integer(i128),
    /// A boolean of the file.
    Boolean(bool),
    /// Something else of the file, which no key accepts.
    Other {
        /// What it is, with its article.
        what: &'static str,
        /// How it was written; empty if that is long.
        text: String,
    },
}

impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bare(text) | Self::Text(text) => write!(f, "\"{}\"", printable(text)),
            Self::Integer(number) => number.fmt(f),
            Self::Boolean(value) => value.fmt(f),
            Self::Other { what, text } if text.is_empty() => f.write_str(what),
            Self::Other { text, .. } => f.write_str(&printable(text)),
        }
    }
}

/// What a value of a key may look like. Bounds are inclusive.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// Path of a file or directory.
    Path,
    /// IP address and port.
    Address,
    /// Name of a cluster.
    ClusterName,
    /// Filter of messages.
    LogFilter,
    /// Where snapshots go.
    Destination,
    /// URL of a store.
    Endpoint,
    /// A name of something outside.
    Text,
    /// Names or addresses of hosts.
    HostNames,
    /// Web origins.
    Origins,
    /// Name of a location.
    Location,
    /// A value that is never shown.
    Secret,
    /// On or off.
    Switch,
    /// One of some words.
    Choice(Vec<String>),
    /// A count.
    Count(RangeInclusive<u64>),
    /// A number of bytes.
    Size(RangeInclusive<ByteCount>),
    /// A duration.
    Duration(RangeInclusive<HumanDuration>),
}

impl Kind {
    /// The kind that a field's JSON schema describes, if it is one of these. A size, duration or
    /// count without both bounds is none of them.
    pub(super) fn of(schema: &Value) -> Option<Self> {
        let text = |name: &str| schema.get(name).and_then(Value::as_str);
        let number = |name: &str| schema.get(name).and_then(Value::as_u64);
        match text("format") {
            Some("path") => return Some(Self::Path),
            Some("socket-address") => return Some(Self::Address),
            Some("cluster-name") => return Some(Self::ClusterName),
            Some("log-filter") => return Some(Self::LogFilter),
            Some("destination") => return Some(Self::Destination),
            Some("endpoint") => return Some(Self::Endpoint),
            Some("text") => return Some(Self::Text),
            Some("host-names") => return Some(Self::HostNames),
            Some("origins") => return Some(Self::Origins),
            Some("location") => return Some(Self::Location),
            Some(SECRET_FORMAT) => return Some(Self::Secret),
            Some(BYTE_COUNT_FORMAT) => {
                let minimum = text("x-minimum")?.parse().ok()?;
                let maximum = text("x-maximum")?.parse().ok()?;
                return Some(Self::Size(minimum..=maximum));
            }
            Some(DURATION_FORMAT) => {
                let minimum = text("x-minimum")?.parse().ok()?;
                let maximum = text("x-maximum")?.parse().ok()?;
                return Some(Self::Duration(minimum..=maximum));
            }
            _ => {}
        }
        match text("type") {
            Some("boolean") => return Some(Self::Switch),
            Some("integer") => return Some(Self::Count(number("minimum")?..=number("maximum")?)),
            _ => {}
        }
        // An enumeration: words alone, or words that are described one by one.
        let words = schema.get("enum").or_else(|| schema.get("oneOf"))?;
        let words = words.as_array()?.iter();
        let words = words.map(|word| word.get("const").unwrap_or(word).as_str().map(String::from));
        Some(Self::Choice(words.collect::<Option<_>>()?))
    }

    /// Name of the kind in the documentation.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Address => "address",
            Self::ClusterName | Self::Location => "name",
            Self::LogFilter => "filter",
            Self::Destination => "destination",
            Self::Endpoint => "URL",
            Self::Text => "text",
            Self::HostNames => "names",
            Self::Origins => "origins",
            Self::Secret => "secret",
            Self::Switch => "boolean",
            Self::Choice(_) => "word",
            Self::Count(_) => "integer",
            Self::Size(_) => "size",
            Self::Duration(_) => "duration",
        }
    }

    /// The values that are allowed, in a few words.
    pub(super) fn allowed(&self) -> String {
        match self {
            Self::Path => "a path in UTF-8, not empty".into(),
            Self::Address => {
                "an IP address and a port, such as `127.0.0.1:7070` or `[::1]:7070`".into()
            }
            Self::ClusterName => format!(
                "1 to {MAX_CLUSTER_NAME} of the characters `a`-`z`, `A`-`Z`, `0`-`9`, `-`, \
                 `_`, `.`, the first a letter or digit"
            ),
            Self::LogFilter => "a filter such as `info` or `warn,esker=debug`".into(),
            Self::Destination => destination_url::DESTINATIONS.into(),
            Self::Endpoint => destination_url::ENDPOINTS.into(),
            Self::HostNames => "names without ports, such as `esker.internal,10.0.0.7`".into(),
            Self::Origins => {
                "origins as browsers send them, such as `https://esker.example.com:8443`; or `*`"
                    .into()
            }
            Self::Location => format!(
                "1 to {MAX_LOCATION_NAME_LEN} of the characters `a`-`z`, `A`-`Z`, `0`-`9`, `:`, \
                 `-`, `.`"
            ),
            Self::Text | Self::Secret => "one line of text".into(),
            Self::Switch => "`true` or `false`".into(),
            Self::Choice(words) => {
                let words: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
                words.join(" or ")
            }
            Self::Count(bounds) => format!("{} to {}", bounds.start(), bounds.end()),
            Self::Size(bounds) => format!("{} to {}", bounds.start(), bounds.end()),
            Self::Duration(bounds) => format!("{} to {}", bounds.start(), bounds.end()),
        }
    }

    /// The kind with its article.
    fn noun(&self) -> String {
        let article = match self {
            Self::Address | Self::Count(_) => "an",
            _ => "a",
        };
        format!("{article} {}", self.name())
    }

    /// A source's value, as a message may repeat it: no secrets. `None` if there is nothing to repeat.
    pub(super) fn shown(&self, raw: &Raw) -> Option<String> {
        match (self, raw) {
            (Self::Secret, _) => None,
            // The problem names it already.
            (_, Raw::Other { text, .. }) if text.is_empty() => None,
            (Self::Destination | Self::Endpoint, Raw::Bare(text) | Raw::Text(text)) => {
                Some(Raw::Text(destination_url::without_user_info(text)).to_string())
            }
            _ => Some(raw.to_string()),
        }
    }

    /// The text after a flag, as a message may repeat it.
    pub(super) fn shown_text(&self, text: &str) -> String {
        match self {
            Self::Secret => HIDDEN.into(),
            Self::Destination | Self::Endpoint => destination_url::without_user_info(text),
            _ => text.into(),
        }
    }

    /// The text of a string; any other type is an error.
    fn text<'a>(&self, raw: &'a Raw) -> Result<&'a str, String> {
        match raw {
            Raw::Bare(text) | Raw::Text(text) => Ok(text),
            Raw::Integer(_) | Raw::Boolean(_) | Raw::Other { .. } => Err(self.mismatch(raw)),
        }
    }

    /// The error of a value of another type.
    fn mismatch(&self, raw: &Raw) -> String {
        let what = match raw {
            Raw::Bare(_) | Raw::Text(_) => "a string",
            Raw::Integer(_) => "an integer",
            Raw::Boolean(_) => "a boolean",
            Raw::Other { what, .. } => what,
        };
        format!("{what} is not {}", self.noun())
    }

    fn count(&self, raw: &Raw) -> Result<u64, String> {
        let number = match raw {
            Raw::Integer(number) => *number,
            Raw::Bare(text) => not_empty(text.trim())?
                .parse()
                .map_err(|_| "it is not a whole number".to_string())?,
            Raw::Text(_) | Raw::Boolean(_) | Raw::Other { .. } => return Err(self.mismatch(raw)),
        };
        u64::try_from(number).map_err(|_| match number {
            ..0 => "it is negative".into(),
            _ => "it is too large".into(),
        })
    }

    fn switch(&self, raw: &Raw) -> Result<bool, String> {
        match raw {
            Raw::Boolean(value) => Ok(*value),
            Raw::Bare(text) => match text.trim() {
                "true" => Ok(true),
                "false" => Ok(false),
                "" => Err("it is empty".into()),
                _ => Err("it is neither `true` nor `false`".into()),
            },
            Raw::Text(_) | Raw::Integer(_) | Raw::Other { .. } => Err(self.mismatch(raw)),
        }
    }

    /// Reads a source's value, checks it against the bounds and returns it in the form in which the
    /// configuration serializes it. The error describes what is wrong with it.
    pub(super) fn read(&self, raw: &Raw) -> Result<Value, String> {
        match self {
            Self::Path => path(self.text(raw)?).map(Value::from),
            Self::Address => address(self.text(raw)?.trim()).map(|value| value.to_string().into()),
            Self::ClusterName => cluster_name(self.text(raw)?).map(Value::from),
            Self::LogFilter => log_filter(self.text(raw)?).map(Value::from),
            Self::Destination => {
                destination_url::destination(self.text(raw)?.trim()).map(Value::from)
            }
            Self::Endpoint => destination_url::endpoint(self.text(raw)?.trim()).map(Value::from),
            Self::Text => short_text(self.text(raw)?.trim()).map(Value::from),
            Self::HostNames => each(self.text(raw)?, host_name).map(Value::from),
            Self::Origins => origins(self.text(raw)?).map(Value::from),
            Self::Location => location(self.text(raw)?.trim()).map(Value::from),
            Self::Secret => {
                Secret::new(self.text(raw)?).map(|secret| secret.expose().to_string().into())
            }
            Self::Switch => self.switch(raw).map(Value::from),
            Self::Choice(words) => choice(self.text(raw)?.trim(), words).map(Value::from),
            Self::Count(bounds) => within(self.count(raw)?, bounds).map(Value::from),
            Self::Size(bounds) => {
                let size = match raw {
                    Raw::Integer(_) => ByteCount::new(self.count(raw)?),
                    _ => not_empty(self.text(raw)?.trim())?.parse()?,
                };
                within(size, bounds).map(|size| size.to_string().into())
            }
            Self::Duration(bounds) => {
                let duration = match raw {
                    Raw::Integer(number) => {
                        return Err(format!("a duration has a unit, for example \"{number}s\""));
                    }
                    _ => not_empty(self.text(raw)?.trim())?.parse()?,
                };
                within(duration, bounds).map(|duration| duration.to_string().into())
            }
        }
    }
}

fn not_empty(text: &str) -> Result<&str, String> {
    if text.is_empty() {
        return Err("it is empty".into());
    }
    Ok(text)
}

fn within<T: PartialOrd + fmt::Display>(value: T, bounds: &RangeInclusive<T>) -> Result<T, String> {
    if value < *bounds.start() {
        return Err(format!("it is less than {}", bounds.start()));
    }
    if value > *bounds.end() {
        return Err(format!("it is more than {}", bounds.end()));
    }
    Ok(value)
}

fn path(text: &str) -> Result<&str, String> {
    if text.contains(char::REPLACEMENT_CHARACTER) {
        return Err("it is not UTF-8".into());
    }
    if text.contains('\0') {
        return Err("it contains a zero byte".into());
    }
    not_empty(destination_url::not_for_a_shell(text)?)
}

fn address(text: &str) -> Result<SocketAddr, String> {
    not_empty(text)?.parse().map_err(|_| match text {
        _ if text.parse::<std::net::IpAddr>().is_ok() => "the port is missing".into(),
        _ if text.chars().all(|c| c.is_ascii_digit()) => "the IP address is missing".into(),
        _ if text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.contains(':') => {
            "names of machines are not looked up".into()
        }
        _ => "it is not an IP address with a port".into(),
    })
}

/// Checks each part of a list.
fn each(text: &str, check: impl Fn(&str) -> Result<(), String>) -> Result<&str, String> {
    let text = short_text(text.trim())?;
    for part in text.split(',') {
        check(part.trim()).map_err(|problem| format!("`{}`: {problem}", printable(part)))?;
    }
    Ok(text)
}

fn host_name(text: &str) -> Result<(), String> {
    let authority: http::uri::Authority = not_empty(text)?
        .parse()
        .map_err(|_| "it is not a name or address of a host".to_string())?;
    if text.contains('@') {
        return Err("it is not a name or address of a host".into());
    }
    match authority.host() == text {
        true => Ok(()),
        false => Err("the port has to be left out".into()),
    }
}

fn origins(text: &str) -> Result<&str, String> {
    match text.trim() {
        "*" => Ok("*"),
        text => each(text, origin),
    }
}

fn origin(text: &str) -> Result<(), String> {
    match text {
        "*" => return Err("it stands alone, and not among others".into()),
        "null" => return Err("it is the origin of every page that has none".into()),
        _ => {}
    }
    let Some((scheme, host)) = not_empty(text)?.split_once("://") else {
        return Err("it does not begin with `http://` or `https://`".into());
    };
    if !["http", "https"].contains(&scheme) {
        return Err("it does not begin with `http://` or `https://`".into());
    }
    let authority: Result<http::uri::Authority, _> = host.parse();
    match authority {
        Ok(authority) if authority.as_str() == host && !host.contains('@') => Ok(()),
        _ => Err("after the scheme it has a host and a port, and nothing else".into()),
    }
}

fn cluster_name(text: &str) -> Result<&str, String> {
    let text = not_empty(text)?;
    if text.chars().count() > MAX_CLUSTER_NAME {
        return Err("it is too long".into());
    }
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err("it does not begin with a letter or digit".into());
    }
    let foreign = |c: &char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    match text.chars().find(foreign) {
        Some(character) => Err(format!("it contains {character:?}")),
        None => Ok(text),
    }
}

fn location(text: &str) -> Result<&str, String> {
    let name: Result<LocationName, _> = not_empty(text)?.parse();
    match name {
        Ok(_) => Ok(text),
        Err(error) => Err(error.to_string()),
    }
}

fn short_text(text: &str) -> Result<&str, String> {
    if text
        .chars()
        .any(|c| c.is_control() || c == char::REPLACEMENT_CHARACTER)
    {
        return Err("it contains a control character or is not UTF-8".into());
    }
    if text.chars().count() > MAX_TEXT {
        return Err("it is too long".into());
    }
    not_empty(text)
}

fn choice<'a>(text: &'a str, words: &[String]) -> Result<&'a str, String> {
    let text = not_empty(text)?;
    if words.iter().any(|word| word == text) {
        return Ok(text);
    }
    Err(
        match suggest::nearest(text, words.iter().map(String::as_str)) {
            Some(word) => format!("it is not one of the words; did you mean `{word}`?"),
            None => "it is not one of the words".into(),
        },
    )
}

fn log_filter(text: &str) -> Result<&str, String> {
    not_empty(text.trim())?;
    EnvFilter::builder()
        .parse(text)
        .map_err(|error| error.to_string())?;
    // A lone word that is no level counts as a part of the program, so a misspelt level would be accepted
    // and silence the server.
    for word in text.split(',').map(str::trim) {
        let is_level = LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
        if let (false, Some(level)) = (is_level, suggest::nearest(word, LEVELS)) {
            return Err(format!(
                "`{}` is not a level; did you mean `{level}`?",
                printable(word)
            ));
        }
    }
    Ok(text)
}
