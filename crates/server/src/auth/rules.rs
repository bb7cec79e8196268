//! The operation that each route needs.
//!
//! The gate behind the router refuses a request whose route has no rule, and one of a sender who does not have
//! the operation on any resource, before its body is read. Handlers check the resources. A test sends
//! requests to each route of the router.

use s2_common::access::Operation;

use super::access::Access;
use super::error::AccessError;
use super::operation::{self, Effect};
use super::scope;

/// What a route needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rule {
    /// Nothing, not even a token.
    Open,
    /// A valid token.
    Valid,
    /// One of these operations.
    Operations(&'static [Operation]),
    /// A permission on the admin API.
    Admin(Effect),
    /// A permission on the state store.
    State(Effect),
    /// A permission on the admin API, or an operation.
    AdminOr(Effect, Operation),
    /// The root token.
    Root,
}

use Operation::*;
use Rule::{Admin, AdminOr, Open, Operations, Root, State, Valid};

/// Method, path and rule of each route over HTTP.
pub(crate) const RULES: &[(&str, &str, Rule)] = &[
    ("GET", "/health", Open),
    ("GET", "/ping", Open),
    ("GET", "/health/live", Open),
    ("GET", "/health/ready", Open),
    ("GET", "/metrics", Admin(Effect::Read)),
    ("GET", "/v1/basins", Operations(&[ListBasins])),
    ("POST", "/v1/basins", Operations(&[CreateBasin])),
    ("GET", "/v1/basins/{basin}", Operations(&[GetBasinConfig])),
    ("PUT", "/v1/basins/{basin}", Operations(&[CreateBasin])),
    (
        "PATCH",
        "/v1/basins/{basin}",
        Operations(&[ReconfigureBasin]),
    ),
    ("DELETE", "/v1/basins/{basin}", Operations(&[DeleteBasin])),
    ("GET", "/v1/streams", Operations(&[ListStreams])),
    ("POST", "/v1/streams", Operations(&[CreateStream])),
    (
        "GET",
        "/v1/streams/{stream}",
        Operations(&[GetStreamConfig]),
    ),
    ("PUT", "/v1/streams/{stream}", Operations(&[CreateStream])),
    (
        "PATCH",
        "/v1/streams/{stream}",
        Operations(&[ReconfigureStream]),
    ),
    (
        "DELETE",
        "/v1/streams/{stream}",
        Operations(&[DeleteStream]),
    ),
    ("GET", "/v1/streams/{stream}/records", Operations(&[Read])),
    (
        "POST",
        "/v1/streams/{stream}/records",
        Operations(&[Append, Trim, Fence]),
    ),
    (
        "GET",
        "/v1/streams/{stream}/records/tail",
        Operations(&[CheckTail]),
    ),
    ("GET", "/v1/access-tokens", Operations(&[ListAccessTokens])),
    ("POST", "/v1/access-tokens", Operations(&[IssueAccessToken])),
    (
        "DELETE",
        "/v1/access-tokens/{id}",
        Operations(&[RevokeAccessToken]),
    ),
    ("GET", "/v1/metrics", Operations(&[AccountMetrics])),
    ("GET", "/v1/metrics/{basin}", Operations(&[BasinMetrics])),
    (
        "GET",
        "/v1/metrics/{basin}/{stream}",
        Operations(&[StreamMetrics]),
    ),
    ("GET", "/v1/locations", Operations(&[ListLocations])),
    (
        "GET",
        "/v1/locations/default",
        Operations(&[GetDefaultLocation]),
    ),
    (
        "PUT",
        "/v1/locations/default",
        Operations(&[SetDefaultLocation]),
    ),
    ("GET", "/esker/v1/openapi.json", Valid),
    ("GET", "/esker/v1/status", Admin(Effect::Read)),
    ("GET", "/esker/v1/history", Admin(Effect::Read)),
    ("GET", "/esker/v1/state", State(Effect::Read)),
    ("GET", "/esker/v1/state/agents", State(Effect::Read)),
    ("GET", "/esker/v1/state/keys", State(Effect::Read)),
    ("GET", "/esker/v1/state/value", State(Effect::Read)),
    ("GET", "/esker/v1/state/versions", State(Effect::Read)),
    ("GET", "/esker/v1/state/commits", State(Effect::Read)),
    (
        "GET",
        "/esker/v1/streams/{stream}/position",
        AdminOr(Effect::Read, Read),
    ),
    (
        "GET",
        "/esker/v1/streams/{stream}/activity",
        AdminOr(Effect::Read, Read),
    ),
    (
        "POST",
        "/esker/v1/basins/{basin}/adopt",
        Admin(Effect::Write),
    ),
    (
        "GET",
        "/esker/v1/partitions/{partition}/snapshots",
        Admin(Effect::Read),
    ),
    (
        "POST",
        "/esker/v1/partitions/{partition}/snapshots",
        Admin(Effect::Write),
    ),
    (
        "GET",
        "/esker/v1/partitions/{partition}/snapshots/{snapshot}",
        Admin(Effect::Read),
    ),
    (
        "GET",
        "/esker/v1/partitions/{partition}/snapshots/{snapshot}/files",
        Admin(Effect::Read),
    ),
    (
        "GET",
        "/esker/v1/partitions/{partition}/sweep",
        Admin(Effect::Read),
    ),
    (
        "GET",
        "/esker/v1/partitions/{partition}/snapshots/{old}/diff/{new}",
        Admin(Effect::Read),
    ),
    (
        "POST",
        "/esker/v1/partitions/{partition}/snapshots/verify",
        Admin(Effect::Write),
    ),
    (
        "POST",
        "/esker/v1/partitions/{partition}/snapshots/{snapshot}/prove",
        Admin(Effect::Write),
    ),
    (
        "GET",
        "/esker/v1/partitions/{partition}/objects/why",
        Admin(Effect::Read),
    ),
    (
        "POST",
        "/esker/v1/partitions/{partition}/prune",
        Admin(Effect::Write),
    ),
    ("POST", "/esker/v1/access-tokens/confirm", Root),
    ("GET", "/esker/v1/cluster", Admin(Effect::Read)),
    (
        "POST",
        "/esker/v1/cluster/nodes/{node}/remove",
        // It cannot be taken back.
        Root,
    ),
    (
        "POST",
        "/esker/v1/cluster/nodes/{node}/drain",
        Admin(Effect::Write),
    ),
    (
        "POST",
        "/esker/v1/cluster/nodes/{node}/activate",
        Admin(Effect::Write),
    ),
    (
        "POST",
        "/esker/v1/cluster/partitions/{partition}/leader",
        Admin(Effect::Write),
    ),
    (
        "POST",
        "/esker/v1/cluster/partitions/{partition}/check",
        Admin(Effect::Write),
    ),
    (
        "POST",
        "/esker/v1/cluster/partitions/{partition}/trust",
        // Replicas with another state stop for good.
        Root,
    ),
];

