//! A queue that is fair at every level of a path: start-time fair queueing, hierarchical.
//!
//! Whoever waits has a path: who sends the request, over which connection, and for which stream. At each
//! level, those that have something waiting are served in turn, by the cost of what they were served, not by
//! its number; so whoever has many connections, or many requests on one, has no more than one that has few.
//! Entries of the same path are served in the order of their arrival. One that waits for the first time after
//! a pause begins at the present: it neither has saved up turns, nor waits behind what others have queued.
//!
//! Whoever serves the queue may pass over members of the outermost level ([`FairQueue::take`]): they keep
//! their turn, and the others do not wait for them.

use std::collections::{BTreeSet, HashMap, VecDeque};

/// The levels of a path.
const LEVELS: usize = 3;
/// Who waits, from the outermost level to the innermost.
pub type Path = [u64; LEVELS];

/// Past turns that a level remembers beside those of its members that wait.
const REMEMBERED: usize = 64;

/// A queue that is fair at every level of a path: those that have something waiting are served in turn, by the
/// cost of what they were served.
pub struct FairQueue<T> {
    root: Level<T>,
    waiting: usize,
    next_ticket: u64,
}

/// Identifies an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

/// What [`FairQueue::take`] does with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Takes it.
    Take,
    /// Passes over it, and over all others with the same first part of the path.
    PassOver,
    /// Takes nothing.
    Stop,
}

struct Entry<T> {
    ticket: Ticket,
    cost: u64,
    value: T,
}

struct Level<T> {
    turns: Turns,
    members: HashMap<u64, Member<T>>,
}

enum Member<T> {
    Level(Level<T>),
    Entries(VecDeque<Entry<T>>),
}

/// The order in which the members of a level are served.
#[derive(Default)]
struct Turns {
    /// Virtual time: the start of the turn that was served last.
    now: u64,
    /// Where the next turn of a member begins, if it was served before.
    after: HashMap<u64, u64>,
    /// Members that have something waiting: the start of the next turn, the order of arrival, the member.
    ready: BTreeSet<(u64, u64, u64)>,
    place: HashMap<u64, (u64, u64)>,
    arrivals: u64,
}

impl Turns {
    /// A member has something waiting.
    fn add(&mut self, member: u64) {
        if self.place.contains_key(&member) {
            return;
        }
        let start = self.after.get(&member).copied().unwrap_or_default();
        let start = start.max(self.now);
        self.arrivals += 1;
        self.ready.insert((start, self.arrivals, member));
        self.place.insert(member, (start, self.arrivals));
    }

    /// A member has nothing waiting any more.
    fn remove(&mut self, member: u64) {
        if let Some((start, arrival)) = self.place.remove(&member) {
            self.ready.remove(&(start, arrival, member));
        }
    }

    fn first(&self) -> Option<u64> {
        self.ready.first().map(|(_, _, member)| *member)
    }

    /// A member that had something waiting was served.
    fn served(&mut self, member: u64, cost: u64, has_more: bool) {
        let Some((start, arrival)) = self.place.remove(&member) else {
            return;
        };
        self.ready.remove(&(start, arrival, member));
        // One that was passed over has its turn now, and has not saved up others.
        self.now = self.now.max(start);
        self.after.insert(member, self.now.saturating_add(cost));
        if has_more {
            self.add(member);
        }
        if self.ready.is_empty() {
            // Nobody was kept waiting, so nobody is owed anything.
            self.after.clear();
        } else if self.after.len() > 2 * self.ready.len() + REMEMBERED {
            let now = self.now;
            self.after.retain(|_, after| *after > now);
            if self.after.len() > 2 * self.ready.len() + REMEMBERED {
                // Members that came once each. Those that come again have a turn too many.
                self.after.clear();
            }
        }
    }
}

impl<T> Level<T> {
    fn new() -> Level<T> {
        Level {
            turns: Turns::default(),
            members: HashMap::new(),
        }
    }

    fn push(&mut self, path: &[u64], entry: Entry<T>) {
        let (member, rest) = (path[0], &path[1..]);
        self.turns.add(member);
        let found = self.members.entry(member);
        match found.or_insert_with(|| match rest.is_empty() {
            true => Member::Entries(VecDeque::new()),
            false => Member::Level(Level::new()),
        }) {
            Member::Entries(entries) => entries.push_back(entry),
            Member::Level(level) => level.push(rest, entry),
        }
    }

