//! The identity of a partition's history, and what a fork does to its counters.
//!
//! A restore that cannot prove that nothing acknowledged is lost begins a new *lineage*. No number that
//! the stale lineage gave out may be given out again, but how far it went is not known. So every counter
//! records how many forks it has seen. When it is next used, it advances by [`GAP`] for each fork since
//! then. Readers see a gap in the sequence numbers, never other data under a number that they have read.

use prost::Message as _;

use crate::ids::{LineageId, PartitionId};

/// A counter is advanced by this for each fork: more than a stale lineage can have given out after the
/// fork.
pub const GAP: u64 = 1 << 40;

/// Most ancestors that a lineage remembers beside its parent, as many as a repository's root does: what
/// is written at a fork must not grow with the number of forks.
const ANCESTORS: usize = 15;

/// A partition's lineage and its ancestors. It is written when the partition is created, and at a fork.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Lineage {
    /// The cluster.
    #[prost(string, tag = "1")]
    pub cluster_id: String,
    /// Number of stream partitions of the cluster.
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
    /// Number of forks up to this lineage.
    #[prost(uint64, tag = "6")]
    pub forks: u64,
    /// The ancestors of its parent, oldest first: the newest [`ANCESTORS`]. Empty if an earlier build
    /// wrote it.
    #[prost(message, repeated, tag = "7")]
    ancestors: Vec<Ancestor>,
    /// Whether it shares nothing with its parent: it began with an empty partition.
    #[prost(bool, tag = "8")]
    pub begins_empty: bool,
    /// See [`Lineage::log_id`]; empty if the log began with this lineage.
    #[prost(bytes = "vec", tag = "9")]
    log: Vec<u8>,
}

/// Begins another lineage by an entry of the log: see [`Kind::BeginLineage`](crate::command::Kind::BeginLineage). Identities have 16 bytes.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct BeginLineage {
    /// The new lineage. It begins after the entry before this one.
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    /// The lineage that the partition has; with another one, the command changes nothing.
    #[prost(bytes = "vec", tag = "2")]
    pub present: Vec<u8>,
    /// The lineage that is stale from then on: the present one, or a descendant of which nothing is left.
    #[prost(bytes = "vec", tag = "3")]
    pub parent: Vec<u8>,
    /// Number of forks from the present lineage to the stale one.
    #[prost(uint64, tag = "4")]
    pub skipped: u64,
    /// The lineages after the present one and before the stale one, oldest first, as far as they are known.
    #[prost(bytes = "vec", repeated, tag = "5")]
    pub between: Vec<Vec<u8>>,
}

/// A lineage that a fork cut off.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Ancestor {
    /// Its identity.
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    /// Number of forks up to it; the next one cut it off.
    #[prost(uint64, tag = "2")]
    forks: u64,
    /// The last LSN that it shares with its descendant. Earlier builds did not write it.
    #[prost(uint64, optional, tag = "3")]
    shared_lsn: Option<u64>,
}

impl Ancestor {
    fn new(id: LineageId, forks: u64, shared_lsn: u64) -> Ancestor {
        Ancestor {
            id: id.0.to_be_bytes().to_vec(),
            forks,
            shared_lsn: Some(shared_lsn),
        }
    }
}

