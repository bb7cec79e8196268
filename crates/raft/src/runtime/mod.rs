//! The default runtime around engines: a node's log writer, its groups with their apply threads,
//! a ticker, and a thread that deletes the log's files which nobody needs.
//!
//! ```text
//!  propose ──▶ [engine, under a lock] ──▶ log writer (1 thread, 1 sync for all groups)
//!                     ▲    │ Apply                 │ Persisted
//!                     │    ▼                       │
//!                     │  apply thread (1 a group)  │
//!                     ├────────┴───────────────────┘
//!                     │        │ begin_snapshot, on a hint or when the host asks
//!                     │        ▼
//!                     └─ snapshot thread (1 a group at most; of a node, so many write at once)
//! ```
//!
//! A group that has others gets some more:
//!
//! ```text
//!  propose ──▶ waiting, while the log syncs ──▶ engine, all at once
//!  transport ═▶ inbox ─▶ engine · FetchSnapshot ─▶ fetch thread (writes) + verifier thread
//!                     └▶ serving ─▶ snapshot-reader thread (1 a node) ─▶ transport, bulk
//!  InstallSnapshot ─▶ apply thread: restore, keep, say so
//! ```
//!
//! An engine has no thread of its own: whoever brings an event steps it, under its lock, and
//! carries out the actions before letting go, so that actions keep their order.

mod apply;
mod config;
mod counts;
mod error;
mod group;
mod in_memory_state;
mod member;
mod node;
mod proposals;
mod queue;
mod rate_limiter;
mod reopening;
mod requests;
mod shared;
mod snapshot_jobs;
mod snapshot_receiver;
mod snapshot_sender;
mod snapshot_task;
mod state_machine;
#[cfg(test)]
mod tests;
mod waiters;

pub use config::{ConfigError, NodeConfig};
pub use counts::{GroupCounters, UnreadCounts};
pub use error::{ChangeError, NodeError, ProposeError};
pub use group::{Group, GroupStatus};
pub use in_memory_state::{InMemory, InMemoryCapture, InMemoryState, Writing, capture_clone};
pub use member::{ClusterInit, GroupOptions};
pub use node::Node;
pub use shared::{Halted, SendToPeers};
pub use state_machine::{
    ApplyError, Capture, RemoveFiles, SnapshotError, SnapshotSink, StateMachine,
};
pub use waiters::Guard;

pub use crate::store::{SnapshotData, SnapshotDir, StoredSnapshot};
