//! What a node keeps for its state store.

use esker_partition::state::StateReader;
use esker_partition::store::StoreError;
use esker_partition::{Lineage, PartitionId};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::archive::StateArchive;
use super::files::Files;
use super::imports::Imports;
use super::inventory::Inventory;
use super::progress::Progress;
use super::transactions::Transactions;
use super::types::StateOptions;
use crate::data_dir::Identity;
use crate::snapshots::Archive;

/// What a node keeps for its state store.
pub(crate) struct Shared {
    pub options: StateOptions,
    pub partition: PartitionId,
    pub reader: StateReader,
    pub lineage: Lineage,
    pub transactions: Mutex<Transactions>,
    pub files: Files,
    pub archive: Option<StateArchive>,
    pub inventory: Mutex<Inventory>,
    pub progress: Mutex<Progress>,
    /// Imports that this process makes. Any other that is under way has lost the process that made it.
    pub(super) imports: Imports,
    /// Archived snapshots that are not of this history, as they were last logged.
    pub others_archived: Mutex<Vec<(u64, String)>>,
    pub wake: Notify,
    pub wake_archive: Notify,
}

impl Shared {
    pub fn new(
        options: StateOptions,
        reader: StateReader,
        files: Files,
        archive: Option<StateArchive>,
        identity: &Identity,
    ) -> Result<Shared, StoreError> {
        let transactions =
            Transactions::new(options.clone(), &identity.cluster_id, identity.node_id);
        Ok(Shared {
            partition: reader.partition_db().partition(),
            lineage: reader.partition_db().lineage()?,
            reader,
            transactions: Mutex::new(transactions),
            files,
            archive,
            options,
            inventory: Mutex::default(),
            progress: Mutex::default(),
            imports: Imports::default(),
            others_archived: Mutex::default(),
            wake: Notify::new(),
            wake_archive: Notify::new(),
        })
    }

    /// Where the store's snapshots go outside the data directory, if anywhere.
    pub fn archive_of(options: &StateOptions, archive: &Archive) -> Option<StateArchive> {
        let wanted = options.archive_snapshots && !archive.is_default;
        wanted.then(|| StateArchive::new(archive.destination()))
    }
}