/// Rules of the methods over gRPC, by path.
pub(crate) const GRPC_RULES: &[(&str, Rule)] = &[
    ("/statehouse.v1.StatehouseService/Health", Open),
    ("/statehouse.v1.StatehouseService/Version", Valid),
    (
        "/statehouse.v1.StatehouseService/BeginTransaction",
        State(Effect::Write),
    ),
    (
        "/statehouse.v1.StatehouseService/Write",
        State(Effect::Write),
    ),
    (
        "/statehouse.v1.StatehouseService/Delete",
        State(Effect::Write),
    ),
    (
        "/statehouse.v1.StatehouseService/Commit",
        State(Effect::Write),
    ),
    (
        "/statehouse.v1.StatehouseService/Abort",
        State(Effect::Write),
    ),
    (
        "/statehouse.v1.StatehouseService/GetState",
        State(Effect::Read),
    ),
    (
        "/statehouse.v1.StatehouseService/GetStateAtVersion",
        State(Effect::Read),
    ),
    (
        "/statehouse.v1.StatehouseService/ListKeys",
        State(Effect::Read),
    ),
    (
        "/statehouse.v1.StatehouseService/ScanPrefix",
        State(Effect::Read),
    ),
    (
        "/statehouse.v1.StatehouseService/Replay",
        State(Effect::Read),
    ),
    (
        "/esker.state.v1.StateService/BeginTransaction",
        State(Effect::Write),
    ),
    ("/esker.state.v1.StateService/Write", State(Effect::Write)),
    ("/esker.state.v1.StateService/Delete", State(Effect::Write)),
    ("/esker.state.v1.StateService/Commit", State(Effect::Write)),
    ("/esker.state.v1.StateService/Abort", State(Effect::Write)),
    ("/esker.state.v1.StateService/GetState", State(Effect::Read)),
    (
        "/esker.state.v1.StateService/GetStateAt",
        State(Effect::Read),
    ),
    ("/esker.state.v1.StateService/Scan", State(Effect::Read)),
    ("/esker.state.v1.StateService/Replay", State(Effect::Read)),
    ("/esker.state.v1.StateService/Watch", State(Effect::Read)),
    (
        "/esker.state.v1.StateService/Snapshot",
        State(Effect::Write),
    ),
    (
        "/esker.state.v1.StateService/ListSnapshots",
        State(Effect::Read),
    ),
    ("/esker.state.v1.StateService/Export", State(Effect::Read)),
    ("/esker.state.v1.StateService/Import", State(Effect::Write)),
    ("/esker.state.v1.StateService/Verify", State(Effect::Read)),
    ("/esker.state.v1.StateService/Status", State(Effect::Read)),
];

