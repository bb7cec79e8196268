//! The state store on a real database, against a model.

mod bytes_read;
mod forgetting;
mod rows_read;

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use proptest::prelude::*;

use super::command::{
    ExpectedVersion, ImportAbort, ImportBegin, ImportEntries, ImportFinish, ImportStep,
    ImportedEntry, MAX_NUMBER, StagedOperation, StateCommit, StateCommitted, StateImport,
    StateImportRefusal, StateImported, StatePrune, StateRefusal,
};
use super::read::{At, StateReadError};
use super::{CommitRecord, STATE_STREAM, StateEntry, StateKey};
use crate::command::{Kind, Outcome};
use crate::ids::STATE_BASIN_ID;
use crate::keys;
use crate::lineage::GAP;
use crate::random_cases::cases;
use crate::streams::tests::fixture::{Fixture, eager};

pub(crate) fn key(name: &str) -> StateKey {
    StateKey::new("default", "agent", name)
}

pub(crate) fn write(key: &StateKey, value: &str) -> StagedOperation {
    StagedOperation {
        namespace: key.namespace.clone(),
        agent_id: key.agent_id.clone(),
        key: key.key.clone(),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
    }
}

pub(super) fn delete(key: &StateKey) -> StagedOperation {
    StagedOperation {
        value: None,
        ..write(key, "")
    }
}

fn expect(key: &StateKey, version: u64) -> ExpectedVersion {
    ExpectedVersion {
        namespace: key.namespace.clone(),
        agent_id: key.agent_id.clone(),
        key: key.key.clone(),
        version,
    }
}

fn commit_of(operations: Vec<StagedOperation>, expected: Vec<ExpectedVersion>) -> Kind {
    Kind::StateCommit(StateCommit {
        txn_id: "a transaction".to_owned(),
        operations,
        expected,
        at_ms: 5_000,
    })
}