impl Lineage {
    /// The lineage of a new partition.
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
            ancestors: Vec::new(),
            begins_empty: false,
            log: Vec::new(),
        }
    }

    /// The same with this number of forks, of which nothing else is known any more.
    pub fn after_forks(self, forks: u64) -> Lineage {
        Lineage { forks, ..self }
    }

    /// The lineage `id`, which branches off from this one after `lsn`.
    pub fn fork(&self, id: LineageId, lsn: u64) -> Lineage {
        Lineage {
            id: id.0.to_be_bytes().to_vec(),
            parent: self.id.clone(),
            fork_lsn: lsn,
            forks: self.forks + 1,
            ancestors: newest(self.all_ancestors(), lsn),
            begins_empty: false,
            log: Vec::new(),
            ..self.clone()
        }
    }

    /// The lineage `id` of an empty partition that replaces a lost one. It shares nothing with the lost
    /// lineage `parent`. The `forks` forks up to `parent` count, because those lineages may have given
    /// out numbers.
    pub fn begin_empty(&self, parent: LineageId, forks: u64, id: LineageId) -> Lineage {
        Lineage {
            begins_empty: true,
            ..self.fork_of_descendant(parent, forks, &[], id, 0)
        }
    }

    /// The lineage `id`, which branches off after `lsn` from `parent`: a descendant of this lineage,
    /// `forks` forks later, of which nothing is left. Those forks count, because the lost lineages may
    /// have given out numbers. `between` are the lineages after this one and before `parent`, oldest
    /// first; empty if they are not known.
    pub fn fork_of_descendant(
        &self,
        parent: LineageId,
        forks: u64,
        between: &[LineageId],
        id: LineageId,
        lsn: u64,
    ) -> Lineage {
        let mut ancestors = self.all_ancestors();
        if forks > 0 {
            let descendants = self.forks + 1..self.forks + forks;
            ancestors.push(Ancestor::new(self.id(), self.forks, lsn));
            ancestors.extend(
                between
                    .iter()
                    .zip(descendants)
                    .map(|(id, forks)| Ancestor::new(*id, forks, lsn)),
            );
        }
        Lineage {
            parent: parent.0.to_be_bytes().to_vec(),
            forks: self.forks + forks + 1,
            ancestors: newest(ancestors, lsn),
            ..self.fork(id, lsn)
        }
    }

    /// The lineage that an entry of the log begins, after `lsn`; `None` if the command is not for this
    /// lineage, or an identity does not have 16 bytes. The log goes on.
    pub fn begun_by(&self, command: &BeginLineage, lsn: u64) -> Option<Lineage> {
        let (id, parent) = (number(&command.id)?, number(&command.parent)?);
        let between: Option<Vec<_>> = command.between.iter().map(|id| number(id)).collect();
        if number(&command.present)? != self.id() || self.contains(id, 0) {
            return None;
        }
        let next = self.fork_of_descendant(parent, command.skipped, &between?, id, lsn);
        Some(Lineage {
            log: self.log_id().0.to_be_bytes().to_vec(),
            ..next
        })
    }

    /// The lineage with which the partition's log began: that of the log's tag. Lineages that entries of the
    /// log begin go on in it. It identifies the group for its members.
    pub fn log_id(&self) -> LineageId {
        number(&self.log).unwrap_or_else(|| self.id())
    }

    /// The ancestors that are remembered, the parent included.
    fn all_ancestors(&self) -> Vec<Ancestor> {
        let parent = self
            .parent()
            .map(|parent| Ancestor::new(parent, self.forks.saturating_sub(1), self.fork_lsn));
        self.ancestors.iter().cloned().chain(parent).collect()
    }

    /// The ancestors that are remembered, oldest first, each with the number of forks up to it.
    pub fn ancestry(&self) -> Vec<(LineageId, u64)> {
        let all = self.all_ancestors().into_iter();
        all.filter_map(|one| Some((number(&one.id)?, one.forks)))
            .collect()
    }

    /// Its identity.
    pub fn id(&self) -> LineageId {
        number(&self.id).unwrap_or(LineageId(0))
    }

    /// The lineage that it branched off from.
    pub fn parent(&self) -> Option<LineageId> {
        number(&self.parent)
    }

    /// Whether data of lineage `id` that covers entries up to `lsn` is known to be a part of this
    /// history: `id` is this lineage, or an ancestor with which it shares the entries up to `lsn`.
    pub fn contains(&self, id: LineageId, lsn: u64) -> bool {
        let is_shared = |one: &Ancestor| {
            number(&one.id) == Some(id) && one.shared_lsn.is_some_and(|shared| lsn <= shared)
        };
        id == self.id() || self.all_ancestors().iter().any(is_shared)
    }

    /// Encodes it for storage elsewhere.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    /// Decodes what [`Lineage::to_bytes`] encoded.
    ///
    /// # Errors
    ///
    /// The bytes are malformed, or an identity does not have 16 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Lineage, String> {
        let lineage = Lineage::decode(bytes).map_err(|e| e.to_string())?;
        let mut ancestors = lineage.ancestors.iter();
        if lineage.id.len() != 16
            || !matches!(lineage.parent.len(), 0 | 16)
            || !matches!(lineage.log.len(), 0 | 16)
            || ancestors.any(|ancestor| ancestor.id.len() != 16)
        {
            return Err("an identity has 16 bytes".to_owned());
        }
        Ok(lineage)
    }
}

