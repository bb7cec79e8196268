//! Stores that are rebuilt, on a real database.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::lineage::GAP;
use crate::random_cases::cases;
use crate::state::command::{ImportBegin, ImportEntries, ImportStep, ImportedEntry};
use crate::state::read::{At, StateDigest, StateReadError};
use crate::state::tests::{delete, finish, key, values, write};
use crate::streams::tests::fixture::{Fixture, damage_batch};

/// The contents of a JSON snapshot. The default is the state before the first commit.
#[derive(Clone, Default)]
struct Snapshot {
    commit_ts: u64,
    commit_forks: Option<u64>,
    entries: Vec<(StateKey, StateEntry)>,
}

impl Snapshot {
    fn of(it: &Fixture) -> Snapshot {
        let mut entries = Vec::new();
        let (mut commit_ts, mut commit_forks) = (0, 0);
        it.state_reader()
            .view(|view| {
                commit_ts = view.meta.commit_ts;
                commit_forks = view.commit_forks()?;
                view.entries(&mut |key, mut entry| {
                    // A snapshot does not have this field.
                    entry.first = entry.version == 1;
                    entries.push((key, entry));
                    Ok::<_, StateReadError>(())
                })
            })
            .unwrap();
        Snapshot {
            commit_ts,
            commit_forks: Some(commit_forks),
            entries,
        }
    }

    /// Rebuilds the store from this and the commits after it; returns the number of these commits.
    fn rebuild(&self, it: &mut Fixture, left: StreamLeft) -> Result<u64, StoreError> {
        let mut rebuild = it.partition_db().rebuild_state()?;
        rebuild.commit_forks(self.commit_forks);
        for (key, entry) in &self.entries {
            rebuild.entry(key, entry)?;
        }
        let folded = rebuild.fold(self.commit_ts, left.to)?;
        rebuild.finish(left.to)?;
        it.stop_and_open();
        assert_eq!(it.partition_db().state_problem()?, None);
        Ok(folded)
    }

    /// Rebuilds the store from this in a partition of which nothing else is left but the number of its
    /// forks.
    fn rebuild_alone(&self, forks: u64) -> Fixture {
        let mut it = Fixture::new();
        let part = it.partition_db();
        let lineage = part.lineage().unwrap().after_forks(forks);
        part.fork(&lineage, &[7]).unwrap();
        let mut rebuild = part.rebuild_state().unwrap();
        rebuild.commit_forks(self.commit_forks);
        for (key, entry) in &self.entries {
            rebuild.entry(key, entry).unwrap();
        }
        rebuild.finish(self.commit_ts).unwrap();
        drop(part);
        it.stop_and_open();
        it
    }

    /// Replaces the state by this one.
    fn import(&self, it: &mut Fixture) -> u64 {
        let entries = self.entries.iter().map(|(key, entry)| ImportedEntry {
            namespace: key.namespace.clone(),
            agent_id: key.agent_id.clone(),
            key: key.key.clone(),
            version: entry.version,
            commit_ts: entry.commit_ts,
            forks: entry.forks,
            value: entry.value.clone(),
        });
        let entries = entries.collect();
        it.import(ImportStep::Begin(ImportBegin { replace: true }))
            .unwrap();
        it.import(ImportStep::Entries(ImportEntries { entries }))
            .unwrap();
        let commit_ts = self.commit_ts.max(1);
        it.import(ImportStep::Finish(finish(commit_ts)))
            .unwrap()
            .commit_ts
    }
}

fn digest(it: &Fixture) -> StateDigest {
    let reader = it.state_reader();
    reader.view(|view| Ok(view.digest()?)).unwrap()
}

/// What decides about the next version of each key.
fn versions(it: &Fixture) -> Vec<(StateKey, u64, u64)> {
    let entries = Snapshot::of(it).entries.into_iter();
    entries
        .map(|(key, entry)| (key, entry.version, entry.forks))
        .collect()
}

/// Removes the store's metadata; returns the commits that its stream still has.
fn wreck(it: &mut Fixture) -> StreamLeft {
    assert_eq!(it.partition_db().state_problem().unwrap(), None);
    let mut wreck = it.partition_db().batch();
    wreck.delete(keys::STATE_META);
    wreck.write().unwrap();
    it.reopen();
    let why = it.partition_db().state_problem().unwrap();
    assert_eq!(why.as_deref(), Some("where it stands is missing"));
    it.partition_db().state_stream_left().unwrap().unwrap()
}

