//! Ids, and the partition of a stream.

use std::fmt;

use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// Identity of a basin, from the catalog's counter; never used twice. 0 is [`STATE_BASIN`].
    BasinId
}
id! {
    /// Identity of a stream, from its partition's counter; never used twice, not even for a new stream of
    /// the same name.
    StreamId
}
id! {
    /// Number of a partition: 0 is the catalog, 1 to N have the streams.
    PartitionId
}

/// Identity of one unbroken history of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LineageId(pub u128);

impl LineageId {
    /// The first lineage of a partition. It depends only on the cluster's id and the partition, so that
    /// the creation of a partition can be retried.
    pub fn first(cluster_id: &str, partition: PartitionId) -> LineageId {
        LineageId(xxh3_128(format!("{cluster_id}/{partition}").as_bytes()))
    }
}

impl fmt::Display for LineageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The basin reserved for state stores.
pub const STATE_BASIN: &str = "esker-state";
/// The id of that basin.
pub const STATE_BASIN_ID: BasinId = BasinId(0);

/// The partition of a stream: `1 + xxh3-64(basin id, big-endian ‖ name) mod partitions`.
///
/// # Panics
///
/// If `partitions` is 0.
pub fn partition_of(basin: BasinId, stream: &str, partitions: u32) -> PartitionId {
    let mut bytes = Vec::with_capacity(8 + stream.len());
    bytes.extend_from_slice(&basin.0.to_be_bytes());
    bytes.extend_from_slice(stream.as_bytes());
    PartitionId(1 + xxh3_64(&bytes) % u64::from(partitions))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_stays_in_its_partition_for_ever() {
        // These numbers are part of the on-disk format.
        let placed: Vec<u64> = ["a", "orders", "x/y/z", "名前"]
            .iter()
            .map(|name| partition_of(BasinId(7), name, 8).0)
            .collect();
        assert_eq!(placed, PLACED, "placement of streams changed");
    }

    const PLACED: [u64; 4] = [1, 2, 6, 3];
}
