//! The default runtime around engines: a node's log writer, its groups with their apply threads, a ticker,
//! and a thread that deletes files of the log that no group needs.
//!
//! ```text
//!  propose ──▶ [engine, under a lock] ──▶ log writer (1 thread, 1 sync for all groups)
//!                     ▲    │ Apply                 │ Persisted
//!                     │    ▼                       │
//!                     │  apply thread (1 a group)  │
//!                     ├────────┴───────────────────┘
//!                     │        │ begin_snapshot, on a hint or when the host asks
//!                     │        ▼
//!                     └─ snapshot thread (at most 1 a group; `parallel_snapshots` of a node write at once)
//! ```
//!
//! A group with other members has more threads:
//!
//! ```text
//!  propose ──▶ waiting, while the log syncs ──▶ engine, all at once
//!  transport ═▶ inbox ─▶ engine · FetchSnapshot ─▶ fetch thread (writes) + verifier thread
//!                     └▶ snapshot sender ─▶ snapshot-reader thread (1 a node) ─▶ transport, bulk
//!  InstallSnapshot ─▶ apply thread: restore, keep, SnapshotInstalled
//! ```
//!
//! An engine has no thread of its own. A thread that has an event takes the engine's lock, steps the engine
//! and carries out the actions before it releases the lock, so actions keep their order. A thread that serves all
//! groups puts its event into the group's mailbox, and steps it only if the engine is free; role, leader and position
//! are read without the lock (`view`). A step does not read the log: `log_fetcher` does. So a slow disk, or one busy
//! group, holds up no other group, and no request that only looks at a group.
//!
//! Roles of the modules, from the bottom up: `config`, `error`, `state_machine` are what a host sees and
//! brings. `incarnation` numbers the starts. `sequence`, `queue`, `mailbox`, `view`, `log_fetcher`, `proposals`,
//! `waiters`, `requests`, `counts`, `reopening`, `snapshot_jobs` each hold one part of a group's state.
//! `snapshot_sender` and `snapshot_receiver` drive the two sides of a
//! transfer; `member` joins them for one group. `shared` is a group's engine and all of its state; `apply`
//! and `snapshot_task` are threads that use it; `group` and `node` are the handles of the host.
//!
//! The runtime knows no storage engine and nothing of what a command means.

mod apply;
mod config;
mod counts;
mod error;
mod group;
mod in_memory_state;
mod incarnation;
mod log_fetcher;
mod mailbox;
mod member;
mod node;
mod proposals;
mod queue;
mod rate_limiter;
mod reopening;
mod requests;
mod sequence;
mod shared;
mod snapshot_jobs;
mod snapshot_receiver;
mod snapshot_sender;
mod snapshot_task;
mod state_machine;
#[cfg(test)]
mod tests;
mod view;
mod waiters;

pub use config::{ConfigError, NodeConfig};
pub use counts::{GroupCounters, UnreadCounts};
pub use error::{ChangeError, NodeError, ProposeError};
pub use group::{CHANGE_TIMEOUTS, Group, GroupStatus};
pub use in_memory_state::{InMemory, InMemoryCapture, InMemoryState, Writing, capture_clone};
pub use member::{ClusterInit, GroupOptions};
pub use node::Node;
pub use sequence::Sequence;
pub use shared::{Halted, SendToPeers};
pub use state_machine::{
    ApplyError, Capture, MAINTENANCE_INTERVAL, RemoveFiles, SnapshotError, SnapshotSink,
    StateMachine,
};
#[cfg(test)]
pub(crate) use waiters::{Answer, Waiter, Waiters};
pub use waiters::{Attached, Guard, Observer};

pub use crate::store::{SnapshotData, SnapshotDir, StoredSnapshot};
