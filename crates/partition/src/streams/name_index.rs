//! The index of streams by their names.

use crate::ids::{BasinId, StreamId};
use crate::keys;
use crate::store::{PartitionDb, StoreError};

/// The entry of a name: the stream's id, and when it was created, in milliseconds since the epoch.
pub(crate) fn name_entry(
    part: &PartitionDb,
    basin: BasinId,
    name: &str,
) -> Result<Option<(StreamId, u64)>, StoreError> {
    part.get_ids(keys::stream_name(basin, name), "the index of names")
        .map(|found| found.map(|[id, created_ms]| (StreamId(id), created_ms)))
}
