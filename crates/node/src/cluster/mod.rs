//! The cluster that a node belongs to: which nodes there are, who leads what, and how nodes reach each other.
//!
//! | module | what it holds |
//! |---|---|
//! | `options` | the options of a node that belongs to a cluster |
//! | `directory` | which nodes there are, as the catalog says |
//! | `gatekeeper` | who may connect |
//! | `peers` | this node among the others: name, addresses, connections |
//! | `wire` | what nodes ask of each other |
//! | `join` | how an empty data directory becomes a node of a cluster |
//! | `plan` | what the leader of a group changes next |
//! | `answers`, `members` | answers to other nodes; keeping registration and members as they should be |
//! | `handle` | what requests need of it |

mod answers;
mod directory;
mod gatekeeper;
mod handle;
mod join;
mod members;
mod options;
mod peers;
mod plan;
mod wire;

pub(crate) use answers::Answers;
pub use handle::{
    Cluster, ClusterError, ClusterPartition, ClusterStatus, Leader, NodeStatusOf, Replica,
};
pub(crate) use join::join;
pub(crate) use members::run;
pub use options::ClusterOptions;
pub(crate) use peers::{Peers, cluster_number};
pub(crate) use wire::Joined;
