//! A node: its data directory, its partitions, and its operations, without any HTTP.
//!
//! | module | what it holds |
//! |---|---|
//! | `error` | errors of operations and of starts, with the codes of starts |
//! | `clock` | the time that is stamped into commands, and ages |
//! | `blocking`, `signal` | blocking work in async code; waking and ending threads and tasks |
//! | `counters` | counters that are registered at the start |
//! | [`data_dir`] | identity, format version, and the lock that keeps a second process out |
//! | [`recovery`] | from a data directory to running partitions: every source that a start can recover from |
//! | [`snapshots`] | partition snapshots: schedule, uploads, predictions, proofs |
//! | [`options`] | the options of a node |
//! | `latency_window` | how long callers waited for answers lately |
//! | [`cluster`] | the other nodes: who they are, who leads what, how they are reached |
//! | `core` | the parts of a running node that all modules share |
//! | `admission`, `propose`, [`answer`] | what may be in flight, and whose turn it is; proposing a command; waiting for its answer |
//! | `space`, `space_account` | when an append waits for space on the disk, and when it is refused |
//! | `reserve` | a file that takes space, which is released when the disk is full |
//! | [`state`] | the state store: transactions, reads, replay, JSON snapshots |
//! | [`maintenance`] | the threads of `log_keeper` and `retention` |
//! | `log_keeper`, `log_files` | flushing, trimming the log, deleting its files; which files are needed |
//! | `local_snapshot_request` | a local snapshot that is requested to trim the log or to free space |
//! | `retention` | age retention, delete-on-empty, deletion of basins |
//! | `restarts` | restarts that the node requests of its host |
//! | [`node`] | a running node; starting and stopping |
//! | `readiness` | whether appends are taken, and whether the node runs at all |
//! | [`basins`], [`streams`] | operations on basins and streams |
//! | [`lookups`], `change_turns` | turns of lookups of streams, and of changes |
//! | `tokens` | access tokens |
//! | `unknown_basins` | streams whose basin the catalog does not know |
//! | [`position`] | the position of a stream, and the forks that it has passed |
//! | [`append`] | submission of appends |
//! | [`read`], `read_budget` | read sessions: catch up from the database, then follow; their memory |
//! | `shared_ticks` | one timer for all that wait for answers |
//! | `shared_records`, `follower_turns` | what followers of a stream have in common: scans and encoded records; when each is woken |
//!
//! Modules form no cycle: those in layers below `node` work on `core::Inner`, and those above it add methods
//! to [`Node`].
//!
//! Values that are not deterministic (the time, hashes of request tokens, ids of sessions) are stamped here,
//! into commands, before they are proposed.

mod admission;
pub mod answer;
mod append;
pub mod basins;
mod blocking;
mod change_turns;
mod clock;
pub mod cluster;
mod core;
mod counters;
pub mod data_dir;
mod error;
mod follower_turns;
mod latency_window;
mod local_snapshot_request;
mod log_files;
mod log_keeper;
pub mod lookups;
mod maintenance;
pub mod node;
mod options;
pub mod position;
mod problem;
mod propose;
pub mod read;
mod read_ahead;
mod read_budget;
mod read_records;
mod readiness;
pub mod recovery;
mod reserve;
mod restarts;
mod retention;
mod shared_records;
mod shared_ticks;
mod signal;
pub mod snapshots;
mod space;
mod space_account;
mod stages;
mod starts;
pub mod state;
mod stream_list;
pub mod streams;
mod tokens;
mod unknown_basins;
mod upkeep;

pub use admission::{
    Client, FairBudget, FairPermit, FairQueue, NoTurn, Path, SharePolicy, Ticket, Verdict,
};
pub use append::{Ack, AppendSession, PendingAppend};
pub use basins::{BasinInfo, Change, Create};
pub use cluster::{Cluster, ClusterError, ClusterOptions, ClusterStatus, Leader};
pub use error::{Error, START_CODES, StartError};
pub use node::{Node, check_destination};
pub use options::NodeOptions;
pub use position::{Position, RecordCounts};
pub use problem::{ADVICE, HostProblems, Problem};
pub use read::{ReadOutput, ReadSession, WaitsFor};
pub use read_budget::{ReadBudget, ReadPermit};
pub use read_records::{ReadContent, ReadRecords, plain};
pub use readiness::{NOT_READY, NotReady};
pub use recovery::{PartitionRecovery, RecoveryReport, Source, give_up_others};
pub use shared_records::SharedRecords;
pub use snapshots::{
    Bootstrap, CreatedSnapshot, DescribedSnapshot, DestinationOptions, Measured, NodeStatus,
    OnLogFull, PartitionStatus, Prediction, Proof, SnapshotFiles, SnapshotKind, SnapshotOptions,
    SnapshotStatus, SweepStatus,
};
pub use stages::{Stage, Stages};
pub use state::{StateError, StateOptions, StateStore, ValueCheck};
pub use streams::{CreateOn, StreamHandle, StreamListing};
pub use tokens::{Issuer, MAX_ACCESS_TOKENS, NewToken, TokenError, Tokens};
pub use upkeep::UpkeepCounts;

// Types of the crates below that callers need.
pub use esker_partition::ClusterNode;
pub use esker_partition::command::NodeState;
pub use esker_partition::reader::StreamSize;
pub use esker_partition::token::{
    Expiry, NameSet, Names, OPERATIONS, OpGroups, ReadWrite, StoredToken, TokenHash, TokenScope,
};
pub use esker_partition::{Fork, StoreOptions};
pub use esker_partition::{RawContent, RawHeaders, RawRecord, StoredRecords};
pub use esker_raft::engine::panic_is_caught;
pub use esker_raft::priority::shorten_time_slice_once;
pub use esker_raft::transport::grpc::{
    Claim, PeerBody, PeerChannel, PeerRequests, TlsConfig as PeerTls,
};
pub use esker_raft::{GroupStatus, Role};
pub use esker_repository::files::{FilesPage, SharedFile};
pub use esker_repository::inventory::{Inventory, State};
pub use esker_repository::prune::{PruneOptions, PrunePlan, Pruned};
pub use esker_repository::why::{Diff, Why};
pub use esker_repository::{Error as RepositoryError, SnapshotMetadata, Verification};