#[test]
fn a_store_rebuilt_from_a_snapshot_and_the_commits_after_it_is_the_same_and_goes_on() {
    let mut it = Fixture::new();
    let (a, b) = (key("a"), key("b"));
    for n in 0..4 {
        it.commit(vec![write(&a, &format!("{{\"n\":{n}}}")), delete(&b)]);
    }
    let snapshot = Snapshot::of(&it);
    for _ in 0..3 {
        it.commit(vec![write(&b, "{}"), write(&key("c"), "{}")]);
    }
    let before = digest(&it);
    let left = wreck(&mut it);
    assert_eq!((left.from, left.to), (0, 7));
    assert_eq!(snapshot.rebuild(&mut it, left).unwrap(), 3);
    assert_eq!(it.state_reader().meta().keys, 3);
    assert_eq!(digest(&it), before);
    assert_eq!(values(it.read("b", At::Version(5)).unwrap()).unwrap().1, 5);
    let gone = it.read("a", At::Version(3)).unwrap_err();
    assert!(matches!(
        gone,
        StateReadError::HistoryBegins {
            version: Some(4),
            ..
        }
    ));
    let next = it.commit(vec![write(&a, "{}"), write(&key("d"), "{}")]);
    assert_eq!((next.commit_ts, next.versions), (8, vec![5, 1]));
}

#[test]
fn no_snapshot_from_before_an_import_is_brought_up_to_date_by_the_commits_around_it() {
    let mut it = Fixture::new();
    it.commit(vec![write(&key("a"), "{}")]);
    let before = Snapshot::of(&it);
    it.commit(vec![write(&key("a"), "{}")]);
    let other = Snapshot {
        commit_ts: 1,
        commit_forks: None,
        entries: vec![(
            key("b"),
            StateEntry {
                version: 5,
                commit_ts: 1,
                ..StateEntry::default()
            },
        )],
    };
    let imported_at = other.import(&mut it);
    assert_eq!(imported_at, GAP + 2);
    let after = Snapshot::of(&it);
    it.commit(vec![write(&key("a"), "{}")]);
    let whole = digest(&it);
    let left = wreck(&mut it);
    // A snapshot is chosen by these numbers.
    assert_eq!((left.from, left.to), (imported_at, imported_at + 1));
    assert!(before.commit_ts < left.from);
    after.rebuild(&mut it, left).unwrap();
    assert_eq!(digest(&it), whole);
    let again = it.commit(vec![write(&key("a"), "{}"), write(&key("b"), "{}")]);
    assert_eq!(again.commit_ts, imported_at + 2);
    // What the import has replaced is known after the rebuild, too: `a` was at version 2.
    assert_eq!(again.versions, [GAP + 4, GAP + 6]);
}

#[test]
fn a_snapshot_of_a_store_rebuilt_after_a_fork_leads_to_the_same_numbers_where_nothing_else_is_left()
{
    let mut it = Fixture::new();
    it.commit(vec![write(&key("a"), "{}")]);
    it.reopen();
    it.fork(1);
    let left = wreck(&mut it);
    Snapshot::default().rebuild(&mut it, left).unwrap();
    let snapshot = Snapshot::of(&it);
    assert_eq!(snapshot.commit_forks, Some(1));
    let next = || vec![write(&key("a"), "{}"), write(&key("b"), "{}")];
    let before = it.commit(next());

    let mut other = snapshot.rebuild_alone(1);
    let again = other.commit(next());
    assert_eq!(again.commit_ts, before.commit_ts);
    assert_eq!(again.versions, before.versions);
}

#[test]
fn a_snapshot_of_an_earlier_build_from_before_a_fork_leads_to_numbers_that_pass_over_it() {
    let mut it = Fixture::new();
    it.commit(vec![write(&key("a"), "{}")]);
    it.reopen();
    it.fork(1);
    let mut snapshot = Snapshot::of(&it);
    snapshot.commit_forks = None;
    let before = it.commit(vec![write(&key("a"), "{}")]);
    assert_eq!(before.commit_ts, 2 + GAP);
    let again = snapshot
        .rebuild_alone(1)
        .commit(vec![write(&key("a"), "{}")]);
    assert_eq!(again.commit_ts, before.commit_ts);
    assert_eq!(again.versions, before.versions);
}

