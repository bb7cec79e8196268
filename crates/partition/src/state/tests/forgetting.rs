//! Which versions of keys are forgotten.

use super::*;

/// A key's earlier versions, in order.
fn earlier(it: &Fixture, key: &StateKey) -> Vec<u64> {
    let names = key.encode();
    let generation = it.state_reader().meta().generation;
    let part = it.part();
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
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn surplus_versions_of_changed_keys_go_and_no_others_whatever_is_remembered_of_them(
        deeds in prop::collection::vec(deed(), 1..60),
    ) {
        let mut it = Fixture::with(eager());
        // What stops before each command remembers nothing of the one before.
        let mut forgetful = Fixture::with(eager());
        let mut model: BTreeMap<u8, Vec<u64>> = BTreeMap::new();
        // The commits that no command has looked at: their keys with the newest version of each.
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
