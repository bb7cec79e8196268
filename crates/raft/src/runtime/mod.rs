//! The default runtime around engines: a node's log writer, its groups with their apply threads,
//! and a ticker.
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
//! An engine has no thread of its own: whoever brings an event steps it, under its lock, and
//! carries out the actions before letting go, so that actions keep their order.

mod apply;
mod group;
mod logger;
mod node;
mod queue;
mod snapshots;
mod state_machine;
#[cfg(test)]
mod tests;

pub use group::{Group, GroupStatus, Guard, ProposeError, SendToPeers};
pub(crate) use logger::raft_logger;
pub use node::{Node, NodeConfig, NodeError};
pub use state_machine::{
    ApplyError, Capture, SnapshotData, SnapshotDir, SnapshotError, SnapshotSink, StateMachine,
    StoredSnapshot,
};
