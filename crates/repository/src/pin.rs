//! Pins: entries of a root that protect a snapshot while a restore reads it, so that no sweep deletes it.
//!
//! A swap may only pin a snapshot that is retained, pinned or abandoned in the root that it replaces. A pin
//! is effective while it is in the root; after its expiry a sweep may remove it.

use serde_json::Map;
use time::OffsetDateTime;

use crate::error::Error;
use crate::layout::{ROOT, SnapshotDir};
use crate::repository::{Change, Repository};
use crate::root::{Pin, Root};
use crate::store::Store;

/// Maximum number of pins of a root. Each is a restore under way.
const MAX_PINS: usize = 1000;

impl Repository {
    /// Pins a snapshot, and returns the pin's id. [`Error::NoSnapshot`] if the snapshot is not kept any
    /// more.
    pub async fn pin(&self, dir: &SnapshotDir) -> Result<String, Error> {
        let store = self.store.operation();
        let id = format!("{:016x}{:016x}", store.env().random(), store.env().random());
        self.put_pin(&store, &id, dir).await?;
        Ok(id)
    }

    /// Extends a pin. A pin that was removed meanwhile is put again. [`Error::NoSnapshot`] if the snapshot
    /// is not kept any more.
    pub async fn renew_pin(&self, id: &str, dir: &SnapshotDir) -> Result<(), Error> {
        self.put_pin(&self.store.operation(), id, dir).await
    }

    async fn put_pin(&self, store: &Store, id: &str, dir: &SnapshotDir) -> Result<(), Error> {
        let expires_at: OffsetDateTime = store.env().now() + self.options.pin_for;
        let path = dir.to_string();
        let holds = |root: &Root| {
            root.pins
                .iter()
                .any(|p| p.id == id && p.path == path && p.expires_at == expires_at)
        };
        self.swap_with(
            store,
            None,
            |root| {
                if !root.kept().contains(dir) {
                    return Err(Error::NoSnapshot(path.clone()));
                }
                let mut next = root.clone();
                next.pins.retain(|p| p.id != id);
                if next.pins.len() >= MAX_PINS {
                    return Err(Error::Invalid(format!(
                        "{} has {MAX_PINS} pins, and takes no more; a sweep removes expired ones",
                        store.display_url(ROOT)
                    )));
                }
                next.pins.push(Pin {
                    id: id.to_owned(),
                    path: path.clone(),
                    expires_at,
                    extra: Map::new(),
                });
                Ok(Change::To(Box::new(next)))
            },
            holds,
        )
        .await?;
        Ok(())
    }

    /// Removes a pin, if it is there.
    pub async fn unpin(&self, id: &str) -> Result<(), Error> {
        let store = self.store.operation();
        let is_gone = |root: &Root| root.pins.iter().all(|p| p.id != id);
        self.swap_with(
            &store,
            None,
            |root| {
                if is_gone(root) {
                    return Ok(Change::Nothing);
                }
                let mut next = root.clone();
                next.pins.retain(|p| p.id != id);
                Ok(Change::To(Box::new(next)))
            },
            is_gone,
        )
        .await?;
        Ok(())
    }
}