/// The newest [`ANCESTORS`] of them, for a history that continues after `lsn`. A fork that goes back
/// further than an earlier one reduces what is shared with every ancestor.
fn newest(mut ancestors: Vec<Ancestor>, lsn: u64) -> Vec<Ancestor> {
    ancestors.drain(..ancestors.len().saturating_sub(ANCESTORS));
    for ancestor in &mut ancestors {
        ancestor.shared_lsn = ancestor.shared_lsn.map(|shared| shared.min(lsn));
    }
    ancestors
}

fn number(bytes: &[u8]) -> Option<LineageId> {
    Some(LineageId(u128::from_be_bytes(bytes.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first() -> Lineage {
        Lineage::first("a cluster", 1, PartitionId(1))
    }

    fn ids(ids: std::ops::Range<u128>) -> Vec<LineageId> {
        ids.map(LineageId).collect()
    }

    #[test]
    fn a_lineage_knows_those_that_it_descends_from_and_the_forks_up_to_each() {
        let first = first();
        assert_eq!(first.ancestry(), []);
        let third = first.fork(LineageId(2), 10).fork(LineageId(3), 20);
        assert_eq!(third.ancestry(), [(first.id(), 0), (LineageId(2), 1)]);
        let read = Lineage::from_bytes(&third.to_bytes()).unwrap();
        assert_eq!(read, third);
    }

    #[test]
    fn descendants_of_which_nothing_is_left_are_remembered_as_well() {
        let first = first();
        let second = first.fork(LineageId(2), 10);
        let between = ids(3..5);
        let next = second.fork_of_descendant(LineageId(5), 3, &between, LineageId(6), 9);
        let forks: Vec<_> = (1..).zip(2..6).map(|(n, id)| (LineageId(id), n)).collect();
        assert_eq!(next.ancestry()[0], (first.id(), 0));
        assert_eq!(next.ancestry()[1..], forks);
        assert_eq!((next.forks, next.parent()), (5, Some(LineageId(5))));
        // An earlier build did not record the lineages in between.
        let next = second.fork_of_descendant(LineageId(5), 3, &[], LineageId(6), 9);
        let known = [(first.id(), 0), (LineageId(2), 1), (LineageId(5), 4)];
        assert_eq!(next.ancestry(), known);
        // None lies between: it is a fork like any other.
        let same = first.fork_of_descendant(first.id(), 0, &[], LineageId(2), 10);
        assert_eq!(same, second);
    }

    #[test]
    fn a_lineage_contains_those_that_it_descends_from_up_to_where_they_were_cut_off() {
        let first = first();
        // Each fork is at a higher LSN than the one before it, except the last, which goes back.
        let second = first.fork(LineageId(2), 10);
        let third = second.fork(LineageId(3), 20);
        let last = third.fork(LineageId(4), 15);
        let contained = |of: &Lineage, id, lsn| {
            (of.contains(id, lsn), of.contains(id, lsn + 1)) == (true, false)
        };
        assert!(contained(&third, first.id(), 10));
        assert!(contained(&third, LineageId(2), 20));
        assert!(contained(&last, first.id(), 10));
        assert!(contained(&last, LineageId(2), 15));
        assert!(contained(&last, LineageId(3), 15));
        assert!(last.contains(LineageId(4), u64::MAX));
        assert!(!last.contains(LineageId(9), 0));
        let back = third.fork(LineageId(5), 3);
        assert!(contained(&back, first.id(), 3));
        // Of lost lineages, it contains what the copy has.
        let next = second.fork_of_descendant(LineageId(7), 2, &[LineageId(6)], LineageId(8), 12);
        assert!(contained(&next, first.id(), 10));
        for id in [2, 6, 7] {
            assert!(contained(&next, LineageId(id), 12), "{id}");
        }
        // An earlier build did not write which LSN is shared with ancestors before the parent.
        let mut earlier = third.clone();
        earlier.ancestors[0].shared_lsn = None;
        assert!(!earlier.contains(first.id(), 0));
        assert!(contained(&earlier, LineageId(2), 20));
    }

    #[test]
    fn an_empty_partition_counts_the_forks_of_the_lost_one_and_shares_nothing_with_it() {
        let first = first();
        let empty = first.begin_empty(LineageId(5), 4, LineageId(6));
        assert_eq!((empty.forks, empty.parent()), (5, Some(LineageId(5))));
        assert!(empty.begins_empty && !empty.contains(LineageId(5), 1));
        let read = Lineage::from_bytes(&empty.to_bytes()).unwrap();
        assert_eq!(read, empty);
        assert!(!empty.fork(LineageId(7), 3).begins_empty);
    }

    #[test]
    fn a_lineage_that_the_log_begins_is_that_of_a_fork_and_goes_on_in_the_log() {
        let bytes = |id: u128| id.to_be_bytes().to_vec();
        let first = first();
        let command = BeginLineage {
            id: bytes(2),
            present: bytes(first.id().0),
            parent: bytes(first.id().0),
            skipped: 0,
            between: Vec::new(),
        };
        let second = first.begun_by(&command, 10).unwrap();
        let offline = first.fork(LineageId(2), 10);
        assert_eq!(second.ancestry(), offline.ancestry());
        assert_eq!((second.id(), second.forks), (offline.id(), offline.forks));
        assert_eq!(second.log_id(), first.id());
        assert_eq!(offline.log_id(), offline.id());
        // It is applied once, and for this lineage alone.
        assert_eq!(second.begun_by(&command, 11), None);
        let command = BeginLineage {
            id: bytes(5),
            present: bytes(2),
            parent: bytes(4),
            skipped: 2,
            between: vec![bytes(3)],
        };
        let third = second.begun_by(&command, 20).unwrap();
        assert_eq!((third.forks, third.log_id()), (4, first.id()));
        let read = Lineage::from_bytes(&third.to_bytes()).unwrap();
        assert_eq!(read, third);
        assert_eq!(third.fork(LineageId(6), 30).log_id(), LineageId(6));
        let malformed = BeginLineage {
            id: vec![1],
            ..command
        };
        assert_eq!(second.begun_by(&malformed, 20), None);
    }

    #[test]
    fn the_newest_ancestors_are_remembered_in_bounded_space() {
        let mut lineage = first();
        for id in 1..100 {
            lineage = lineage.fork(LineageId(id), 1);
        }
        let known: Vec<_> = lineage.ancestry().into_iter().map(|(id, _)| id).collect();
        assert_eq!(known, ids(83..99));
        assert_eq!(lineage.ancestry()[0].1, 83);
        assert!(lineage.to_bytes().len() < 1024);
    }

    /// What builds wrote that did not write ancestors.
    #[derive(Clone, PartialEq, Eq, prost::Message)]
    struct Earlier {
        #[prost(string, tag = "1")]
        cluster_id: String,
        #[prost(uint32, tag = "2")]
        partitions: u32,
        #[prost(bytes = "vec", tag = "3")]
        id: Vec<u8>,
        #[prost(bytes = "vec", tag = "4")]
        parent: Vec<u8>,
        #[prost(uint64, tag = "5")]
        fork_lsn: u64,
        #[prost(uint64, tag = "6")]
        forks: u64,
    }

    #[test]
    fn of_what_an_earlier_build_wrote_the_parent_is_known_and_is_not_forgotten() {
        let earlier = Earlier {
            cluster_id: "a cluster".to_owned(),
            partitions: 1,
            id: 8u128.to_be_bytes().to_vec(),
            parent: 7u128.to_be_bytes().to_vec(),
            fork_lsn: 10,
            forks: 3,
        };
        let read = Lineage::from_bytes(&earlier.encode_to_vec()).unwrap();
        assert_eq!(read.ancestry(), [(LineageId(7), 2)]);
        let next = read.fork(LineageId(9), 20);
        assert_eq!(next.ancestry(), [(LineageId(7), 2), (LineageId(8), 3)]);
        // The earlier build reads what this one writes.
        let back = Earlier::decode(&next.to_bytes()[..]).unwrap();
        assert_eq!((back.forks, back.parent), (4, earlier.id));
    }

    #[test]
    fn an_ancestor_without_an_identity_is_refused() {
        let mut lineage = first().fork(LineageId(2), 1).fork(LineageId(3), 2);
        lineage.ancestors[0].id.pop();
        assert!(Lineage::from_bytes(&lineage.to_bytes()).is_err());
    }
}
