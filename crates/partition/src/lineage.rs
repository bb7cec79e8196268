//! Which history a partition is of, and what a fork does to its counters.
//!
//! A restore that cannot show that nothing acknowledged is lost begins a new *lineage*. Nothing that
//! was given out in the dead one may be given out again, though nobody knows how far it went: every
//! counter remembers how many forks it has seen, and is moved on by [`GAP`] for each that it missed,
//! when it is next looked at. Readers see a gap in the sequence numbers, never other data.

use prost::Message as _;

use crate::ids::{LineageId, PartitionId};
use crate::keys;
use crate::store::{Applied, Part, StoreError};

/// A counter is moved on by so much for each fork: more than a dead lineage can have given out after
/// the fork.
pub const GAP: u64 = 1 << 40;

/// The history that a partition is of; written when it is founded, and at a fork.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Lineage {
    /// The cluster.
    #[prost(string, tag = "1")]
    pub cluster_id: String,
    /// Stream partitions of the cluster.
    #[prost(uint32, tag = "2")]
    pub partitions: u32,
    /// See [`Lineage::id`].
    #[prost(bytes = "vec", tag = "3")]
    id: Vec<u8>,
    /// See [`Lineage::parent`]; empty for none.
    #[prost(bytes = "vec", tag = "4")]
    parent: Vec<u8>,
    /// The last LSN that it shares with its parent.
    #[prost(uint64, tag = "5")]
    pub fork_lsn: u64,
    /// How many forks there were up to here.
    #[prost(uint64, tag = "6")]
    pub forks: u64,
}

impl Lineage {
    /// That of a new partition.
    pub fn first(cluster_id: &str, partitions: u32, partition: PartitionId) -> Lineage {
        Lineage {
            cluster_id: cluster_id.to_owned(),
            partitions,
            id: LineageId::first(cluster_id, partition)
                .0
                .to_be_bytes()
                .to_vec(),
            parent: Vec::new(),
            fork_lsn: 0,
            forks: 0,
        }
    }

    /// One that branches off after an LSN.
    pub fn fork(&self, id: LineageId, lsn: u64) -> Lineage {
        Lineage {
            id: id.0.to_be_bytes().to_vec(),
            parent: self.id.clone(),
            fork_lsn: lsn,
            forks: self.forks + 1,
            ..self.clone()
        }
    }

    /// One that branches off from a descendant of this one, so many forks later, of which nothing is
    /// left: what it may have given out counts all the same.
    pub fn fork_of_descendant(
        &self,
        parent: LineageId,
        forks: u64,
        id: LineageId,
        lsn: u64,
    ) -> Lineage {
        Lineage {
            parent: parent.0.to_be_bytes().to_vec(),
            forks: self.forks + forks + 1,
            ..self.fork(id, lsn)
        }
    }

    /// Its identity.
    pub fn id(&self) -> LineageId {
        number(&self.id).unwrap_or(LineageId(0))
    }

    /// The lineage that it branched off from.
    pub fn parent(&self) -> Option<LineageId> {
        number(&self.parent)
    }

    /// Whether what is of lineage `id` and covers up to `lsn` is a part of this history.
    pub fn contains(&self, id: LineageId, lsn: u64) -> bool {
        id == self.id() || (self.parent() == Some(id) && lsn <= self.fork_lsn)
    }

    /// Bytes to keep elsewhere.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    /// Parses what [`Lineage::to_bytes`] made.
    pub fn from_bytes(bytes: &[u8]) -> Result<Lineage, String> {
        let lineage = Lineage::decode(bytes).map_err(|e| e.to_string())?;
        if lineage.id.len() != 16 || !matches!(lineage.parent.len(), 0 | 16) {
            return Err("an identity has 16 bytes".to_owned());
        }
        Ok(lineage)
    }
}

fn number(bytes: &[u8]) -> Option<LineageId> {
    Some(LineageId(u128::from_be_bytes(bytes.try_into().ok()?)))
}

impl Part {
    /// The history that the partition is of.
    pub fn lineage(&self) -> Result<Lineage, StoreError> {
        if let Some(known) = self.known_lineage().get() {
            return Ok(known.clone());
        }
        let lineage = self
            .get_bytes(keys::LINEAGE, "the lineage")?
            .ok_or_else(|| self.malformed("the lineage", &"it is missing"))?;
        let lineage =
            Lineage::from_bytes(&lineage).map_err(|e| self.malformed("the lineage", &e))?;
        Ok(self.known_lineage().get_or_init(|| lineage).clone())
    }

    /// How many forks the partition has been through.
    pub(crate) fn forks(&self) -> Result<u64, StoreError> {
        Ok(self.lineage()?.forks)
    }

    /// Begins another lineage where the partition's data ends, with `voter` as the group's only
    /// member; durable when this returns. Nothing else may use the partition meanwhile, and handles
    /// from before are not to be used any more.
    pub fn fork(&self, lineage: &Lineage, voter: u64) -> Result<(), StoreError> {
        let applied = self
            .applied()?
            .ok_or_else(|| self.malformed("the position", &"it is missing"))?;
        let applied = Applied {
            voters: vec![voter],
            learners: Vec::new(),
            ..applied
        };
        let mut batch = self.batch();
        batch.put(keys::APPLIED, applied.encode_to_vec());
        batch.put(keys::LINEAGE, lineage.to_bytes());
        batch.write()?;
        self.flush()
    }
}