impl Fixture {
    pub(super) fn try_commit(
        &mut self,
        operations: Vec<StagedOperation>,
        expected: Vec<ExpectedVersion>,
    ) -> Result<StateCommitted, StateRefusal> {
        match self.apply(commit_of(operations, expected)) {
            Outcome::StateCommitted(committed) => committed,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn commit(&mut self, operations: Vec<StagedOperation>) -> StateCommitted {
        self.try_commit(operations, Vec::new()).unwrap()
    }

    pub(super) fn read(&self, name: &str, at: At) -> Result<Option<StateEntry>, StateReadError> {
        self.state_reader().view(|view| view.get(&key(name), at))
    }

    pub(super) fn commits(&self, from: u64) -> Vec<CommitRecord> {
        let reader = self.state_reader();
        reader
            .commits(None, from, u64::MAX, 1000, usize::MAX)
            .unwrap()
            .0
    }

    pub(super) fn import(&mut self, step: ImportStep) -> Result<StateImported, StateImportRefusal> {
        let import = StateImport {
            id: 9,
            step: Some(step),
            at_ms: 6_000,
        };
        match self.apply(Kind::StateImport(import)) {
            Outcome::StateImported(done) => done,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn prune(&mut self, prune: StatePrune) {
        assert_eq!(self.apply(Kind::StatePrune(prune)), Outcome::StatePruned);
    }
}

pub(super) fn values(entry: Option<StateEntry>) -> Option<(u64, u64, Option<String>)> {
    entry.map(|e| {
        let value = e.value.map(|v| String::from_utf8(v.to_vec()).unwrap());
        (e.version, e.commit_ts, value)
    })
}

#[test]
fn a_commit_gives_each_operation_a_version_and_is_one_record() {
    let mut it = Fixture::new();
    let (a, b) = (key("a"), key("b"));
    let first = it.commit(vec![write(&a, r#"{"n":1}"#), write(&b, r#"{"n":2}"#)]);
    assert_eq!((first.commit_ts, first.versions), (1, vec![1, 1]));
    // A key that is written twice gets two versions; an empty commit takes a number.
    let second = it.commit(vec![write(&a, "{}"), delete(&a)]);
    assert_eq!((second.commit_ts, second.versions), (2, vec![2, 3]));
    assert_eq!(it.commit(vec![]).commit_ts, 3);
    assert_eq!(
        values(it.read("a", At::Latest).unwrap()),
        Some((3, 2, None))
    );
    assert_eq!(
        values(it.read("a", At::Version(2)).unwrap()),
        Some((2, 2, Some("{}".into())))
    );
    let commits = it.commits(0);
    let numbers: Vec<_> = commits.iter().map(|c| c.commit_ts).collect();
    assert_eq!(numbers, [1, 2, 3]);
    assert_eq!(commits[1].operations[1].version, 3);
    let stream = it.reader().stream(STATE_BASIN_ID, STATE_STREAM).unwrap();
    assert_eq!(stream.unwrap().tail().seq_num, 3);
}

#[test]
fn a_read_from_memory_finds_what_a_read_finds() {
    let mut it = Fixture::new();
    it.commit(vec![write(&key("a"), "{}")]);
    let reader = it.state_reader();
    let found = reader.get_cached(&key("a")).unwrap();
    assert_eq!(found, Some(reader.get(&key("a")).unwrap()));
    assert_eq!(reader.get_cached(&key("b")).unwrap(), Some(None));
    drop(reader);
    it.reopen();
    let reader = it.state_reader();
    // The entry is in a file now. The opening may have read its block, or the next read brings it into
    // memory.
    let found = reader.get(&key("a")).unwrap();
    assert!(found.is_some());
    assert_eq!(reader.get_cached(&key("a")).unwrap(), Some(found));
}

#[test]
fn expected_versions_are_met_or_nothing_happens() {
    let mut it = Fixture::new();
    let a = key("a");
    it.try_commit(vec![write(&a, "{}")], vec![expect(&a, 0)])
        .unwrap();
    let refused = it.try_commit(vec![write(&a, "{}")], vec![expect(&a, 0)]);
    assert_eq!(
        refused,
        Err(StateRefusal::VersionMismatch {
            key: a.clone(),
            expected: 0,
            actual: 1
        })
    );
    it.try_commit(vec![delete(&a)], vec![expect(&a, 1)])
        .unwrap();
    // A deleted key does not exist, and the version of its deletion is known.
    it.try_commit(vec![], vec![expect(&a, 0), expect(&a, 2)])
        .unwrap();
    let again = it.try_commit(vec![write(&a, "{}")], vec![expect(&a, 0)]);
    assert_eq!(again.unwrap().versions, [3]);
    assert_eq!(it.commits(0).len(), 4);
}

#[test]
fn versions_and_commits_that_a_fork_may_have_cut_off_are_never_given_out_again() {
    let mut it = Fixture::new();
    let (a, b) = (key("a"), key("b"));
    it.commit(vec![write(&a, "{}")]);
    it.fork(5);
    let next = it.commit(vec![write(&a, "{}"), write(&b, "{}")]);
    assert_eq!(next.commit_ts, GAP + 2);
    assert_eq!(next.versions, [GAP + 2, GAP + 1]);
    assert_eq!(it.commit(vec![write(&b, "{}")]).versions, [GAP + 2]);
    assert_eq!(
        values(it.read("a", At::Commit(1)).unwrap()),
        Some((1, 1, Some("{}".into())))
    );
    assert_eq!(it.read("b", At::Commit(GAP)).unwrap(), None);
    // A lost store begins above all numbers that it may have given out.
    let mut other = Fixture::new();
    other.fork(6);
    assert_eq!(other.commit(vec![write(&a, "{}")]).versions, [GAP + 1]);
    assert_eq!(other.commits(0)[0].commit_ts, GAP + 1);
}

#[test]
fn history_is_cut_where_the_policy_says_and_reading_below_says_where_it_begins() {
    let mut it = Fixture::with(eager());
    let (hot, cold) = (key("hot"), key("cold"));
    it.commit(vec![write(&cold, r#"{"n":0}"#)]);
    for n in 1..=20 {
        it.commit(vec![write(&hot, &format!("{{\"n\":{n}}}"))]);
    }
    it.prune(StatePrune {
        versions_to: 15,
        keep_versions: 8,
        history_below: 0,
        at_ms: 0,
    });
    // The newest 8 of 20 versions are left; commit 15 wrote version 14.
    let gone = it.read("hot", At::Version(12)).unwrap_err();
    assert!(
        matches!(
            gone,
            StateReadError::HistoryBegins {
                version: Some(13),
                ..
            }
        ),
        "{gone}"
    );
    assert!(it.read("hot", At::Version(13)).unwrap().is_some());
    assert_eq!(it.commits(0).len(), 21);
    it.prune(StatePrune {
        versions_to: 0,
        keep_versions: 0,
        history_below: 18,
        at_ms: 0,
    });
    let reader = it.state_reader();
    assert_eq!(reader.meta().history_begins(), 18);
    let gone = reader.commits(None, 16, 30, 9, 9).unwrap_err();
    assert!(gone.to_string().ends_with("commit_ts 18"), "{gone}");
    let numbers: Vec<_> = it.commits(17).iter().map(|c| c.commit_ts).collect();
    assert_eq!(numbers, [18, 19, 20, 21]);
    // The state just before is still known, and what did not change is as it was.
    assert_eq!(
        values(it.read("hot", At::Commit(17)).unwrap()).unwrap().0,
        16
    );
    assert_eq!(
        values(it.read("cold", At::Commit(17)).unwrap()).unwrap().0,
        1
    );
    assert!(it.read("cold", At::Commit(16)).is_err());
    let agent = reader.commits(Some(("default", "agent")), 17, 30, 9, usize::MAX);
    assert_eq!(agent.unwrap().0.len(), 4);
}

pub(super) fn finish(commit_ts: u64) -> ImportFinish {
    ImportFinish {
        commit_ts,
        raises_versions: true,
    }
}

fn imported(name: &str, version: u64, value: Option<&'static str>) -> ImportedEntry {
    ImportedEntry {
        namespace: "default".into(),
        agent_id: "agent".into(),
        key: name.into(),
        version,
        commit_ts: 40,
        forks: 0,
        value: value.map(|v| Bytes::from_static(v.as_bytes())),
    }
}

#[test]
fn an_import_is_visible_when_it_is_finished_and_counters_go_on() {
    let mut it = Fixture::new();
    let entries = vec![imported("a", 7, Some("{}")), imported("b", 3, None)];
    let replace = false;
    it.import(ImportStep::Begin(ImportBegin { replace }))
        .unwrap();
    it.import(ImportStep::Entries(ImportEntries { entries }))
        .unwrap();
    assert_eq!(it.read("a", At::Latest).unwrap(), None);
    let done = it.import(ImportStep::Finish(finish(50)));
    assert_eq!(done.unwrap().commit_ts, 50);
    assert_eq!(
        values(it.read("a", At::Latest).unwrap()),
        Some((7, 40, Some("{}".into())))
    );
    let next = it.commit(vec![
        write(&key("a"), "{}"),
        write(&key("b"), "{}"),
        write(&key("c"), "{}"),
    ]);
    assert_eq!((next.commit_ts, next.versions), (51, vec![8, 4, 1]));
    assert!(it.read("a", At::Version(6)).is_err());
    assert!(it.read("a", At::Commit(49)).is_err());
    assert_eq!(it.state_reader().meta().history_begins(), 51);
    let refused = it.import(ImportStep::Begin(ImportBegin { replace }));
    assert_eq!(refused, Err(StateImportRefusal::NotEmpty(51)));
}

#[test]
fn an_import_that_replaces_a_state_gives_out_nothing_again() {
    let mut it = Fixture::new();
    for _ in 0..9 {
        it.commit(vec![write(&key("a"), "{}"), write(&key("z"), "{}")]);
    }
    let replace = true;
    it.import(ImportStep::Begin(ImportBegin { replace }))
        .unwrap();
    let entries = vec![imported("a", 7, Some("{}"))];
    it.import(ImportStep::Entries(ImportEntries { entries }))
        .unwrap();
    it.commit(vec![write(&key("a"), "{}")]);
    let done = it.import(ImportStep::Finish(finish(8)));
    assert_eq!(done.unwrap().commit_ts, GAP + 10);
    assert_eq!(it.read("z", At::Latest).unwrap(), None);
    let next = it.commit(vec![write(&key("a"), "{}"), write(&key("z"), "{}")]);
    assert_eq!(next.commit_ts, GAP + 11);
    // Above all that were given out, of whatever key.
    assert_eq!(next.versions, [GAP + 11, GAP + 11]);
    it.reopen();
    let numbers: Vec<_> = it.commits(GAP + 10).iter().map(|c| c.commit_ts).collect();
    assert_eq!(numbers, [GAP + 11]);
}

/// Replaces the state by these entries.
fn replace_by(it: &mut Fixture, entries: Vec<ImportedEntry>, last: ImportFinish) {
    let replace = true;
    it.import(ImportStep::Begin(ImportBegin { replace }))
        .unwrap();
    it.import(ImportStep::Entries(ImportEntries { entries }))
        .unwrap();
    it.import(ImportStep::Finish(last)).unwrap();
}

#[test]
fn whatever_history_replaces_the_state_no_version_of_a_key_is_given_out_twice() {
    let of_another_store = |name: &str, version, forks| ImportedEntry {
        forks,
        ..imported(name, version, Some("{}"))
    };
    let mut it = Fixture::new();
    let mut given: HashMap<&str, HashSet<u64>> = HashMap::new();
    for round in 0..40_u64 {
        let next = it.commit(["a", "b", "c"].map(|name| write(&key(name), "{}")).into());
        for (name, version) in ["a", "b", "c"].into_iter().zip(next.versions) {
            let is_new = given.entry(name).or_default().insert(version);
            assert!(
                is_new,
                "round {round}: version {version} of {name} is given out again"
            );
        }
        // The same snapshot again and again, with large and small versions, and keys that are missing in turns.
        let mut entries = vec![of_another_store("a", 10 * GAP + 3, 10)];
        match round % 4 {
            0 => entries.push(of_another_store("b", 3, 0)),
            1 => entries.push(of_another_store("b", 9 * GAP + 7, 2)),
            2 => entries = vec![of_another_store("c", 5, 5)],
            _ => {}
        }
        if round % 5 == 4 {
            it.flush();
            it.fork(1);
        }
        replace_by(&mut it, entries, finish(8));
        if round % 7 == 6 {
            it.flush();
            it.fork(1);
        }
        it.reopen();
    }
}

#[test]
fn an_import_that_an_earlier_build_has_proposed_is_applied_as_it_did() {
    let mut it = Fixture::new();
    it.commit(vec![write(&key("a"), "{}")]);
    let of_earlier_build = ImportFinish {
        raises_versions: false,
        ..finish(8)
    };
    replace_by(
        &mut it,
        vec![imported("a", 7, Some("{}"))],
        of_earlier_build,
    );
    assert_eq!(it.state_reader().meta().floor, None);
    let next = it.commit(vec![write(&key("a"), "{}"), write(&key("z"), "{}")]);
    assert_eq!(next.versions, [GAP + 8, GAP + 1]);
}

#[test]
fn no_number_is_given_out_that_could_not_be_imported() {
    for (version, commit_ts) in [(MAX_NUMBER - 1, 9), (9, MAX_NUMBER - 1)] {
        let mut it = Fixture::new();
        let replace = false;
        it.import(ImportStep::Begin(ImportBegin { replace }))
            .unwrap();
        let entries = vec![imported("a", version, Some("{}"))];
        it.import(ImportStep::Entries(ImportEntries { entries }))
            .unwrap();
        it.import(ImportStep::Finish(finish(commit_ts))).unwrap();
        let last = it.commit(vec![write(&key("a"), "{}")]);
        assert_eq!(
            (last.versions, last.commit_ts),
            (vec![version + 1], commit_ts + 1)
        );
        let refused = it.try_commit(vec![write(&key("a"), "{}")], Vec::new());
        assert_eq!(refused, Err(StateRefusal::Exhausted));
        // A fork does not exceed the limit either.
        it.flush();
        it.fork(1);
        let refused = it.try_commit(vec![write(&key("a"), "{}")], Vec::new());
        assert_eq!(refused, Err(StateRefusal::Exhausted));
        assert_eq!(it.state_reader().meta().commit_ts, commit_ts + 1);
        // An import that replaces the state does not exceed it either: what follows it would have no number.
        let replace = true;
        it.import(ImportStep::Begin(ImportBegin { replace }))
            .unwrap();
        let finished = it.import(ImportStep::Finish(finish(1)));
        assert!(
            matches!(finished, Err(StateImportRefusal::Invalid(_))),
            "{finished:?}"
        );
    }
}

#[test]
fn an_import_that_is_aborted_leaves_nothing_and_ends() {
    let mut it = Fixture::new();
    it.commit(vec![write(&key("a"), "{}")]);
    let replace = true;
    let entries = vec![imported("b", 7, Some("{}"))];
    it.import(ImportStep::Begin(ImportBegin { replace }))
        .unwrap();
    it.import(ImportStep::Entries(ImportEntries { entries }))
        .unwrap();
    let part = it.state_reader().partition_db().clone();
    let entries = || {
        let [(from, to), _] = keys::state_generation(1);
        let mut rows = part.iterate(&from, &to, false);
        rows.seek_to_first();
        rows.key().is_some()
    };
    assert!(entries());
    it.import(ImportStep::Abort(ImportAbort {})).unwrap();
    assert!(!entries());
    assert_eq!(it.state_reader().meta().importing, None);
    let done = it.import(ImportStep::Finish(finish(50)));
    assert_eq!(done, Err(StateImportRefusal::Superseded));
    assert_eq!(it.commit(vec![write(&key("a"), "{}")]).versions, [2]);
}

/// The versions of each key: version, commit and value after each commit that changed it.
type Model = BTreeMap<StateKey, Vec<(u64, u64, Option<String>)>>;

#[derive(Clone, Debug)]
enum Do {
    /// Keys to write, and whether to delete instead.
    Commit(Vec<(u8, bool)>),
    Reopen,
    Crash,
    Replay(usize),
    Prune {
        keep: u64,
        below: u64,
    },
    Elsewhere,
}

fn deed() -> impl Strategy<Value = Do> {
    prop_oneof![
        8 => prop::collection::vec((0u8..5, prop::bool::weighted(0.2)), 0..4).prop_map(Do::Commit),
        1 => Just(Do::Reopen),
        1 => Just(Do::Crash),
        1 => (1usize..7).prop_map(Do::Replay),
        1 => (0u64..4, 0u64..12).prop_map(|(keep, below)| Do::Prune { keep, below }),
        1 => Just(Do::Elsewhere),
    ]
}

fn name(n: u8) -> StateKey {
    // Agents whose names could be confused with those of their keys.
    match n {
        0 => StateKey::new("n", "b:c", "k"),
        1 => StateKey::new("n:b", "c", "k"),
        n => StateKey::new("n", "b", format!("k{n}")),
    }
}

fn check(it: &Fixture, model: &Model, last: u64) {
    let reader = it.state_reader();
    let begins = reader.meta().history_begins();
    reader
        .view(|view| {
            assert_eq!(view.meta.commit_ts, last);
            for (key, versions) in model {
                let newest = versions.last().cloned();
                assert_eq!(values(view.get(key, At::Latest)?), newest);
                for (version, commit_ts, value) in versions {
                    let expected = Some((*version, *commit_ts, value.clone()));
                    match view.get(key, At::Version(*version)) {
                        Ok(read) => assert_eq!(values(read), expected),
                        Err(StateReadError::HistoryBegins {
                            version: Some(v), ..
                        }) => {
                            assert!(*version < v);
                        }
                        Err(other) => panic!("{other}"),
                    }
                }
                for ts in 0..=last {
                    let was = versions.iter().rfind(|(_, at, _)| *at <= ts);
                    match view.get(key, At::Commit(ts)) {
                        Ok(read) => assert_eq!(values(read), was.cloned(), "as of {ts}"),
                        Err(StateReadError::HistoryBegins { commit_ts, .. }) => {
                            assert!(ts < commit_ts);
                        }
                        Err(other) => panic!("{other}"),
                    }
                }
            }
            Ok(())
        })
        .unwrap();
    let commits = it.commits(begins - 1);
    let numbers: Vec<_> = commits.iter().map(|c| c.commit_ts).collect();
    assert_eq!(numbers, (begins..=last).collect::<Vec<_>>());
    for (key, versions) in model {
        let agent = Some((&*key.namespace, &*key.agent_id));
        let (of_agent, _) = reader
            .commits(agent, begins - 1, last, 1000, usize::MAX)
            .unwrap();
        let replayed: Vec<_> = of_agent
            .iter()
            .flat_map(|c| c.operations.iter().map(move |o| (c.commit_ts, o)))
            .filter(|(_, o)| o.key == *key)
            .map(|(ts, o)| {
                let value = o.value.as_ref();
                let value = value.map(|v| String::from_utf8(v.to_vec()).unwrap());
                (o.version, ts, value)
            })
            .collect();
        let kept: Vec<_> = versions.iter().filter(|v| v.1 >= begins).cloned().collect();
        assert_eq!(replayed, kept);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(12), max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_history_reads_as_in_a_model_however_it_is_stopped_and_replayed(
        deeds in prop::collection::vec(deed(), 1..40),
    ) {
        let mut it = Fixture::with(eager());
        let mut model = Model::new();
        let mut last = 0;
        for one in deeds {
            match one {
                Do::Commit(operations) => {
                    last += 1;
                    let mut staged = Vec::new();
                    for (at, (n, deleted)) in operations.into_iter().enumerate() {
                        let key = name(n);
                        let value = (!deleted).then(|| format!("{{\"n\":\"{last}.{at}\"}}"));
                        staged.push(match &value {
                            Some(value) => write(&key, value),
                            None => delete(&key),
                        });
                        let versions = model.entry(key).or_default();
                        versions.push((versions.len() as u64 + 1, last, value));
                    }
                    prop_assert_eq!(it.commit(staged).commit_ts, last);
                }
                Do::Reopen => it.reopen(),
                Do::Crash => {
                    it.stop_and_open();
                    it.replay(3);
                }
                Do::Replay(step) => {
                    it.stop_and_open();
                    it.replay(step);
                }
                Do::Prune { keep, below } => it.prune(StatePrune {
                    versions_to: last,
                    keep_versions: keep,
                    history_below: below.min(last + 1),
                    at_ms: 0,
                }),
                Do::Elsewhere => {
                    let digest = it.partition_db().digest().unwrap();
                    let checkpoint = it.checkpoint();
                    it = it.imported(&checkpoint);
                    prop_assert_eq!(it.partition_db().digest().unwrap().digest, digest.digest);
                }
            }
            check(&it, &model, last);
        }
    }
}

#[test]
fn commits_that_were_proposed_before_a_fork_find_the_versions_that_they_expect() {
    let mut it = Fixture::new();
    let (old, new) = (key("old"), key("new"));
    it.commit(vec![write(&old, "1")]);
    it.fork_before(1);
    let mut commit = |key: &StateKey, expected, version: u64| {
        let made = it.try_commit(vec![write(key, "2")], vec![expect(key, expected)]);
        assert_eq!(made.unwrap().versions, [version + GAP], "{expected}");
    };
    commit(&old, 1, 2);
    commit(&old, 2, 3);
    commit(&new, 0, 1);
    commit(&new, 1, 2);
    for (key, version) in [(&old, 1), (&old, 2), (&old, 3 + GAP), (&new, 0), (&new, 1)] {
        let made = it.try_commit(vec![write(key, "3")], vec![expect(key, version)]);
        assert!(made.is_err(), "{version}");
    }
    it.flush();
    it.open_behind_fork();
    let made = it.try_commit(vec![write(&old, "3")], vec![expect(&old, 3)]);
    assert_eq!(made.unwrap().versions, [4 + GAP]);
    it.reopen();
    let made = it.try_commit(vec![write(&old, "4")], vec![expect(&old, 4 + GAP)]);
    assert_eq!(made.unwrap().versions, [5 + GAP]);
}
