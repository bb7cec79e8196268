//! The state: the root, the objects, the memory of each party, and the actions that are possible.

/// A set of SST keys: bit `content * 16 + generation`.
pub type Keys = u64;
/// A set of snapshot ids: bit `writer * IDS + attempt`.
pub type Ids = u16;

/// Number of generations that fit into a key. Generation 0 is that of the first root and of no intent.
pub const GENERATIONS: u8 = 16;
/// Number of snapshot ids that one writer may use: one for each start, and those added to an intent.
pub const IDS: u8 = 4;
pub const WRITERS: usize = 4;
pub const INTENTS: usize = 6;
/// Number of swaps that can be in flight at a time, with their answers lost.
pub const FLIGHTS: usize = 2;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Intent {
    /// 0 for an empty slot.
    pub generation: u8,
    pub ids: Ids,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Root {
    pub generation: u8,
    pub lineage: u8,
    /// The incarnation that has claimed it; 0 for none.
    pub writer: u8,
    pub retained: Ids,
    pub abandoned: Ids,
    /// By restore, a set of at most one snapshot.
    pub pins: [Ids; 2],
    /// Ascending by generation.
    pub intents: [Intent; INTENTS],
}

impl Root {
    pub fn pinned(&self) -> Ids {
        self.pins[0] | self.pins[1]
    }

    /// The keys of all contents with a live generation, and the live snapshot ids.
    pub fn live(&self) -> (Keys, Ids) {
        self.intents
            .iter()
            .filter(|i| i.generation != 0)
            .fold((0, 0), |(keys, ids), i| {
                (keys | of_generation(i.generation), ids | i.ids)
            })
    }

    pub fn names(&self, id: Ids) -> bool {
        (self.retained | self.abandoned | self.pinned()) & id != 0
    }

    pub fn has_intent(&self, generation: u8, id: Ids) -> bool {
        self.intents
            .iter()
            .any(|i| i.generation == generation && i.ids & id != 0)
    }

    pub fn add_intent(&mut self, intent: Intent) {
        let slot = self
            .intents
            .iter()
            .position(|i| i.generation == 0)
            .expect("a scope with too many intents");
        self.intents[slot] = intent;
        self.intents[..=slot].sort_by_key(|i| i.generation);
    }

    pub fn remove_intent(&mut self, gone: impl Fn(&Intent) -> bool) {
        let mut kept = [Intent::default(); INTENTS];
        for (slot, intent) in self
            .intents
            .iter()
            .filter(|i| i.generation != 0 && !gone(i))
            .enumerate()
        {
            kept[slot] = *intent;
        }
        self.intents = kept;
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    #[default]
    Idle,
    /// It has swapped an intent in and received no answer.
    IntentUnknown,
    Upload,
    AddId,
    Metadata,
    Commit,
    DeleteSsts,
    DeleteMetadata,
    Restarted,
    Done,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Writer {
    pub phase: Phase,
    pub ids_used: u8,
    pub retries_used: u8,
    pub id: Ids,
    pub generation: u8,
    /// Contents that are not uploaded yet.
    pub todo: u8,
    /// The snapshot's keys; in the phases of deletion, the keys to delete.
    pub keys: Keys,
    /// The snapshots that its newest swap removes; in the phases of deletion, the metadata to delete.
    pub cut: Ids,
    /// It uploads reused files that another commit removed, and needs a further snapshot id.
    pub further_id: bool,
    /// It continues an intent from before its restart.
    pub resumed: bool,
    /// Only without `CautionAfterAmbiguity`: an answer of its commit was lost.
    pub unsure: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Sweep {
    #[default]
    Idle,
    Listed(Keys, Ids),
    /// Only without `ListBeforeRoot`: the keys and snapshots to keep.
    Rooted(Keys, Ids),
    Deleting(Keys, Ids),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Flight {
    #[default]
    None,
    Intent(Ids),
    AddId(Ids, u8),
    Commit(Ids),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Restore {
    #[default]
    Idle,
    /// Only without `PinOfWhatRootHas`.
    Chosen(Ids),
    Reading,
    Done,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    pub root: Root,
    /// Every key that was ever uploaded, and every key that was ever deleted (see the head of `protocol`).
    pub put: Keys,
    pub gone: Keys,
    pub put_metadata: Ids,
    pub gone_metadata: Ids,
    /// For each metadata object, the keys that its snapshot needs.
    pub contents: [Keys; WRITERS * IDS as usize],
    pub writers: [Writer; WRITERS],
    pub sweep: Sweep,
    pub flights: [Flight; FLIGHTS],
    pub restores: [Restore; 2],
    pub lost_answers: u8,
    pub restarts: u8,
    /// The set of forks that succeeded.
    pub forks: u8,
    pub lost_root: bool,
    /// History: snapshots that a root ever retained; generations that an intent ever had (only if the root
    /// may be lost); promises that are already broken.
    pub committed: Ids,
    pub generations: u16,
    pub reused_key: bool,
    pub untrue_success: bool,
    /// The incarnation that registered the newest intent; those that registered one before it and were
    /// replaced; and whether one of these wrote afterwards.
    pub owner: u8,
    pub former: u8,
    pub mixed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Known,
    /// The swap is applied, and its answer is lost.
    LostAfterwards,
    /// The answer is lost, and the swap may be applied later or never.
    LostBefore,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Intent(usize, Answer),
    ReadBackIntent(usize),
    Put(usize),
    AddId(usize, Answer),
    PutMetadata(usize),
    Commit(usize, Answer),
    Retention(usize),
    RetentionFails(usize),
    Restart(usize),
    Resume(usize),
    Lands(usize),
    SweepLists,
    SweepReadsRoot,
    SweepSkipsUnreadable(usize),
    SweepAborts,
    SweepDeletes,
    Fence(usize),
    Choose(usize, usize),
    Pin(usize, usize),
    Unpin(usize),
    Fork(u8),
    Prune(usize),
    LoseRoot,
}

pub fn of_generation(generation: u8) -> Keys {
    let every_content = 1 | 1 << 16 | 1 << 32 | 1 << 48;
    every_content << generation
}

pub fn of_content(content: u8) -> Keys {
    0xffff << (content * GENERATIONS)
}

pub fn members(ids: Ids) -> impl Iterator<Item = usize> {
    (0..16).filter(move |i| ids >> i & 1 == 1)
}

pub fn ids_of(writer: usize) -> Ids {
    ((1 << IDS) - 1) << (writer as u8 * IDS)
}

pub fn writer_of(id: usize) -> usize {
    id / IDS as usize
}

pub const DONE: Writer = Writer {
    phase: Phase::Done,
    ids_used: 0,
    retries_used: 0,
    id: 0,
    generation: 0,
    todo: 0,
    keys: 0,
    cut: 0,
    further_id: false,
    resumed: false,
    unsure: false,
};
