//! The arguments that become a token's scope.

use super::scope::{Groups, Names, Permissions, Scope, StateScope};
use crate::failure::Failure;

/// The operations of the S2 API.
const OPERATIONS: [&str; 24] = [
    "list-basins",
    "create-basin",
    "delete-basin",
    "reconfigure-basin",
    "get-basin-config",
    "issue-access-token",
    "revoke-access-token",
    "list-access-tokens",
    "list-streams",
    "create-stream",
    "delete-stream",
    "get-stream-config",
    "reconfigure-stream",
    "check-tail",
    "append",
    "read",
    "trim",
    "fence",
    "account-metrics",
    "basin-metrics",
    "stream-metrics",
    "list-locations",
    "get-default-location",
    "set-default-location",
];

/// What the token allows. Names are =NAME for one, else a prefix; '' means all.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "What it allows")]
pub struct PermissionArgs {
    /// On which basins: =NAME, or a prefix ('' is all) [default: none]
    #[arg(long, value_name = "NAMES")]
    basins: Option<Names>,

    /// On which of their streams: =NAME, or a prefix ('' is all) [default: none]
    #[arg(long, value_name = "NAMES")]
    streams: Option<Names>,

    /// Which tokens it can issue, list and revoke: =ID, or a prefix ('' is all) [default: none]
    #[arg(long, value_name = "IDS")]
    access_tokens: Option<Names>,

    /// Groups of operations, r to read and w to write: account=rw,basin=r,stream=w
    #[arg(long, value_name = "GROUPS")]
    op_group_perms: Option<Groups>,

    /// Single operations beside those of the groups, such as read,check-tail
    #[arg(
        long,
        value_name = "OPERATIONS",
        value_delimiter = ',',
        value_parser = clap::builder::PossibleValuesParser::new(OPERATIONS),
        hide_possible_values = true
    )]
    ops: Vec<String>,

    /// Read (r) and write (w) the state store, in --namespaces and of --agents
    #[arg(long, value_name = "r|w|rw")]
    state: Option<Permissions>,

    /// In which namespaces of the state store: =NAME, or a prefix ('' is all) [default: none]
    #[arg(long, value_name = "NAMES", requires = "state")]
    namespaces: Option<Names>,

    /// Of which agents of the state store: =NAME, or a prefix ('' is all) [default: none]
    #[arg(long, value_name = "NAMES", requires = "state")]
    agents: Option<Names>,

    /// Read (r) the server's status and snapshots, and write (w): create, prove and prune snapshots, drain and
    /// activate nodes, move leaders, check replicas; not remove nodes or name the right replica, which need the
    /// root token
    #[arg(long, value_name = "r|w|rw")]
    admin: Option<Permissions>,
}

impl PermissionArgs {
    /// The scope.
    ///
    /// # Errors
    ///
    /// `usage` for one that allows nothing.
    pub fn scope(&self) -> Result<Scope, Failure> {
        let allows = self.op_group_perms.is_some()
            || !self.ops.is_empty()
            || self.state.is_some()
            || self.admin.is_some();
        if !allows {
            return Err(Failure::usage(
                "usage",
                "what does the token allow? say --op-group-perms stream=rw, --ops read,append, --state r or \
                 --admin r, and on what: --basins, --streams, --namespaces, --agents",
            ));
        }
        if self.state.is_some() && (self.namespaces.is_none() || self.agents.is_none()) {
            return Err(Failure::usage(
                "usage",
                "--state allows nothing without --namespaces and --agents: '' means all",
            ));
        }
        Ok(Scope {
            basins: self.basins.clone(),
            streams: self.streams.clone(),
            access_tokens: self.access_tokens.clone(),
            op_groups: self.op_group_perms,
            ops: Some(self.ops.clone()).filter(|ops| !ops.is_empty()),
            state: self.state.map(|permissions| StateScope {
                namespaces: self.namespaces.clone(),
                agents: self.agents.clone(),
                permissions,
            }),
            admin: self.admin,
        })
    }

    /// Whether the streams are those of a prefix that is not empty.
    pub fn has_stream_prefix(&self) -> bool {
        matches!(&self.streams, Some(Names::Prefix(prefix)) if !prefix.is_empty())
    }
}
