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
//! | `join_checks` | what a node has to be that registers |
//! | `contact` | which members a leader is in contact with |
//! | `plan`, `changes`, `waiting` | what the leader of a group changes next; making the change; what it waits for |
//! | `removal` | whether a node may be removed |
//! | `farewell` | which replicas of a removed node are not needed any more |
//! | `departure`, `departure_task` | whether this node was removed; asking the others, and ending |
//! | `rounds` | how often nodes and members are looked at |
//! | `answers`, `members` | answers to other nodes; keeping registration and members as they should be |
//! | `registration` | what the cluster answers to this node's registration |
//! | `checks` | digests of replicas, compared through the log |
//! | `trust` | deciding without a majority which replica is right |
//! | `replica_watch` | replicas that have diverged are stopped, the state of doubtful ones is withheld; what is fetched |
//! | `agreed_time`, `clocks` | the clocks of the nodes, compared |
//! | `kept_log` | what leaders keep of their logs for nodes that are away |
//! | `replicas`, `divergence`, `transfers` | what is known of the replicas here: digests; which are stopped; what they fetch |
//! | `replacement` | a node that lost its log or its disk is replaced by the one that joins in its place |
//! | `slow_disk` | leaderships move away from a node whose disk does not keep up |
//! | `handle` | what requests need of it |

mod agreed_time;
mod answers;
mod changes;
mod checks;
mod clocks;
mod contact;
mod departure;
mod departure_task;
mod directory;
mod divergence;
mod farewell;
mod gatekeeper;
mod handle;
mod join;
mod join_checks;
mod kept_log;
mod members;
mod options;
mod peers;
mod plan;
mod registration;
mod removal;
mod replacement;
mod replica_watch;
mod replicas;
mod rounds;
mod slow_disk;
mod transfers;
mod trust;
mod waiting;
mod wire;

pub(crate) use agreed_time::ClockProblem;
pub(crate) use answers::Answers;
pub(crate) use checks::run as run_checks;
pub(crate) use clocks::compare_clocks;
pub(crate) use departure::Departure;
pub(crate) use departure_task::run as leave_cluster;
pub(crate) use divergence::Diverged;
pub use handle::{
    Cluster, ClusterError, ClusterPartition, ClusterStatus, Leader, Members, NodeStatusOf, Replica,
};
pub(crate) use join::{Running, join, running};
pub use kept_log::KeptFor;
pub(crate) use members::run;
pub use options::ClusterOptions;
pub(crate) use peers::{Peers, cluster_number};
pub(crate) use replica_watch::{DIFFERING_REMEDY, watch as watch_replicas};
pub(crate) use replicas::Replicas;
pub(crate) use slow_disk::run as give_leaderships_away;
pub use transfers::Fetching;
pub use waiting::ChangeWait;
pub use wire::{Check, CheckOutcome};
pub(crate) use wire::{Joined, READS_SETTINGS_VERSIONS};