    fn first(&self) -> Option<&Entry<T>> {
        self.first_of(self.turns.first()?)
    }

    fn first_of(&self, member: u64) -> Option<&Entry<T>> {
        match self.members.get(&member)? {
            Member::Entries(entries) => entries.front(),
            Member::Level(level) => level.first(),
        }
    }

    fn pop(&mut self) -> Option<Entry<T>> {
        self.pop_of(self.turns.first()?)
    }

    fn pop_of(&mut self, member: u64) -> Option<Entry<T>> {
        let (entry, has_more) = match self.members.get_mut(&member)? {
            Member::Entries(entries) => (entries.pop_front(), !entries.is_empty()),
            Member::Level(level) => (level.pop(), !level.members.is_empty()),
        };
        let entry = entry?;
        if !has_more {
            self.members.remove(&member);
        }
        self.turns.served(member, entry.cost, has_more);
        Some(entry)
    }

    fn remove(&mut self, path: &[u64], ticket: Ticket) -> Option<Entry<T>> {
        let (member, rest) = (path[0], &path[1..]);
        let (removed, is_empty) = match self.members.get_mut(&member)? {
            Member::Entries(entries) => {
                let at = entries.iter().position(|entry| entry.ticket == ticket)?;
                (entries.remove(at), entries.is_empty())
            }
            Member::Level(level) => (level.remove(rest, ticket), level.members.is_empty()),
        };
        if is_empty {
            self.members.remove(&member);
            self.turns.remove(member);
        }
        removed
    }

    fn has(&self, path: &[u64]) -> bool {
        match self.members.get(&path[0]) {
            None => false,
            Some(Member::Entries(_)) => true,
            Some(Member::Level(level)) => level.has(&path[1..]),
        }
    }
}

impl<T> Default for FairQueue<T> {
    fn default() -> FairQueue<T> {
        FairQueue::new()
    }
}

impl<T> FairQueue<T> {
    /// An empty queue.
    pub fn new() -> FairQueue<T> {
        FairQueue {
            root: Level::new(),
            waiting: 0,
            next_ticket: 0,
        }
    }

    /// Number of entries.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether an entry of this path waits.
    pub(super) fn has(&self, path: &Path) -> bool {
        self.root.has(path)
    }

