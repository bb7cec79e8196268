//! Which versions of keys are removed.

use super::*;

/// A key's earlier versions, in order.
fn earlier(it: &Fixture, key: &StateKey) -> Vec<u64> {
    let names = key.encode();
    let generation = it.state_reader().meta().generation;
    let part = it.partition_db();
    let from = keys::state_history(generation, &names, 0);
    let to = keys::state_history(generation, &names, u64::MAX);
    let mut rows = part.iterate(&from, &to, false);
    rows.seek_to_first();
    let mut versions = Vec::new();
    while let Some(version) = rows.key().and_then(keys::last_number) {
        versions.push(version);
        rows.next();
    }
    versions
}

/// Bytes of a key's earlier versions.
fn earlier_bytes(it: &Fixture, key: &StateKey) -> u64 {
    let names = key.encode();
    let generation = it.state_reader().meta().generation;
    let part = it.partition_db();
    let from = keys::state_history(generation, &names, 0);
    let to = keys::state_history(generation, &names, u64::MAX);
    let mut rows = part.iterate(&from, &to, false);
    rows.seek_to_first();
    let mut bytes = 0;
    while let (Some(key), Some(value)) = (rows.key(), rows.value()) {
        bytes += (key.len() + value.len()) as u64;
        rows.next();
    }
    bytes
}

#[test]
fn a_command_that_cuts_versions_and_history_counts_what_it_deletes_once() {
    let mut it = Fixture::new();
    let (a, b) = (key("a"), key("b"));
    for n in 0..20 {
        let value = format!("{{\"n\":{n}}}");
        it.commit(vec![write(&a, &value), write(&b, &value)]);
    }
    let before = earlier_bytes(&it, &a) + earlier_bytes(&it, &b);
    it.prune(StatePrune {
        versions_to: 15,
        keep_versions: 8,
        history_below: 10,
        at_ms: 0,
    });
    assert_eq!(earlier(&it, &a), (13..20).collect::<Vec<_>>());
    let after = earlier_bytes(&it, &a) + earlier_bytes(&it, &b);
    assert_eq!(it.machine().garbage(), before - after);
    // The next command does not count it again.
    it.prune(StatePrune {
        versions_to: 15,
        keep_versions: 8,
        history_below: 12,
        at_ms: 0,
    });
    assert_eq!(it.machine().garbage(), before - after);
}

#[test]
fn what_an_import_replaces_is_counted_once_as_space_to_give_back() {
    let mut it = Fixture::new();
    for n in 0..200 {
        let value = format!("\"{}\"", n.to_string().repeat(400));
        it.commit(vec![write(&key(&n.to_string()), &value)]);
    }
    it.flush();
    let expected: u64 = {
        let ranges = keys::state_generation(it.state_reader().meta().generation);
        let part = it.partition_db();
        let bytes = |(from, to): &(Vec<u8>, Vec<u8>)| part.approximate_bytes(from, to).unwrap();
        ranges.iter().map(bytes).sum()
    };
    assert!(expected > 0);
    // The second import replaces entries that are in memory only.
    for _ in 0..2 {
        let steps = [
            ImportStep::Begin(ImportBegin { replace: true }),
            ImportStep::Entries(ImportEntries {
                entries: vec![imported("a", 7, Some("{}"))],
            }),
            ImportStep::Finish(finish(8)),
        ];
        for step in steps {
            it.import(step).unwrap();
        }
        assert_eq!(it.machine().garbage(), expected);
    }
}

#[derive(Clone, Debug)]
enum Do {
    Commit(Vec<u8>),
    Keep { versions: u64, to: u64 },
    Fork,
}

fn deed() -> impl Strategy<Value = Do> {
    prop_oneof![
        8 => prop::collection::vec(0u8..3, 0..4).prop_map(Do::Commit),
        3 => (1u64..5, 0u64..20).prop_map(|(versions, to)| Do::Keep { versions, to }),
        1 => Just(Do::Fork),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(8), max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn surplus_versions_of_changed_keys_go_and_no_others_whatever_is_remembered_of_them(
        deeds in prop::collection::vec(deed(), 1..60),
    ) {
        let mut it = Fixture::with(eager());
        // This store is opened again before each command, so it remembers nothing of the one before.
        let mut forgetful = Fixture::with(eager());
        let mut model: BTreeMap<u8, Vec<u64>> = BTreeMap::new();
        // The commits that no command has visited: their keys, with the newest version of each.
        let mut changes: Vec<(u64, BTreeMap<u8, u64>)> = Vec::new();
        let (mut last, mut lineage) = (0, 100);
        for one in deeds {
            match one {
                Do::Commit(names) => {
                    let staged: Vec<_> = names.iter().map(|n| write(&name(*n), "{}")).collect();
                    forgetful.commit(staged.clone());
                    let committed = it.commit(staged);
                    last = committed.commit_ts;
                    let mut changed = BTreeMap::new();
                    for (name, version) in names.iter().zip(committed.versions) {
                        model.entry(*name).or_default().push(version);
                        changed.insert(*name, version);
                    }
                    changes.push((last, changed));
                }
                Do::Keep { versions, to } => {
                    let to = last.saturating_sub(to);
                    let prune = StatePrune {
                        versions_to: to,
                        keep_versions: versions,
                        history_below: 0,
                        at_ms: 0,
                    };
                    forgetful.reopen();
                    forgetful.prune(prune.clone());
                    it.prune(prune);
                    let mut newest = BTreeMap::new();
                    changes.retain(|(at, changed)| {
                        if *at <= to {
                            newest.extend(changed.clone());
                        }
                        *at > to
                    });
                    for (name, newest) in newest {
                        let all = model.get_mut(&name).unwrap();
                        let surplus = all.len().saturating_sub(versions as usize);
                        let mut at = 0;
                        all.retain(|version| {
                            at += 1;
                            at > surplus || *version >= newest
                        });
                    }
                }
                Do::Fork => {
                    lineage += 1;
                    it.fork(lineage);
                    forgetful.fork(lineage);
                }
            }
            for (n, versions) in &model {
                let but_present = &versions[..versions.len().saturating_sub(1)];
                prop_assert_eq!(&earlier(&it, &name(*n)), but_present);
                prop_assert_eq!(&earlier(&forgetful, &name(*n)), but_present);
            }
        }
    }
}
