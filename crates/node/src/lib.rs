//! A node: its data directory, its partitions, and what they can do, without any HTTP.
//!
//! | module | what it holds |
//! |---|---|
//! | [`data_dir`] | identity, format version, and the lock that keeps a second process out |
//! | [`recovery`] | from a data directory to running partitions: every way back |
//! | [`snapshots`] | partition snapshots: when, where to, what they are good for |
//! | [`node`] | a running node; starting and stopping |
//! | [`basins`], [`streams`] | what callers can ask for |
//! | `unknown_basins` | streams whose basin the catalog does not know |
//! | [`position`] | where a stream stands, and which forks it has seen |
//! | [`append`] | admission and submission of appends |
//! | [`read`] | read sessions: catch up from the database, then follow |
//! | `read_budget` | memory of all read sessions together |
//! | [`state`] | the state store: transactions, reads, replay, JSON snapshots |
//! | `space` | when an append waits for space on the disk, and when it is refused |
//! | [`upkeep`] | flushing, log compaction, retention, deletion of basins |
//!
//! What is not deterministic (the time, hashes of request tokens, ids of sessions) is stamped here,
//! into commands, before they are proposed.

pub mod answer;
mod append;
pub mod basins;
mod clock;
mod counters;
pub mod data_dir;
mod error;
mod local_snapshot_request;
mod log_files;
pub mod maintenance;
pub mod node;
pub mod position;
pub mod read;
mod read_budget;
pub mod recovery;
mod reserve;
mod restarts;
mod retention;
pub mod snapshots;
mod space;
pub mod state;
pub mod streams;
mod unknown_basins;

pub use append::{Ack, AppendSession, PendingAppend};
pub use basins::{BasinInfo, Change, Create};
pub use error::{Error, START_CODES, StartError};
pub use node::{Node, NodeOptions, check_destination};
pub use position::Position;
pub use read::{ReadOutput, ReadSession};
pub use read_budget::{ReadBudget, ReadPermit};
pub use recovery::{PartitionRecovery, RecoveryReport, Source};
pub use snapshots::{
    Bootstrap, CreatedSnapshot, DescribedSnapshot, DestinationOptions, Measured, NodeStatus,
    OnLogFull, PartitionStatus, Prediction, Problem, Proof, SnapshotKind, SnapshotOptions,
    SnapshotStatus,
};
pub use state::{StateError, StateOptions, StateStore, ValueCheck};
pub use streams::{CreateOn, StreamHandle, StreamListing};

// What callers need of the modules below.
pub use esker_partition::{Fork, StoreOptions};
pub use esker_raft::{GroupStatus, Role};
pub use esker_repository::inventory::{Inventory, State};
pub use esker_repository::prune::{PruneOptions, PrunePlan, Pruned};
pub use esker_repository::why::{Diff, Why};
pub use esker_repository::{Error as RepositoryError, SnapshotMetadata, Verification};
