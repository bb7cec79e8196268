//! Partition snapshots: when they are taken, where they go, what they are good for.
//!
//! | module | what it holds |
//! |---|---|
//! | [`local`] | the newest checkpoint of each partition, on this disk |
//! | [`archive`] | the repository, and how checkpoints become snapshots and back |
//! | [`incarnations`], [`destination_file`] | what this directory remembers of the repository: who writes, and which it was |
//! | [`failure`] | why the repository takes no snapshots |
//! | [`catalog`] | what snapshots of partitions need of the catalog |
//! | [`schedule`] | when one is put into the repository |
//! | [`load`] | what came after the newest snapshots, which decides whether one is due |
//! | [`uploader`] | the task that looks whether one is due |
//! | [`snapshot_job`] | making one: checkpoint, catalog, claim, upload, commit, sweep |
//! | [`state`] | what is known of a partition's repository |
//! | [`root`] | reading and claiming a partition's root |
//! | [`rates`] | how fast this node is |
//! | [`status`], [`problems`] | what an operator wants to know |
//! | [`proof`] | restoring into a scratch directory, and comparing |
//! | [`online`] | what the commands for snapshots ask of a running node |

mod archive;
mod catalog;
mod destination_file;
mod failure;
mod incarnations;
mod load;
mod local;
mod online;
mod options;
mod problems;
mod proof;
mod rates;
mod root;
mod schedule;
mod snapshot_job;
mod state;
mod status;
mod uploader;

pub(crate) use archive::{Archive, cluster_id, lineage_id, log_tail, restored};
pub(crate) use local::LocalSnapshots;
pub use online::DescribedSnapshot;
pub use options::{Bootstrap, DestinationOptions, OnLogFull, SnapshotKind, SnapshotOptions};
pub use rates::{Measured, Prediction};
pub(crate) use rates::{Rates, scan_tells};
pub use schedule::Reason;
pub(crate) use state::Snapshots;
pub use state::{CreatedSnapshot, Proof};
pub(crate) use status::publish;
pub use status::{NodeStatus, PartitionStatus, Problem, SnapshotStatus};
pub(crate) use uploader::Uploader;
