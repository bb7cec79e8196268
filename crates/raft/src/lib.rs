//! Consensus, and the durable log that all groups of a node share.
//!
//! A *group* is one replicated state machine. Consensus itself is TiKV's `raft` crate and the
//! durable log is TiKV's `raft-engine`; what is here is the layer above them:
//!
//! | module | what it holds | what it must never know |
//! |---|---|---|
//! | [`engine`] | the sans-IO façade: `Engine::step(Event) -> Vec<Action>` | clocks, threads, disks |
//! | [`message`] | what members say to each other, and who is heard | what comes of it |
//! | [`transfer`] | how a checkpoint gets to a peer, without I/O | disks, sockets, consensus |
//! | [`log`] | one log per node: look before open, group commit, compaction | what an entry means |
//! | [`store`] | snapshots on disk: stored whole, fetched in parts | threads, consensus |
//! | [`transport`] | how messages get from node to node: in memory, over gRPC | what they mean |
//! | [`runtime`] | the default runtime: writer thread, apply threads, snapshots, ticker | storage engines |
//!
//! The way of a proposal:
//!
//! ```text
//! Group::propose ─▶ Engine ─Persist▶ log writer ─(one sync for all groups)─▶ Engine
//!                                                                             │ Apply
//!                       answer ◀── state machine (apply thread of the group) ◀┘
//! ```
//!
//! To host a state machine, start with the [`guide`]. Types of `raft` and `protobuf` do not leave this
//! crate.

pub mod engine;
#[doc = include_str!("../GUIDE.md")]
pub mod guide {}
mod ids;
mod limits;
pub mod log;
mod logger;
mod membership;
pub mod message;
pub mod runtime;
#[cfg(test)]
mod simulation;
pub mod store;
pub mod transfer;
pub mod transport;

pub use engine::{
    Action, Committed, Engine, Event, Membership, MembershipChange, RejectReason, Role,
};
pub use ids::{CheckpointId, ClusterId, GroupId, Incarnation, Lineage, Lsn, NodeId, Term};
pub use message::Envelope;
pub use runtime::{
    ApplyError, Capture, ChangeError, ClusterInit, ConfigError, Group, GroupCounters, GroupOptions,
    GroupStatus, Halted, InMemory, InMemoryState, Node, NodeConfig as Config, NodeError,
    ProposeError, RemoveFiles, SnapshotData, SnapshotDir, SnapshotError, SnapshotSink,
    StateMachine, StoredSnapshot, UnreadCounts, Writing, capture_clone,
};
pub use transport::Transport;
