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
//! | [`uploader`] | the task that does it, and what is known of the repository |
//! | [`rates`] | how fast this node is |
//! | [`status`] | what an operator wants to know |
//! | [`proof`] | restoring into a scratch directory, and comparing |
//! | [`online`] | what the commands for snapshots ask of a running node |

mod archive;
mod catalog;
mod destination_file;
mod failure;
mod incarnations;
mod local;
mod online;
mod options;
mod proof;
mod rates;
mod schedule;
mod status;
mod uploader;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;

pub(crate) use archive::{Archive, cluster_id, lineage_id, log_tail, restored};
pub(crate) use local::LocalSnapshots;
pub use online::DescribedSnapshot;
pub use options::{Bootstrap, DestinationOptions, OnLogFull, SnapshotKind, SnapshotOptions};
pub use proof::Proof;
pub use rates::{Measured, Prediction};
pub(crate) use rates::{Rates, scan_tells};
pub use schedule::Reason;
pub(crate) use status::publish;
pub use status::{NodeStatus, PartitionStatus, Problem, SnapshotStatus};
pub use uploader::CreatedSnapshot;
pub(crate) use uploader::Uploader;

use crate::data_dir::Identity;
use crate::recovery::RecoveryReport;

/// What a node knows about its snapshots.
#[derive(Debug)]
pub(crate) struct Snapshots {
    pub archive: Archive,
    pub local: Arc<LocalSnapshots>,
    pub rates: Rates,
    pub identity: Identity,
    /// What is known of the repository, by partition.
    pub known: Vec<Mutex<uploader::RepositoryState>>,
    /// The last LSN, by partition, up to which all basins that its streams need are in the repository;
    /// 0 until that is known.
    pub named: Vec<AtomicU64>,
    /// Wakes the uploader.
    pub wake: tokio::sync::Notify,
    recovery: Mutex<Option<Arc<RecoveryReport>>>,
}

impl Snapshots {
    pub fn new(
        archive: Archive,
        local: Arc<LocalSnapshots>,
        rates: Rates,
        identity: &Identity,
    ) -> Snapshots {
        Snapshots {
            archive,
            local,
            rates,
            identity: identity.clone(),
            known: (0..=identity.partitions)
                .map(|_| Mutex::default())
                .collect(),
            named: (0..=identity.partitions)
                .map(|_| AtomicU64::new(0))
                .collect(),
            wake: tokio::sync::Notify::new(),
            recovery: Mutex::new(None),
        }
    }

    /// What the last start did.
    pub fn recovered(&self, report: RecoveryReport) {
        *self.recovery.lock() = Some(Arc::new(report));
    }

    pub fn recovery(&self) -> Option<Arc<RecoveryReport>> {
        self.recovery.lock().clone()
    }
}
