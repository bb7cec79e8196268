//! The files of a snapshot, page by page, with the kept snapshots that share them.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::metadata::SnapshotMetadata;
use crate::repository::Repository;
use crate::root::Root;

/// Snapshots that are named of those that share a file.
const MAX_NAMED: usize = 3;

/// Some files of a snapshot.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FilesPage {
    /// In the order of the description.
    pub files: Vec<SharedFile>,
    /// How many files come before the next page; absent if there is none.
    pub next: Option<u64>,
    /// Kept snapshots whose description cannot be used. They may share files, too.
    pub undescribed: Vec<String>,
}

/// A file of a snapshot, and who shares it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SharedFile {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub size: u64,
    /// Its level in RocksDB's tree.
    pub level: i32,
    /// The key of the object that has its content, below the partition.
    pub key: String,
    /// How many other kept snapshots have a file with this object.
    pub shared_by: u64,
    /// Some of them, the newest first.
    pub sharers: Vec<String>,
}

impl Repository {
    /// The files of a kept snapshot from one on, and which of the others that a root keeps share them.
    ///
    /// # Errors
    ///
    /// A description could not be read. One that is damaged or missing is no error: see
    /// [`FilesPage::undescribed`].
    pub async fn files(
        &self,
        root: &Root,
        metadata: &SnapshotMetadata,
        skip: usize,
        limit: usize,
    ) -> Result<FilesPage, Error> {
        let all = metadata.files.len();
        let files = metadata.files.iter().skip(skip).take(limit);
        let mut page = FilesPage {
            files: files
                .map(|file| SharedFile {
                    name: file.name.clone(),
                    size: file.size,
                    level: file.level,
                    key: metadata.key_of(file),
                    shared_by: 0,
                    sharers: Vec::new(),
                })
                .collect(),
            next: None,
            undescribed: Vec::new(),
        };
        let end = skip.saturating_add(page.files.len());
        page.next = (end < all).then_some(end as u64);
        let mut sharers: HashMap<String, (u64, Vec<String>)> = HashMap::new();
        for file in &page.files {
            sharers.insert(file.key.clone(), Default::default());
        }
        let own = metadata.dir();
        for dir in root.kept().iter().filter(|dir| **dir != own) {
            let other = match self.describe(dir).await {
                Ok(other) => other,
                Err(Error::OtherCluster { .. } | Error::NewerFormat { .. }) => {
                    page.undescribed.push(dir.to_string());
                    continue;
                }
                Err(error) if error.is_damage() => {
                    page.undescribed.push(dir.to_string());
                    continue;
                }
                Err(error) => return Err(error),
            };
            // Several files of one snapshot may have the same object.
            let mut counted = std::collections::HashSet::new();
            for file in &other.files {
                let key = other.key_of(file);
                if let Some((count, named)) = sharers.get_mut(&key)
                    && counted.insert(key)
                {
                    *count += 1;
                    if named.len() < MAX_NAMED {
                        named.push(dir.to_string());
                    }
                }
            }
        }
        for file in &mut page.files {
            if let Some((count, named)) = sharers.get(&file.key) {
                (file.shared_by, file.sharers) = (*count, named.clone());
            }
        }
        Ok(page)
    }
}
