//! What there is: the root, the objects, each party's memory, and what a party can do next.

/// A set of SST keys: bit `content * 16 + generation`.
pub type Keys = u64;
/// A set of snapshot ids: bit `writer * IDS + attempt`.
pub type Ids = u16;

/// Generations that fit into a key, of which 0 is the root's first and no intent's.
pub const GENERATIONS: u8 = 16;
/// Snapshot ids that one writer may use: new beginnings, and ids added to an intent.
pub const IDS: u8 = 4;
pub const WRITERS: usize = 4;
pub const INTENTS: usize = 6;
/// Swaps that can be under way at once with their answer lost.
pub const FLIGHTS: usize = 2;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Intent {
    /// 0: an empty slot.
    pub generation: u8,
    pub ids: Ids,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Root {
    pub generation: u8,
    pub lineage: u8,
    /// The incarnation that has claimed it, or 0.
    pub writer: u8,
    pub retained: Ids,
    pub abandoned: Ids,
    /// By restore, as a set of one or none.
    pub pins: [Ids; 2],
    /// Ascending by generation.
    pub intents: [Intent; INTENTS],
}

impl Root {
    pub fn pinned(&self) -> Ids {
        self.pins[0] | self.pins[1]
    }

    /// Live generations as a set of keys with any content, live snapshot ids.
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
    /// It swapped an intent in and got no answer.
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
    /// Contents still to be uploaded.
    pub todo: u8,
    /// The snapshot's keys; in the phases of deletion, what is to be deleted.
    pub keys: Keys,
    /// The snapshots that its newest swap cuts off; in the phases of deletion, the metadata to delete.
    pub cut: Ids,
    /// It uploads what another's eviction took, and needs a further snapshot id.
    pub further_id: bool,
    /// It goes on with an intent from before its restart.
    pub resumed: bool,
    /// Only without `CautionAfterAmbiguity`: an answer of its commit got lost.
    pub unsure: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Sweep {
    #[default]
    Idle,
    Listed(Keys, Ids),
    /// Only without `ListBeforeRoot`: what is to be spared.
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
    /// Every key ever uploaded, and every one ever deleted (see the head of this file).
    pub put: Keys,
    pub gone: Keys,
    pub put_metadata: Ids,
    pub gone_metadata: Ids,
    /// What each metadata object says its snapshot needs.
    pub contents: [Keys; WRITERS * IDS as usize],
    pub writers: [Writer; WRITERS],
    pub sweep: Sweep,
    pub flights: [Flight; FLIGHTS],
    pub restores: [Restore; 2],
    pub lost_answers: u8,
    pub restarts: u8,
    /// Set of forks that succeeded.
    pub forks: u8,
    pub lost_root: bool,
    /// History: snapshots that a root ever retained; generations that an intent ever had (only if the
    /// root may get lost); promises already broken.
    pub committed: Ids,
    pub generations: u16,
    pub reused_key: bool,
    pub untrue_success: bool,
    /// The incarnation that registered the newest intent, those that did before it and then another,
    /// and whether one of these went on.
    pub owner: u8,
    pub former: u8,
    pub mixed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Known,
    /// The swap is applied, the answer gets lost.
    LostAfterwards,
    /// The answer gets lost, the swap may land later or never.
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
