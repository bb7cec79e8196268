//! The parties, the faults that may occur, and the rule that is removed.

use crate::state::State;

/// One rule of the protocol that a scope removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    /// A sweep lists first and reads the root afterwards.
    ListBeforeRoot,
    /// A sweep keeps the objects of a live intent.
    IntentsInSweep,
    /// A file is reused only if a retained snapshot has it, not because an object exists.
    ReuseFromRetainedOnly,
    /// A key contains the generation of its upload.
    GenerationInKey,
    /// A commit validates its reused keys against the root that it replaces.
    RecheckOfReused,
    /// The validation reads the root; it does not ask the store whether the object exists.
    RecheckByRoot,
    /// A commit requires its intent in the root that it replaces.
    IntentAtCommit,
    /// A commit requires its own lineage in the root that it replaces.
    LineageAtCommit,
    /// A commit older than all retained snapshots is refused.
    RefusalOfOlder,
    /// Of two snapshots with the same LSN, the one that is being committed is retained.
    NewestUploadWinsTie,
    /// refs(root) contains the pinned snapshots.
    PinsInRefs,
    /// A pin names only a snapshot that the root which it replaces has retained or abandoned.
    PinOfWhatRootHas,
    /// refs(root) contains the abandoned snapshots.
    AbandonedInRefs,
    /// Metadata that cannot be read aborts the sweep.
    AbortOnUnreadable,
    /// Retention keeps what refs(root) contains.
    RefsInRetention,
    /// Retention deletes metadata last, and only if all SSTs were deleted.
    MetadataLast,
    /// Nothing is deleted because of an ambiguous failure.
    CautionAfterAmbiguity,
    /// An ambiguous commit counts as successful only if the root names the snapshot.
    ReadBackOfCommit,
    /// An ambiguous intent counts as registered only if the root has it.
    ReadBackOfIntent,
    /// The generation of an ambiguous intent is the one in the intent, not the root's.
    GenerationOfIntent,
    /// A further snapshot id is added to the intent before anything is uploaded under it.
    IdBeforeMetadata,
    /// A fork requires the root's lineage to be its parent's.
    ParentAtFork,
    /// The generation of a rebuilt root is above all that were ever used.
    JumpOfNewRoot,
    /// An incarnation claims a root only if the root names no incarnation, or one that it follows.
    FollowsAtClaim,
    /// A commit requires its incarnation in the root that it replaces.
    WriterAtCommit,
}

/// What a writer uploads.
#[derive(Clone, Copy, Debug)]
pub struct Checkpoint {
    /// Set of contents: bit 0 is "a", bit 1 is "b", ...
    pub contents: u8,
    pub lsn: u8,
    pub lineage: u8,
    /// Number of times that it starts again after it was fenced.
    pub retries: u8,
    /// It is a second process of that writer: it starts as a restarted process does, with any intent of
    /// that writer that it finds, while the first process still runs.
    pub twin_of: Option<usize>,
    /// The incarnation that uploads it; 0 for a writer without one.
    pub incarnation: u8,
}

/// A condition that some state of a scope must fulfil, so that a scope cannot pass by being empty.
pub type Reach = (&'static str, fn(&Scope, &State) -> bool);

/// The parties, and the faults that may occur.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    pub writers: Vec<Checkpoint>,
    pub num_retained: u32,
    pub sweeper: bool,
    /// Any intent may be removed at any time (it has expired by some clock).
    pub fencing: bool,
    /// A reused key that was removed is uploaded under the live intent, with a further snapshot id.
    pub repairs: bool,
    /// Number of swaps whose answer may be lost.
    pub lost_answers: u8,
    /// Retention's deletes may fail.
    pub failing_deletes: bool,
    /// Number of restores, which pin one snapshot each (at most 2).
    pub restores: usize,
    /// Number of lossy restores, which fork lineage 0 into lineages 1, 2, ...
    pub forks: u8,
    /// The last LSN that a fork keeps.
    pub fork_lsn: u8,
    /// Abandoned snapshots may be pruned by an operator.
    pub pruning: bool,
    /// Number of restarts of writers, which keep only their checkpoint.
    pub restarts: u8,
    /// The root may be lost once, and is rebuilt.
    pub lost_root: bool,
    /// Every SST that retention left behind can be found through a metadata object.
    pub leftovers_are_named: bool,
    /// By incarnation, the set of those that it follows: earlier starts of the same data directory.
    pub follows: [u8; 4],
    pub without: Option<Without>,
    pub reaches: Vec<Reach>,
}
