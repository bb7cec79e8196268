//! Consensus, and the durable log that all groups of a node share.
//!
//! A *group* is one replicated state machine. Consensus itself is TiKV's `raft` crate and the
//! durable log is TiKV's `raft-engine`; what is here is the layer above them:
//!
//! | room | what it holds | what it must never know |
//! |---|---|---|
//! | [`engine`] | the sans-IO façade: `Engine::step(Event) -> Vec<Action>` | clocks, threads, disks |
//! | [`log`] | one log per node: look before open, group commit, compaction | what an entry means |
//! | [`runtime`] | the default runtime: writer thread, apply threads, snapshots, ticker | HTTP, storage engines |
//!
//! The way of a proposal:
//!
//! ```text
//! Group::propose ─▶ Engine ─Persist▶ log writer ─(one sync for all groups)─▶ Engine
//!                                                                             │ Apply
//!                       answer ◀── state machine (apply thread of the group) ◀┘
//! ```
//!
//! Types of `raft` and `protobuf` do not leave this crate.

pub mod engine;
mod ids;
pub mod log;
pub mod runtime;

pub use engine::{Action, Committed, Engine, Event, Membership, RejectReason, Role};
pub use ids::{GroupId, Lsn, NodeId, Term};
pub use runtime::{
    ApplyError, Capture, Group, GroupStatus, Node, ProposeError, SnapshotData, SnapshotDir,
    SnapshotError, SnapshotSink, StateMachine, StoredSnapshot,
};
