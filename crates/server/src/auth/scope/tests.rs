//! Scopes against a model that lists what is permitted.

use esker_node::{OpGroups, ReadWrite};
use proptest::prelude::*;

use super::*;

/// All names that the model knows: few and short, so that sets often meet.
fn universe() -> Vec<String> {
    let mut all = vec![String::new()];
    for length in 1..=3 {
        for number in 0..1 << length {
            let bit = |at: u32| if number >> at & 1 == 1 { 'b' } else { 'a' };
            all.push((0..length).map(bit).collect());
        }
    }
    all
}

fn name_set() -> impl Strategy<Value = NameSet> {
    prop_oneof![
        Just(NameSet::NONE),
        "[ab]{1,3}".prop_map(NameSet::exact),
        "[ab]{0,3}".prop_map(NameSet::prefix),
    ]
}

fn read_write() -> impl Strategy<Value = ReadWrite> {
    (any::<bool>(), any::<bool>()).prop_map(|(read, write)| ReadWrite { read, write })
}

fn scope() -> impl Strategy<Value = TokenScope> {
    (
        [name_set(), name_set(), name_set(), name_set(), name_set()],
        [read_write(), read_write(), read_write()],
        proptest::collection::vec(0u32..30, 0..4),
        [any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()],
    )
        .prop_map(|(sets, [account, basin, stream], ops, flags)| {
            let [basins, streams, access_tokens, namespaces, agents] = sets;
            let [state_read, state_write, admin_read, admin_write] = flags;
            TokenScope {
                basins,
                streams,
                access_tokens,
                op_groups: OpGroups {
                    account,
                    basin,
                    stream,
                },
                ops,
                namespaces,
                agents,
                state_read,
                state_write,
                admin_read,
                admin_write,
            }
        })
}

/// The names of a set, one by one.
fn names(set: &NameSet) -> Vec<String> {
    let within = |name: &String| match &set.names {
        None => false,
        Some(Names::Exact(exact)) => exact == name,
        Some(Names::Prefix(prefix)) => name.get(..prefix.len()) == Some(prefix.as_str()),
    };
    universe().into_iter().filter(within).collect()
}

/// Everything that a scope permits, one by one.
fn permitted(scope: &TokenScope) -> Vec<String> {
    let mut all = Vec::new();
    let groups = [
        scope.op_groups.account.read,
        scope.op_groups.account.write,
        scope.op_groups.basin.read,
        scope.op_groups.basin.write,
        scope.op_groups.stream.read,
        scope.op_groups.stream.write,
    ];
    for it in OPERATIONS {
        let (group, effect) = operation::group(it);
        let at = group as usize * 2 + effect as usize;
        if groups[at] || scope.ops.contains(&(it as u32)) {
            all.push(format!("op {}", operation::name(it)));
        }
    }
    for (kind, set) in [
        ("basin", &scope.basins),
        ("stream", &scope.streams),
        ("token", &scope.access_tokens),
        ("namespace", &scope.namespaces),
        ("agent", &scope.agents),
    ] {
        all.extend(names(set).into_iter().map(|name| format!("{kind} {name}")));
    }
    for (name, set) in [
        ("state.read", scope.state_read),
        ("state.write", scope.state_write),
        ("admin.read", scope.admin_read),
        ("admin.write", scope.admin_write),
    ] {
        if set {
            all.push(name.to_owned());
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_scope_within_another_permits_nothing_that_the_other_does_not(
        outer in scope(),
        inner in scope(),
    ) {
        if exceeding(&outer, &inner).is_none() {
            let of_outer = permitted(&outer);
            for one in permitted(&inner) {
                prop_assert!(of_outer.contains(&one), "{one}");
            }
        }
    }

    #[test]
    fn a_scope_is_within_itself_and_an_empty_one_within_every(scope in scope()) {
        prop_assert_eq!(exceeding(&scope, &scope), None);
        prop_assert_eq!(exceeding(&scope, &TokenScope::default()), None);
    }

    #[test]
    fn one_permission_more_exceeds(scope in scope()) {
        let all = TokenScope {
            basins: NameSet::prefix(""),
            streams: NameSet::prefix(""),
            access_tokens: NameSet::prefix(""),
            namespaces: NameSet::prefix(""),
            agents: NameSet::prefix(""),
            state_read: true,
            state_write: true,
            admin_read: true,
            admin_write: true,
            ops: OPERATIONS.into_iter().map(|it| it as u32).collect(),
            ..TokenScope::default()
        };
        let lacks = permitted(&scope).len() < permitted(&all).len();
        if lacks {
            prop_assert!(exceeding(&scope, &all).is_some());
        }
    }

    #[test]
    fn a_list_shows_what_is_in_the_set_and_nothing_else(
        set in name_set(),
        prefix in "[ab]{0,2}",
        start_after in "[ab]{0,2}",
    ) {
        let expected: Vec<_> = names(&set)
            .into_iter()
            .filter(|it| it.starts_with(&prefix) && *it > start_after)
            .collect();
        let shown: Vec<_> = match visible(&set, &prefix, &start_after) {
            Visible::Nothing => Vec::new(),
            Visible::One(name) => vec![name],
            Visible::Prefixed { prefix, start_after } => universe()
                .into_iter()
                .filter(|it| it.starts_with(&prefix) && *it > start_after)
                .collect(),
        };
        prop_assert_eq!(shown, expected);
    }
}

#[test]
fn names_are_compared_byte_by_byte() {
    let set = NameSet::exact("caf\u{e9}");
    assert!(set.contains("caf\u{e9}"));
    // The same letters with a combining accent, and letters that look alike.
    assert!(!set.contains("cafe\u{301}"));
    assert!(!NameSet::prefix("a/").contains("\u{430}/x"));
    assert!(!NameSet::prefix("a/").contains("a%2Fx"));
    assert!(!NameSet::prefix("a/b").contains("a/../a/b"));
}
