//! Operations on basins.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use esker_partition::command::{
    self, DeleteBasin, Kind, Mode, Outcome, ProvisionBasin, ProvisionRefusal, SetBasinSettings,
    SettingsSet,
};
use esker_partition::settings::BasinSettings;
use esker_partition::{Basin, BasinId, STATE_BASIN, STATE_BASIN_ID};
use s2_common::config::{BasinConfig, BasinReconfiguration};
use xxhash_rust::xxh3::xxh3_128;

use crate::clock::now_ms;
use crate::error::{Error, changeable, unexpected};
use crate::node::Node;

/// How often a change of settings is retried when another request has changed them first.
pub(crate) const CHANGE_ATTEMPTS: usize = 16;

/// How long a deletion waits until all partitions of a cluster have dropped the basin: they do within a round of
/// retention.
const DROP_TIMEOUT: Duration = Duration::from_secs(4);
/// How often it looks.
const DROP_INTERVAL: Duration = Duration::from_millis(10);

/// What to do if the basin or stream exists.
#[derive(Clone, Debug)]
pub enum Create {
    /// Return an error, unless it was created by a request with this token and the same settings.
    Only {
        /// The request token.
        token: Option<String>,
    },
    /// Replace its settings with the given ones.
    Ensure,
}

impl Create {
    pub(crate) fn mode(&self) -> Mode {
        match self {
            Create::Only { .. } => Mode::CreateOnly,
            Create::Ensure => Mode::Ensure,
        }
    }

    /// Hash of the token and of the requested settings.
    pub(crate) fn request_hash(&self, settings: &impl prost::Message) -> Vec<u8> {
        match self {
            Create::Only { token: Some(token) } => {
                let mut bytes = (token.len() as u64).to_be_bytes().to_vec();
                bytes.extend_from_slice(token.as_bytes());
                bytes.extend_from_slice(&settings.encode_to_vec());
                xxh3_128(&bytes).to_be_bytes().to_vec()
            }
            _ => Vec::new(),
        }
    }
}

/// What provisioning changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was created.
    Created,
    /// Its settings were changed.
    Updated,
    /// Nothing was changed.
    Nothing,
}

impl From<command::Change> for Change {
    fn from(change: command::Change) -> Self {
        match change {
            command::Change::Created => Change::Created,
            command::Change::Updated => Change::Updated,
            command::Change::Nothing => Change::Nothing,
        }
    }
}

/// A basin.
#[derive(Clone, Debug)]
pub struct BasinInfo {
    /// Its name.
    pub name: String,
    /// When it was created, in milliseconds since the epoch.
    pub created_ms: u64,
    /// When its deletion began, in milliseconds since the epoch; `None` if it is not being deleted.
    pub deleted_ms: Option<u64>,
}

impl From<&Basin> for BasinInfo {
    fn from(basin: &Basin) -> Self {
        BasinInfo {
            name: basin.name.clone(),
            created_ms: basin.created_ms,
            deleted_ms: basin.deleted_ms,
        }
    }
}

/// Converts the catalog's answer to a request for a basin of this name.
pub(crate) fn provisioned(name: &str, outcome: Outcome) -> Result<(Change, BasinInfo), Error> {
    match outcome {
        Outcome::BasinProvisioned(Ok(done)) => Ok((
            done.change.into(),
            BasinInfo {
                name: name.to_owned(),
                created_ms: done.created_ms,
                deleted_ms: None,
            },
        )),
        Outcome::BasinProvisioned(Err(ProvisionRefusal::Exists)) => {
            Err(Error::BasinExists(name.to_owned()))
        }
        Outcome::BasinProvisioned(Err(ProvisionRefusal::BasinDropped)) => {
            Err(Error::BasinDeletionPending(name.to_owned()))
        }
        other => Err(unexpected(&other)),
    }
}

impl Node {
    /// Basins in the order of their names, and whether there are more.
    pub fn list_basins(
        &self,
        prefix: &str,
        start_after: &str,
        limit: usize,
    ) -> (Vec<BasinInfo>, bool) {
        let found = self
            .inner
            .catalog_reader
            .list(prefix, start_after, limit + 1);
        let more = found.len() > limit;
        let basins = found
            .iter()
            .take(limit)
            .map(|basin| BasinInfo::from(basin.as_ref()))
            .collect();
        (basins, more)
    }

    /// Creates a basin, or makes sure that it exists.
    pub async fn provision_basin(
        &self,
        name: &str,
        config: &BasinConfig,
        create: &Create,
    ) -> Result<(Change, BasinInfo), Error> {
        let settings = BasinSettings::from(config);
        let command = ProvisionBasin {
            name: name.to_owned(),
            request_hash: create.request_hash(&settings),
            settings,
            mode: create.mode() as i32,
            at_ms: now_ms(),
            id: 0,
        };
        let inner = &self.inner;
        let outcome = inner
            .execute(&inner.catalog, Kind::ProvisionBasin(command))
            .await?;
        provisioned(name, outcome)
    }