/// Writes the state of the store's stream as an earlier build did: it is not recorded what left a gap,
/// and the gap of an import is merged with that of a fork right after it.
fn write_as_earlier_builds_did(it: &Fixture) {
    let NameEntry { id: stream, .. } = name_entry(&it.partition_db(), STATE_BASIN_ID, STATE_STREAM)
        .unwrap()
        .unwrap();
    let mut state = it.partition_db().stream_state(stream).unwrap().unwrap();
    state.merge_gaps();
    let mut batch = it.partition_db().batch();
    batch.put(keys::stream_state(stream), state.encode_to_vec());
    batch.write().unwrap();
}

#[test]
fn a_fork_right_after_an_import_is_counted_once_whichever_build_wrote_it() {
    for is_earlier in [false, true] {
        let mut it = Fixture::new();
        it.commit(vec![write(&key("a"), "{}")]);
        Snapshot::of(&it).import(&mut it);
        let snapshot = Snapshot::of(&it);
        it.fork(1);
        let done = it.commit(vec![write(&key("a"), "{}")]);
        assert_eq!(done.versions, [2 + 2 * GAP]);
        if is_earlier {
            write_as_earlier_builds_did(&it);
            it.reopen();
        }
        let whole = digest(&it);
        let left = wreck(&mut it);
        assert_eq!(snapshot.rebuild(&mut it, left).unwrap(), 1);
        assert_eq!(digest(&it), whole);
        // Versions skip the numbers of the next fork as commits do.
        it.fork(2);
        let next = it.commit(vec![write(&key("a"), "{}")]);
        assert_eq!(next.versions, [3 + 3 * GAP], "earlier: {is_earlier}");
        assert_eq!(next.commit_ts, done.commit_ts + GAP + 1);
    }
}

#[test]
fn versions_after_more_forks_than_the_stream_remembers_are_those_of_a_store_that_was_not_rebuilt() {
    let mut it = Fixture::new();
    it.commit(vec![write(&key("a"), "{}")]);
    let fork = |it: &mut Fixture, id| {
        it.reopen();
        it.fork(id);
    };
    fork(&mut it, 1);
    it.commit(vec![write(&key("a"), "{}")]);
    let snapshot = Snapshot::of(&it);
    for id in 2..4 + MAX_GAPS as u128 {
        fork(&mut it, id);
        it.commit(vec![write(&key("b"), "{}")]);
    }
    it.commit(vec![write(&key("a"), "{}")]);
    let whole = versions(&it);
    let left = wreck(&mut it);
    snapshot.rebuild(&mut it, left).unwrap();
    assert_eq!(versions(&it), whole);
}

#[test]
fn a_commit_that_is_missing_is_noticed() {
    let mut it = Fixture::new();
    for _ in 0..5 {
        it.commit(vec![write(&key("a"), "{}")]);
    }
    let left = wreck(&mut it);
    let NameEntry { id: stream, .. } = name_entry(&it.partition_db(), STATE_BASIN_ID, STATE_STREAM)
        .unwrap()
        .unwrap();
    for missing in [4, 2] {
        damage_batch(&it.partition_db(), stream, missing, None);
        let mut rebuild = it.partition_db().rebuild_state().unwrap();
        let error = rebuild.fold(0, left.to).unwrap_err();
        assert!(error.to_string().contains("are missing"), "{error}");
    }
}

#[derive(Clone, Debug)]
enum Do {
    Commit(Vec<(u8, bool)>),
    Snapshot,
    /// The store is lost, and rebuilt from a snapshot, counted from the newest, or from the stream alone.
    Rebuild(Option<usize>),
    /// A copy is made, something is committed after it, and only the copy is left.
    Loss(Vec<Vec<(u8, bool)>>),
    Import(usize),
    Reopen,
}

fn operations() -> impl Strategy<Value = Vec<(u8, bool)>> {
    prop::collection::vec((0u8..4, prop::bool::weighted(0.2)), 0..3)
}

