//! Streams whose basin the catalog does not know.
//!
//! Streams are found by the id of their basin, and basins are in another partition. After a restore that
//! used an older snapshot of the catalog than of a stream partition, there may be streams without their
//! basin: no request can name them. They are found at the start and reported, and can be used again as soon
//! as a basin of that id is created.

use esker_partition::command::{Kind, Mode, ProvisionBasin};
use esker_partition::settings::BasinSettings;
use esker_partition::{BasinId, STATE_BASIN_ID};
use s2_common::config::BasinConfig;

use crate::basins::{BasinInfo, provisioned};
use crate::clock::now_ms;
use crate::core::{Inner, UnknownBasin};
use crate::error::Error;
use crate::node::Node;

/// Most streams of a basin that are counted in a partition.
const MAX_COUNTED: usize = 1000;

impl Inner {
    /// Finds the basins of streams that the catalog does not know. To be called before anything is served.
    pub(crate) fn find_unknown_basins(&self) -> Result<Vec<UnknownBasin>, Error> {
        let forgotten = self.catalog_reader.forgotten()?;
        let mut unknown: Vec<UnknownBasin> = Vec::new();
        for partition in &self.partitions {
            let reader = &partition.reader;
            for id in reader.basins()? {
                let is_known = id == STATE_BASIN_ID || self.catalog_reader.has(id);
                if is_known || forgotten.contains(&id) {
                    continue;
                }
                let streams = reader.list(id, "", "", MAX_COUNTED)?;
                let Some(first) = streams.first() else {
                    continue;
                };
                let number = reader.partition().0;
                match unknown.iter_mut().find(|one| one.id == id.0) {
                    Some(one) => {
                        one.partitions.push(number);
                        one.streams += streams.len();
                    }
                    None => unknown.push(UnknownBasin {
                        id: id.0,
                        partitions: vec![number],
                        streams: streams.len(),
                        example: first.name.clone(),
                    }),
                }
            }
        }
        for one in &unknown {
            tracing::warn!(
                basin = one.id,
                streams = one.streams,
                example = one.example,
                "the catalog does not know the basin of streams that are there: \
                 esker stream adopt makes it again"
            );
        }
        Ok(unknown)
    }

    /// The basins that are still unknown.
    pub(crate) fn unknown_basins(&self) -> Vec<UnknownBasin> {
        let found = self.unknown_basins.lock();
        let mut left = found.clone();
        drop(found);
        left.retain(|one| !self.catalog_reader.has(BasinId(one.id)));
        left
    }
}

impl Node {
    /// Creates a basin again of which only the streams are left: it gets their basin's id, and has them as
    /// they were. Its settings are the defaults.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if no stream is without a basin of this id, [`Error::BasinExists`] and
    /// [`Error::BasinDeletionPending`] if another basin has the name or the id.
    pub async fn adopt_basin(&self, name: &str, id: u64) -> Result<BasinInfo, Error> {
        let inner = &self.inner;
        let found = inner.unknown_basins.lock().iter().any(|one| one.id == id);
        if !found {
            return Err(Error::Invalid(format!(
                "no streams are without their basin {id}: `esker status` names those that are"
            )));
        }
        let command = ProvisionBasin {
            name: name.to_owned(),
            settings: BasinSettings::from(&BasinConfig::default()),
            mode: Mode::Ensure as i32,
            at_ms: now_ms(),
            id,
            ..ProvisionBasin::default()
        };
        let outcome = inner
            .execute(&inner.catalog, Kind::ProvisionBasin(command))
            .await?;
        let (_, basin) = provisioned(name, outcome)?;
        Ok(basin)
    }
}