    /// The settings of a basin.
    pub fn basin_config(&self, name: &str) -> Result<BasinConfig, Error> {
        Ok(self.any_basin(name)?.config.clone())
    }

    /// Changes settings of a basin; returns the new settings.
    pub async fn reconfigure_basin(
        &self,
        name: &str,
        changes: &BasinReconfiguration,
    ) -> Result<BasinConfig, Error> {
        let inner = &self.inner;
        for _ in 0..CHANGE_ATTEMPTS {
            let basin = self.basin(name)?;
            changeable(&basin)?;
            let config = basin.config.clone().reconfigure(changes.clone());
            let command = SetBasinSettings {
                name: name.to_owned(),
                if_version: basin.settings_version,
                settings: BasinSettings::from(&config),
            };
            let outcome = inner
                .execute(&inner.catalog, Kind::SetBasinSettings(command))
                .await?;
            match outcome {
                Outcome::SettingsSet(SettingsSet::Done) => return Ok(config),
                Outcome::SettingsSet(SettingsSet::Conflict | SettingsSet::Gone) => {}
                other => return Err(unexpected(&other)),
            }
        }
        Err(Error::Conflict)
    }

    /// Begins to delete a basin: from now on it cannot be used, and its name is free once every partition
    /// has dropped it.
    pub async fn delete_basin(&self, name: &str) -> Result<(), Error> {
        if name == STATE_BASIN {
            return Err(Error::ReadOnly(name.to_owned()));
        }
        let command = DeleteBasin {
            name: name.to_owned(),
            at_ms: now_ms(),
        };
        let inner = &self.inner;
        let outcome = inner
            .execute(&inner.catalog, Kind::DeleteBasin(command))
            .await?;
        match outcome {
            Outcome::BasinDeleted(Some(basin)) => {
                self.wake_maintenance();
                self.dropped_everywhere(basin).await
            }
            Outcome::BasinDeleted(None) => Err(Error::BasinNotFound(name.to_owned())),
            other => Err(unexpected(&other)),
        }
    }

    /// In a cluster, waits until each partition has dropped a basin: only from then on is every append to it refused,
    /// whichever node leads the partition, and however late that one learns of what the catalog has. The replicas here
    /// show it.
    async fn dropped_everywhere(&self, basin: BasinId) -> Result<(), Error> {
        let inner = &self.inner;
        if inner.peers.is_none() {
            return Ok(());
        }
        let deadline = Instant::now() + DROP_TIMEOUT;
        loop {
            let mut partitions = inner.partitions.iter();
            let late = partitions.find(|partition| !partition.reader.is_dropped(basin));
            let is_forgotten = || {
                !inner
                    .catalog_reader
                    .deleting()
                    .iter()
                    .any(|it| it.id == basin)
            };
            let Some(late) = late.filter(|_| !is_forgotten()) else {
                return Ok(());
            };
            if Instant::now() >= deadline {
                return Err(Error::Unknown(format!(
                    "the basin is being deleted, and partition {} has not dropped it within {} s: it may still take \
                     appends; delete it again to know when it is done",
                    late.group.id(),
                    DROP_TIMEOUT.as_secs()
                )));
            }
            tokio::time::sleep(DROP_INTERVAL).await;
        }
    }

    /// A basin that is in use.
    pub(crate) fn basin(&self, name: &str) -> Result<Arc<Basin>, Error> {
        let basin = self.any_basin(name)?;
        if basin.deleted_ms.is_some() {
            return Err(Error::BasinDeletionPending(name.to_owned()));
        }
        Ok(basin)
    }

    /// A basin, even if it is being deleted.
    pub(crate) fn any_basin(&self, name: &str) -> Result<Arc<Basin>, Error> {
        if name == STATE_BASIN {
            return Ok(state_basin());
        }
        self.inner
            .catalog_reader
            .basin(name)
            .ok_or_else(|| Error::BasinNotFound(name.to_owned()))
    }
}

/// The basin of the state store's commits. It has no entry in the catalog, and always exists.
fn state_basin() -> Arc<Basin> {
    static BASIN: LazyLock<Arc<Basin>> = LazyLock::new(|| {
        Arc::new(Basin {
            id: STATE_BASIN_ID,
            name: STATE_BASIN.to_owned(),
            config: BasinConfig::default(),
            settings_version: 0,
            created_ms: 0,
            deleted_ms: None,
        })
    });
    BASIN.clone()
}