fn deed() -> impl Strategy<Value = Do> {
    prop_oneof![
        8 => operations().prop_map(Do::Commit),
        3 => Just(Do::Snapshot),
        3 => prop::option::weighted(0.8, 0usize..4).prop_map(Do::Rebuild),
        2 => prop::collection::vec(operations(), 0..4).prop_map(Do::Loss),
        1 => (0usize..3).prop_map(Do::Import),
        1 => Just(Do::Reopen),
    ]
}

/// Numbers that were given out in any lineage.
#[derive(Default)]
struct Given {
    commits: BTreeSet<u64>,
    versions: BTreeSet<(u8, u64)>,
}

impl Given {
    fn commit(&mut self, it: &mut Fixture, operations: &[(u8, bool)]) {
        let key = |n: u8| key(&format!("k{n}"));
        let staged = operations.iter().map(|(n, deleted)| match deleted {
            true => delete(&key(*n)),
            false => write(&key(*n), &format!("{{\"n\":{}}}", self.commits.len())),
        });
        let done = it.commit(staged.collect());
        assert!(
            self.commits.insert(done.commit_ts),
            "commit {} again",
            done.commit_ts
        );
        for ((n, _), version) in operations.iter().zip(done.versions) {
            assert!(
                self.versions.insert((*n, version)),
                "version {version} of k{n} again"
            );
        }
    }
}

/// Does all of it, and asserts that a rebuilt store is the same as before, and that no number is given out
/// twice.
fn assert_numbers_are_given_out_once(deeds: Vec<Do>) {
    let mut it = Fixture::new();
    let mut given = Given::default();
    let mut snapshots: Vec<Snapshot> = Vec::new();
    let mut line = 1000;
    for one in deeds {
        match one {
            Do::Commit(operations) => given.commit(&mut it, &operations),
            Do::Snapshot => snapshots.push(Snapshot::of(&it)),
            Do::Reopen => it.reopen(),
            Do::Import(back) => {
                // The store itself has given out all numbers of this state.
                if let Some(snapshot) = snapshots.iter().rev().nth(back) {
                    let commit_ts = snapshot.import(&mut it);
                    given.commits.insert(commit_ts);
                }
            }
            Do::Loss(lost) => {
                it.reopen();
                let copy = it.checkpoint();
                let known = snapshots.len();
                for operations in &lost {
                    given.commit(&mut it, operations);
                }
                it = it.imported(&copy);
                it.reopen();
                line += 1;
                it.fork(line);
                snapshots.truncate(known);
            }
            Do::Rebuild(back) => {
                it.reopen();
                if it
                    .partition_db()
                    .state_meta()
                    .unwrap()
                    .is_none_or(|m| m.stream == 0)
                {
                    continue;
                }
                let whole = (digest(&it), versions(&it));
                let left = wreck(&mut it);
                let all = Snapshot::default();
                let usable = |s: &&Snapshot| (left.from..=left.to).contains(&s.commit_ts);
                let mut usable = snapshots
                    .iter()
                    .rev()
                    .filter(usable)
                    .chain((left.from == 0).then_some(&all));
                let chosen = match back {
                    Some(back) => usable.clone().nth(back).or_else(|| usable.next()),
                    None => usable.last(),
                };
                // Without a snapshot, an import leaves nothing to rebuild the store from.
                let Some(chosen) = chosen else { return };
                chosen.rebuild(&mut it, left).unwrap();
                assert_eq!((digest(&it), versions(&it)), whole);
            }
        }
    }
}

#[test]
fn a_first_version_after_forks_and_a_rebuild_from_an_empty_snapshot_is_given_out_once() {
    let write_k3 = || vec![(3, false)];
    assert_numbers_are_given_out_once(vec![
        Do::Commit(vec![]),
        Do::Loss(vec![]),
        Do::Rebuild(None),
        Do::Snapshot,
        Do::Loss(vec![]),
        Do::Snapshot,
        Do::Commit(write_k3()),
        Do::Loss(vec![write_k3()]),
        Do::Rebuild(Some(0)),
        Do::Commit(write_k3()),
    ]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(16), max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn however_a_store_is_lost_and_rebuilt_it_is_the_same_and_no_number_is_given_out_again(
        deeds in prop::collection::vec(deed(), 1..30),
    ) {
        assert_numbers_are_given_out_once(deeds);
    }
}