    /// Adds an entry. Turns go by `cost`.
    pub fn push(&mut self, path: &Path, cost: u64, value: T) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let entry = Entry {
            ticket,
            cost,
            value,
        };
        self.root.push(path, entry);
        self.waiting += 1;
        ticket
    }

    /// The entry whose turn it is.
    pub(super) fn first(&self) -> Option<&T> {
        self.root.first().map(|entry| &entry.value)
    }

    /// Removes the entry whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let entry = self.root.pop()?;
        self.waiting -= 1;
        Some(entry.value)
    }

    /// Removes the first entry that may be taken, in the order of turns: of each member of the outermost level,
    /// the entry whose turn it is there is judged.
    pub fn take(&mut self, mut judge: impl FnMut(&T) -> Verdict) -> Option<T> {
        let mut taken = None;
        for (_, _, member) in &self.root.turns.ready {
            let entry = self.root.first_of(*member)?;
            match judge(&entry.value) {
                Verdict::Take => {
                    taken = Some(*member);
                    break;
                }
                Verdict::PassOver => {}
                Verdict::Stop => break,
            }
        }
        let entry = self.root.pop_of(taken?)?;
        self.waiting -= 1;
        Some(entry.value)
    }

    /// Removes an entry that does not wait any longer; `None` if it was served.
    pub fn remove(&mut self, path: &Path, ticket: Ticket) -> Option<T> {
        let entry = self.root.remove(path, ticket)?;
        self.waiting -= 1;
        Some(entry.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(queue: &mut FairQueue<&'static str>, most: usize) -> Vec<&'static str> {
        (0..most).map_while(|_| queue.pop()).collect()
    }

    #[test]
    fn one_that_comes_when_others_have_queued_much_is_served_next_and_in_turn_from_then_on() {
        let mut queue = FairQueue::new();
        for connection in 0..64 {
            for _ in 0..100 {
                queue.push(&[1, connection, 1], 1000, "flood");
            }
        }
        assert_eq!(served(&mut queue, 640).len(), 640);
        // Another connection of the same sender: within a turn of those that are equal with it.
        queue.push(&[1, 99, 1], 1000, "polite");
        let before = served(&mut queue, 65);
        assert!(before.contains(&"polite"), "{before:?}");
        // Another sender: it waits for one entry at most, whatever the number of connections.
        queue.push(&[2, 100, 1], 1000, "other");
        let before = served(&mut queue, 2);
        assert!(before.contains(&"other"), "{before:?}");
        // Each sender has half from then on.
        for _ in 0..100 {
            queue.push(&[2, 100, 1], 1000, "other");
        }
        let others = served(&mut queue, 100);
        let others = others.iter().filter(|it| **it == "other").count();
        assert!((49..=51).contains(&others), "{others}");
    }

    #[test]
    fn turns_go_by_cost_and_entries_of_one_path_keep_their_order() {
        let mut queue = FairQueue::new();
        for _ in 0..100 {
            queue.push(&[1, 1, 1], 10_000, "large");
        }
        for small in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
            for _ in 0..10 {
                queue.push(&[2, 2, 2], 100, small);
            }
        }
        let order = served(&mut queue, 102);
        let large_ones = order.iter().filter(|it| **it == "large").count();
        assert!(
            large_ones <= 2,
            "{large_ones}: 100 small ones cost as much as one large one"
        );
        let mut small: Vec<_> = order.into_iter().filter(|it| *it != "large").collect();
        let in_order = small.is_sorted();
        small.dedup();
        assert!(in_order && small.len() == 10, "{small:?}");
    }

    #[test]
    fn streams_of_one_connection_take_turns_and_many_of_them_gain_nothing() {
        let mut queue = FairQueue::new();
        for stream in 0..1024 {
            for _ in 0..4 {
                queue.push(&[1, 1, stream], 100, "many streams");
            }
        }
        for _ in 0..100 {
            queue.push(&[1, 2, 7], 100, "one stream");
        }
        let order = served(&mut queue, 200);
        let ones = order.iter().filter(|it| **it == "one stream").count();
        assert!((99..=101).contains(&ones), "{ones}");
    }

    #[test]
    fn members_that_are_passed_over_keep_their_turn_and_hold_up_nobody() {
        let mut queue = FairQueue::new();
        for path in [[1, 1, 0], [1, 2, 0], [2, 1, 0], [3, 1, 0]] {
            for _ in 0..2 {
                queue.push(&path, 100, path[0]);
            }
        }
        let passing_over = |queue: &mut FairQueue<u64>, over: u64| {
            queue.take(|value| match *value == over {
                true => Verdict::PassOver,
                false => Verdict::Take,
            })
        };
        let order: Vec<_> = (0..4).map_while(|_| passing_over(&mut queue, 1)).collect();
        assert_eq!(order, [2, 3, 2, 3]);
        assert_eq!(passing_over(&mut queue, 1), None, "nobody else waits");
        queue.push(&[2, 1, 0], 100, 2);
        assert_eq!(queue.take(|_| Verdict::Stop), None);
        assert_eq!(queue.waiting(), 5);
        let order: Vec<_> = (0..5).map_while(|_| queue.pop()).collect();
        assert_eq!(order[0], 1, "it has had nothing yet");
        assert_eq!(queue.waiting(), 0);
        assert!(queue.root.members.is_empty());
    }

    #[test]
    fn what_does_not_wait_any_longer_leaves_nothing_behind() {
        let mut queue = FairQueue::new();
        let path = [1, 2, 3];
        let first = queue.push(&path, 10, "first");
        let second = queue.push(&path, 10, "second");
        assert!(queue.has(&path) && queue.waiting() == 2);
        assert_eq!(queue.remove(&path, first), Some("first"));
        assert_eq!(queue.remove(&path, first), None);
        assert_eq!(queue.first(), Some(&"second"));
        assert_eq!(queue.pop(), Some("second"));
        assert_eq!(queue.remove(&path, second), None, "it was served");
        assert!(!queue.has(&path) && queue.waiting() == 0 && queue.pop().is_none());
        assert!(queue.root.members.is_empty() && queue.root.turns.after.is_empty());
        // Members that come and go do not add up.
        queue.push(&[0, 0, 0], 1, "waits");
        for connection in 1..10_000 {
            queue.push(&[connection, 0, 0], 1, "once");
            queue.pop();
        }
        let turns = &queue.root.turns;
        assert!(turns.after.len() <= 2 * turns.ready.len() + REMEMBERED);
    }
}
