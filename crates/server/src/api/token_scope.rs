//! The scope of a token on the wire: that of the S2 API, and beside it `state` and `admin`, which are absent
//! where they permit nothing.
//!
//! ```json
//! "state": {"namespaces": {"exact": "default"}, "agents": {"prefix": "team-a/"}, "read": true, "write": true},
//! "admin": {"read": true}
//! ```

use esker_node::{NameSet, Names, TokenScope};
use s2_api::v1::access::AccessTokenScope;
use s2_common::ValidationError;
use serde::{Deserialize, Serialize};

/// A scope.
#[derive(Debug, Deserialize, Serialize)]
pub struct WireScope {
    #[serde(flatten)]
    s2: AccessTokenScope,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state: Option<WireState>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    admin: Option<WireAdmin>,
}

/// What a token permits on the state store.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct WireState {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    namespaces: Option<WireNames>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agents: Option<WireNames>,
    #[serde(default)]
    read: bool,
    #[serde(default)]
    write: bool,
}

/// What a token permits on the admin API.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct WireAdmin {
    #[serde(default)]
    read: bool,
    #[serde(default)]
    write: bool,
}

/// A set of names. As in the S2 API, an empty exact name is no name, and an empty prefix every name.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum WireNames {
    Exact(String),
    Prefix(String),
}

impl WireNames {
    fn into_set(names: Option<WireNames>) -> NameSet {
        match names {
            None => NameSet::NONE,
            Some(WireNames::Exact(name)) if name.is_empty() => NameSet::NONE,
            Some(WireNames::Exact(name)) => NameSet::exact(name),
            Some(WireNames::Prefix(prefix)) => NameSet::prefix(prefix),
        }
    }

    fn of(set: &NameSet) -> Option<WireNames> {
        set.names.as_ref().map(|names| match names {
            Names::Exact(name) => WireNames::Exact(name.clone()),
            Names::Prefix(prefix) => WireNames::Prefix(prefix.clone()),
        })
    }
}

impl WireScope {
    /// The scope as it is stored.
    ///
    /// # Errors
    ///
    /// A name is not valid.
    pub(crate) fn into_scope(self) -> Result<TokenScope, ValidationError> {
        let state = self.state.unwrap_or_default();
        let admin = self.admin.unwrap_or_default();
        Ok(TokenScope {
            namespaces: WireNames::into_set(state.namespaces),
            agents: WireNames::into_set(state.agents),
            state_read: state.read,
            state_write: state.write,
            admin_read: admin.read,
            admin_write: admin.write,
            ..TokenScope::from_s2(&self.s2.try_into()?)
        })
    }

    /// A stored scope.
    ///
    /// # Errors
    ///
    /// A name is not valid.
    pub(crate) fn of(scope: &TokenScope) -> Result<WireScope, ValidationError> {
        let state = WireState {
            namespaces: WireNames::of(&scope.namespaces),
            agents: WireNames::of(&scope.agents),
            read: scope.state_read,
            write: scope.state_write,
        };
        let has_state =
            state.read || state.write || state.namespaces.is_some() || state.agents.is_some();
        let admin = WireAdmin {
            read: scope.admin_read,
            write: scope.admin_write,
        };
        Ok(WireScope {
            s2: scope.to_s2()?.into(),
            state: has_state.then_some(state),
            admin: (admin.read || admin.write).then_some(admin),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn read(json: Value) -> Result<TokenScope, String> {
        let scope: WireScope = serde_json::from_value(json).map_err(|e| e.to_string())?;
        scope.into_scope().map_err(|e| e.to_string())
    }

    #[test]
    fn a_scope_is_read_as_the_api_has_it_with_what_esker_adds() {
        let scope = read(json!({
            "basins": {"prefix": ""},
            "streams": {"exact": ""},
            "op_groups": {"stream": {"read": true}},
            "ops": ["list-basins"],
            "state": {"namespaces": {"exact": "default"}, "agents": {"prefix": "a/"}, "read": true},
            "admin": {"write": true},
        }))
        .unwrap();
        assert_eq!(scope.basins, NameSet::prefix(""));
        assert_eq!(scope.streams, NameSet::NONE);
        assert_eq!(scope.namespaces, NameSet::exact("default"));
        assert_eq!(scope.agents, NameSet::prefix("a/"));
        let flags = [
            scope.state_read,
            scope.state_write,
            scope.admin_read,
            scope.admin_write,
        ];
        assert_eq!(flags, [true, false, false, true]);
        let wire = serde_json::to_value(WireScope::of(&scope).unwrap()).unwrap();
        assert_eq!(read(wire).unwrap(), scope);
    }

    #[test]
    fn absent_is_nothing_and_what_is_not_known_is_refused() {
        assert_eq!(read(json!({})).unwrap(), TokenScope::default());
        for wrong in [
            json!({"basins": {"suffix": "x"}}),
            json!({"basins": {"exact": "NOT A BASIN"}}),
            json!({"streams": {"prefix": "a\u{0}b"}}),
            json!({"streams": {"exact": ".."}}),
            json!({"ops": ["everything"]}),
            json!({"state": {"reed": true}}),
            json!({"state": {"agents": "x"}}),
            json!({"admin": {"all": true}}),
            json!({"admin": true}),
            json!([]),
            json!("*"),
        ] {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_read_is_written_the_same(
            basins in "\\PC{0,12}",
            names in "[\\x00-\\x7f]{0,12}",
            shape in 0usize..6,
        ) {
            let body = match shape {
                0 => json!({"basins": {"exact": basins}, "streams": {"prefix": names}}),
                1 => json!({"streams": {"exact": names}, "ops": [basins]}),
                2 => json!({"access_tokens": {"prefix": names}, "state": {"agents": {"exact": basins}}}),
                3 => json!({"state": {"namespaces": {"prefix": basins}, "read": true}}),
                4 => json!({"op_groups": {names: {"read": true}}}),
                _ => json!({"admin": {basins: true}}),
            };
            if let Ok(scope) = read(body) {
                let wire = serde_json::to_value(WireScope::of(&scope).unwrap()).unwrap();
                prop_assert_eq!(read(wire).unwrap(), scope);
            }
        }
    }
}
