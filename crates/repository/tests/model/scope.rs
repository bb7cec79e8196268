//! Who takes part, what may happen to them, and which rule is taken away.

use crate::state::State;

/// One rule of the protocol taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    /// The sweep lists first and reads the root then.
    ListBeforeRoot,
    /// The sweep spares what belongs to a live intent.
    IntentsInSweep,
    /// A file is reused only if a retained snapshot has it, not because an object is there.
    ReuseFromRetainedOnly,
    /// A key contains the generation of its upload.
    GenerationInKey,
    /// A commit validates its reused keys against the root that it replaces.
    RecheckOfReused,
    /// ... and does so by the root, not by asking the store whether the object is there.
    RecheckByRoot,
    /// A commit requires its intent in the root that it replaces.
    IntentAtCommit,
    /// A commit requires its own lineage in the root that it replaces.
    LineageAtCommit,
    /// A commit older than all that is retained is refused.
    RefusalOfOlder,
    /// Of two snapshots with the same LSN the one being committed stays.
    NewestUploadWinsTie,
    /// refs(root) contains what is pinned.
    PinsInRefs,
    /// A pin names only what the root that it replaces retains or has abandoned.
    PinOfWhatRootHas,
    /// refs(root) contains what is abandoned.
    AbandonedInRefs,
    /// Metadata that cannot be read aborts the sweep.
    AbortOnUnreadable,
    /// Retention spares what refs(root) has.
    RefsInRetention,
    /// Retention deletes metadata last, and only if all SSTs went.
    MetadataLast,
    /// Nothing is deleted on the strength of an ambiguous failure.
    CautionAfterAmbiguity,
    /// An ambiguous commit is a success only if the root says so.
    ReadBackOfCommit,
    /// An ambiguous intent is an intent only if the root says so.
    ReadBackOfIntent,
    /// The generation of an ambiguous intent is the one in the intent, not the root's.
    GenerationOfIntent,
    /// A further snapshot id is in the intent before anything is uploaded under it.
    IdBeforeMetadata,
    /// A fork requires the root's lineage to be its parent's.
    ParentAtFork,
    /// A root rebuilt starts its generation above all that were ever used.
    JumpOfNewRoot,
    /// An incarnation claims a root only from nobody, or from one that it follows.
    FollowsAtClaim,
    /// A commit requires its incarnation in the root that it replaces.
    WriterAtCommit,
}

/// What a writer wants to upload.
#[derive(Clone, Copy, Debug)]
pub struct Checkpoint {
    /// Set of contents: bit 0 is "a", bit 1 is "b", ...
    pub contents: u8,
    pub lsn: u8,
    pub lineage: u8,
    /// New beginnings that it allows itself after it was fenced.
    pub retries: u8,
    /// It is a second process of that writer: it begins where a restarted one begins, with whatever
    /// intent of that writer it finds, while the first still runs.
    pub twin_of: Option<usize>,
    /// The start of a node that uploads it; 0 for one that draws none.
    pub incarnation: u8,
}

/// A condition that some state of a scope must fulfil, so that a scope cannot pass by being empty.
pub type Reach = (&'static str, fn(&Scope, &State) -> bool);

/// Who takes part, and what may happen to them.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    pub writers: Vec<Checkpoint>,
    pub num_retained: u32,
    pub sweeper: bool,
    /// Any intent may be removed at any time (its lease ran out by some clock).
    pub fencing: bool,
    /// A reused key that is gone is uploaded under the live intent, with a further snapshot id.
    pub repairs: bool,
    /// Swaps whose answer may get lost.
    pub lost_answers: u8,
    /// Retention's deletes may fail.
    pub failing_deletes: bool,
    /// Restores that pin one snapshot each (at most 2).
    pub restores: usize,
    /// Lossy restores that fork lineage 0 into lineages 1, 2, ...
    pub forks: u8,
    /// Last LSN that a fork keeps.
    pub fork_lsn: u8,
    /// Abandoned snapshots may be pruned by hand.
    pub pruning: bool,
    /// Restarts of writers, which keep nothing but their checkpoint.
    pub restarts: u8,
    /// The root may get lost once, and is rebuilt.
    pub lost_root: bool,
    /// Every SST that retention left behind can be found through a metadata object.
    pub leftovers_are_named: bool,
    /// By incarnation, the set of those that it follows: earlier starts of the same data directory.
    pub follows: [u8; 4],
    pub without: Option<Without>,
    pub reaches: Vec<Reach>,
}