impl Rule {
    /// The rule of a route; `None` if it has none. `HEAD` is answered as `GET` is.
    pub(crate) fn of(method: &str, path: &str) -> Option<Rule> {
        let method = if method == "HEAD" { "GET" } else { method };
        let mut rules = RULES.iter();
        let found = rules.find(|(of, at, _)| *of == method && *at == path);
        found.map(|(.., rule)| *rule)
    }

    /// Whether a path has a rule for any method.
    pub(crate) fn has_path(path: &str) -> bool {
        RULES.iter().any(|(_, at, _)| *at == path)
    }

    /// The rule of a gRPC method.
    pub(crate) fn of_call(path: &str) -> Option<Rule> {
        let found = GRPC_RULES.iter().find(|(of, _)| *of == path);
        found.map(|(_, rule)| *rule)
    }

    /// Whether a sender has what the rule needs, on whatever resources.
    ///
    /// # Errors
    ///
    /// It does not.
    pub(crate) fn check(self, access: &Access) -> Result<(), AccessError> {
        let Some(of) = access.principal().scope() else {
            return Ok(());
        };
        let (permitted, what) = match self {
            Open | Valid => (true, ""),
            Operations(all) => (
                all.iter().any(|it| scope::has(of, *it)),
                all.first().map_or("", |it| operation::name(*it)),
            ),
            Admin(effect) => return access.admin(effect).map(|_| ()),
            State(effect) => return access.any_state(effect).map(|_| ()),
            AdminOr(effect, operation) => (
                scope::has_admin(of, effect) || scope::has(of, operation),
                operation::name(operation),
            ),
            Root => return access.root().map(|_| ()),
        };
        match permitted {
            true => Ok(()),
            false => Err(AccessError::Forbidden(format!("{what} here"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_taken_back_in_a_cluster_needs_the_root_token() {
        let of = |what: &str| Rule::of("POST", &format!("/esker/v1/cluster/{what}"));
        for what in ["nodes/{node}/remove", "partitions/{partition}/trust"] {
            assert_eq!(of(what), Some(Root), "{what}");
        }
        for what in [
            "nodes/{node}/drain",
            "nodes/{node}/activate",
            "partitions/{partition}/leader",
            "partitions/{partition}/check",
        ] {
            assert_eq!(of(what), Some(Admin(Effect::Write)), "{what}");
        }
    }
}
