//! What a token allows, as the API has it, and for people.
//!
//! It is the scope of the S2 API with two additions of Esker's, `state` and `admin`, which other servers do not
//! have.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::term::plain;

/// What a token allows. What is absent allows nothing.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Scope {
    /// On which basins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basins: Option<Names>,
    /// On which streams of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<Names>,
    /// Which other tokens can be issued, listed and revoked with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_tokens: Option<Names>,
    /// Operations, by group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op_groups: Option<Groups>,
    /// More operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<Vec<String>>,
    /// On the state store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<StateScope>,
    /// On the admin API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin: Option<Permissions>,
}

/// Names: one, or those with a prefix.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Names {
    /// This name; none if it is empty.
    Exact(String),
    /// Those that begin with it; all if it is empty.
    Prefix(String),
}

impl FromStr for Names {
    type Err = String;

    /// `=NAME` is one name, everything else a prefix.
    fn from_str(text: &str) -> Result<Names, String> {
        match text.strip_prefix('=') {
            Some("") => Err("after the = comes a name".to_owned()),
            Some(name) => Ok(Names::Exact(name.to_owned())),
            None => Ok(Names::Prefix(text.to_owned())),
        }
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Names::Exact(name) => write!(f, "={}", plain(name)),
            Names::Prefix(prefix) => write!(f, "{}*", plain(prefix)),
        }
    }
}

/// Reading and writing.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Permissions {
    #[serde(default)]
    pub read: bool,
    #[serde(default)]
    pub write: bool,
}

impl Permissions {
    fn is_none(self) -> bool {
        self == Permissions::default()
    }
}

impl FromStr for Permissions {
    type Err = String;

    /// `r`, `w` or `rw`.
    fn from_str(text: &str) -> Result<Permissions, String> {
        let (read, write) = match text {
            "r" => (true, false),
            "w" => (false, true),
            "rw" | "wr" => (true, true),
            _ => return Err("write r, w or rw".to_owned()),
        };
        Ok(Permissions { read, write })
    }
}

impl fmt::Display for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.read, self.write) {
            (true, true) => "rw",
            (true, false) => "r",
            (false, true) => "w",
            (false, false) => "nothing",
        })
    }
}

/// The groups of operations of the S2 API.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Groups {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<Permissions>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basin: Option<Permissions>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<Permissions>,
}

impl FromStr for Groups {
    type Err = String;

    /// `account=rw,basin=r,stream=w`.
    fn from_str(text: &str) -> Result<Groups, String> {
        let mut groups = Groups::default();
        for part in text.split(',') {
            let wanted =
                || "write GROUP=r, =w or =rw, such as account=rw,basin=r,stream=w".to_owned();
            let (name, permissions) = part.trim().split_once('=').ok_or_else(wanted)?;
            let permissions = permissions.parse()?;
            let group = match name {
                "account" => &mut groups.account,
                "basin" => &mut groups.basin,
                "stream" => &mut groups.stream,
                other => {
                    return Err(format!(
                        "`{other}` is no group: they are account, basin and stream"
                    ));
                }
            };
            if group.replace(permissions).is_some() {
                return Err(format!("`{name}` is there twice"));
            }
        }
        Ok(groups)
    }
}

/// What a token allows on the state store.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct StateScope {
    /// In which namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<Names>,
    /// On the keys of which agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agents: Option<Names>,
    #[serde(flatten)]
    pub permissions: Permissions,
}

impl Scope {
    /// What the token allows, in a few words.
    pub fn summary(&self) -> String {
        let mut parts = Vec::new();
        let groups = self.op_groups.unwrap_or_default();
        for (name, permissions) in [
            ("account", groups.account),
            ("basin", groups.basin),
            ("stream", groups.stream),
        ] {
            if let Some(permissions) = permissions.filter(|it| !it.is_none()) {
                parts.push(format!("{name} {permissions}"));
            }
        }
        let ops = self.ops.as_deref().unwrap_or_default();
        if !ops.is_empty() {
            parts.push(plain(&ops.join(" ")));
        }
        if !parts.is_empty() {
            for (name, names) in [
                ("basins", &self.basins),
                ("streams", &self.streams),
                ("tokens", &self.access_tokens),
            ] {
                if let Some(names) = names {
                    parts.push(format!("{name} {names}"));
                }
            }
        }
        let state = self.state.clone().unwrap_or_default();
        if !state.permissions.is_none() {
            let mut text = format!("state {}", state.permissions);
            for (name, names) in [("namespaces", state.namespaces), ("agents", state.agents)] {
                let names = names.map_or_else(|| "none".to_owned(), |names| names.to_string());
                text += &format!(" {name} {names}");
            }
            parts.push(text);
        }
        if let Some(admin) = self.admin.filter(|it| !it.is_none()) {
            parts.push(format!("admin {admin}"));
        }
        match parts.is_empty() {
            true => "nothing".to_owned(),
            false => parts.join(", "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_exact_behind_an_equals_sign_and_otherwise_a_prefix() {
        assert_eq!("=a".parse(), Ok(Names::Exact("a".to_owned())));
        assert_eq!("a".parse(), Ok(Names::Prefix("a".to_owned())));
        assert_eq!("".parse(), Ok(Names::Prefix(String::new())));
        assert!("=".parse::<Names>().is_err());
    }

    #[test]
    fn groups_are_each_given_once() {
        let groups: Groups = "account=rw,stream=r".parse().unwrap();
        assert_eq!(groups.account.unwrap().to_string(), "rw");
        assert_eq!(groups.stream.unwrap().to_string(), "r");
        assert_eq!(groups.basin, None);
        for text in ["", "account", "account=x", "tenant=r", "stream=r,stream=w"] {
            assert!(text.parse::<Groups>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_summary_has_all_that_is_allowed() {
        let scope = Scope {
            basins: Some(Names::Exact("my-basin".to_owned())),
            streams: Some(Names::Prefix("jobs/".to_owned())),
            op_groups: Some("stream=rw".parse().unwrap()),
            ops: Some(vec!["list-basins".to_owned()]),
            admin: Some("r".parse().unwrap()),
            ..Scope::default()
        };
        assert_eq!(
            scope.summary(),
            "stream rw, list-basins, basins =my-basin, streams jobs/*, admin r"
        );
        assert_eq!(Scope::default().summary(), "nothing");
    }

    #[test]
    fn the_wire_has_the_fields_of_the_api() {
        let scope = Scope {
            streams: Some(Names::Prefix(String::new())),
            state: Some(StateScope {
                agents: Some(Names::Exact("a".to_owned())),
                permissions: "r".parse().unwrap(),
                ..StateScope::default()
            }),
            ..Scope::default()
        };
        assert_eq!(
            serde_json::to_value(&scope).unwrap(),
            serde_json::json!({
                "streams": { "prefix": "" },
                "state": { "agents": { "exact": "a" }, "read": true, "write": false },
            })
        );
    }
}
