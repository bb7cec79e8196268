//! Consensus, and the durable log that all groups of a node share.
//!
//! A *group* is one replicated state machine. Consensus is TiKV's `raft` crate and the durable log is
//! TiKV's `raft-engine`. This crate is the layer above them:
//!
//! | module | what it holds | what it must never know |
//! |---|---|---|
//! | [`engine`] | the sans-IO façade: `Engine::step(Event) -> Vec<Action>` | clocks, threads, disks |
//! | [`message`] | the messages between members, and which are accepted | what they lead to |
//! | [`transfer`] | how a checkpoint gets to a peer, without I/O | disks, sockets, consensus |
//! | [`log`] | one log per node: inspection before the open, group commit, compaction | what an entry means |
//! | [`store`] | snapshots on disk: complete ones, and one that is being fetched | threads, consensus |
//! | [`transport`] | how messages get from node to node: in memory, over gRPC | what messages mean |
//! | [`priority`] | the priority of threads whose work can wait, and of those that clients wait for | whose they are |
//! | [`runtime`] | the default runtime: writer thread, apply threads, snapshots, ticker | storage engines |
//!
//! The path of a proposal:
//!
//! ```text
//! Group::propose ─▶ Engine ─Persist▶ log writer ─(one sync for all groups)─▶ Engine
//!                                                                             │ Apply
//!                       answer ◀── state machine (apply thread of the group) ◀┘
//! ```
//!
//! To host a state machine, start with the [`guide`]. No public type contains one of `raft` or `protobuf`.
//!
//! The modules form layers. From the bottom up: `ids`, `limits`, `membership`, `logger`, [`priority`]; [`transfer`];
//! [`message`]; `drops`; [`engine`]; [`store`] and [`transport`]; [`log`]; [`runtime`]. A module uses only
//! those before it.

mod drops;
pub mod engine;
#[doc = include_str!("../GUIDE.md")]
pub mod guide {}
mod ids;
mod limits;
pub mod log;
mod logger;
mod membership;
pub mod message;
pub mod priority;
pub mod runtime;
#[cfg(test)]
mod simulation;
pub mod store;
pub mod transfer;
pub mod transport;

pub use engine::{
    Action, Committed, Engine, Event, KeptForAbsent, Membership, MembershipChange, RejectReason,
    Role, VoterChange,
};
pub use ids::{CheckpointId, ClusterId, GroupId, Incarnation, Lineage, Lsn, NodeId, Term};
pub use message::Envelope;
pub use runtime::{
    ApplyError, Attached, Capture, ChangeError, ClusterInit, ConfigError, Group, GroupCounters,
    GroupOptions, GroupStatus, Guard, Halted, InMemory, InMemoryState, MAINTENANCE_INTERVAL, Node,
    NodeConfig as Config, NodeError, Observer, ProposeError, RemoveFiles, Sequence, SnapshotData,
    SnapshotDir, SnapshotError, SnapshotSink, StateMachine, StoredSnapshot, UnreadCounts, Writing,
    capture_clone,
};
pub use transport::Transport;
