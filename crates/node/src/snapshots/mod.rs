//! Partition snapshots: schedule, uploads, predictions, proofs, status.
//!
//! | module | what it holds |
//! |---|---|
//! | [`options`] | options of snapshots and recovery |
//! | [`local`] | the newest checkpoint of each partition, on this disk |
//! | [`archive`] | the repository, and how checkpoints become snapshots and back |
//! | [`incarnations`], [`destination_file`] | which starts have written to the repository, and which destination it was |
//! | [`failure`] | why the repository takes no snapshots |
//! | [`state`] | what is known of snapshots and of the repository |
//! | [`catalog`] | the entries of the catalog that snapshots of partitions need |
//! | [`load`], [`schedule`] | the load after the newest snapshots; when one is due |
//! | [`root`] | reading and claiming a partition's root |
//! | [`snapshot_job`] | one snapshot: checkpoint, catalog, claim, upload, commit, sweep |
//! | [`uploader`] | the tasks that make snapshots when they are due, and test restores |
//! | [`upload_rate`], [`pacer`] | the rate of uploads, by the latency of appends |
//! | [`scrub_state`] | how far the scrub is |
//! | [`scrub`] | reading the repository at a bounded rate, and repairing it |
//! | [`rates`] | how fast this node is, and predictions |
//! | [`status`], [`problems`] | the status for operators |
//! | [`proof`] | restoring a snapshot into a scratch directory, and comparing it |
//! | [`online`] | operations on the snapshots of a running node |

mod archive;
mod archived_position;
mod catalog;
mod destination_file;
mod failure;
mod incarnations;
mod load;
mod local;
mod online;
mod options;
mod pacer;
mod problems;
mod proof;
mod rates;
mod root;
mod schedule;
mod scrub;
mod scrub_state;
mod snapshot_job;
mod state;
mod status;
mod upload_rate;
mod uploader;

pub(crate) use archive::{Archive, cluster_id, lineage_id, log_tail, restored};
pub(crate) use local::{Fit, LocalSnapshots};
pub use online::DescribedSnapshot;
pub use options::{Bootstrap, DestinationOptions, OnLogFull, SnapshotKind, SnapshotOptions};
pub use rates::{Measured, Prediction};
pub(crate) use rates::{Rates, scan_tells};
pub use schedule::Reason;
pub(crate) use scrub_state::ScrubFile;
pub(crate) use state::Snapshots;
pub use state::{CreatedSnapshot, Proof};
pub(crate) use status::publish;
pub use status::{NodeStatus, PartitionStatus, SnapshotStatus};
pub(crate) use uploader::Uploader;
