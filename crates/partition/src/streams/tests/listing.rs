//! Lists of a basin's streams.

use super::fixture::*;
use crate::ids::BasinId;
use crate::settings::StreamSettings;
use crate::streams::StreamOptions;

const NAMES: [&str; 9] = [
    "a", "a/b", "a/b/c", "ab", "b\u{1}", "z", "é", "名前", "名前/x",
];

fn with(basin: BasinId, names: &[&str]) -> Fixture {
    let mut partition = Fixture::new();
    // Created in another order than that of their names, with neighbours in the adjacent basins.
    for name in names.iter().rev() {
        partition.create_in(basin, name, StreamSettings::default());
    }
    for neighbour in [basin.0 - 1, basin.0 + 1] {
        partition.create_in(BasinId(neighbour), "a/neighbour", StreamSettings::default());
    }
    partition
}

/// As many bytes as two names take, roughly: with more streams, lists read the database.
fn with_few_names() -> StreamOptions {
    StreamOptions {
        name_bytes: 250,
        ..eager()
    }
}

fn list(
    partition: &Fixture,
    basin: BasinId,
    prefix: &str,
    after: &str,
    limit: usize,
) -> Vec<String> {
    let listed = partition
        .reader()
        .list(basin, prefix, after, limit)
        .unwrap();
    listed.into_iter().map(|listed| listed.name).collect()
}

#[test]
fn streams_are_listed_by_name_in_the_order_of_their_bytes() {
    let mut partition = with(BasinId(5), &NAMES);
    for _ in 0..2 {
        assert_eq!(list(&partition, BasinId(5), "", "", 100), NAMES);
        partition.reopen();
    }
    assert_eq!(list(&partition, BasinId(77), "", "", 100), [""; 0]);
}

#[test]
fn every_prefix_start_and_limit_gives_what_a_filter_would() {
    let basin = BasinId(255);
    let partition = with(basin, &NAMES);
    let probes = [
        "",
        "a",
        "a/",
        "a/b",
        "a/b/c/d",
        "ac",
        "b",
        "zz",
        "é",
        "名",
        "名前",
        "名前/x",
        "\u{10ffff}",
    ];
    for prefix in probes {
        for after in probes {
            for limit in [0, 1, 2, 100] {
                let expected: Vec<&str> = NAMES
                    .into_iter()
                    .filter(|name| name.starts_with(prefix) && (after.is_empty() || *name > after))
                    .take(limit)
                    .collect();
                assert_eq!(
                    list(&partition, basin, prefix, after, limit),
                    expected,
                    "prefix {prefix:?}, after {after:?}, limit {limit}"
                );
            }
        }
    }
}

#[test]
fn pages_add_up_to_the_whole() {
    let basin = BasinId(5);
    let partition = with(basin, &NAMES);
    let mut all: Vec<String> = Vec::new();
    loop {
        let after = all.last().cloned().unwrap_or_default();
        let page = list(&partition, basin, "", &after, 2);
        if page.is_empty() {
            break;
        }
        all.extend(page);
    }
    assert_eq!(all, NAMES);
}

#[test]
fn deleted_streams_are_not_listed_and_recreated_ones_are_once() {
    let mut partition = Fixture::new();
    partition.create("a");
    partition.create("b");
    partition.delete("a");
    assert_eq!(list(&partition, BASIN, "", "", 10), ["b"]);
    partition.apply(ensure(BASIN, "a", StreamSettings::default(), 7_000));
    let listed = partition.reader().list(BASIN, "", "", 10).unwrap();
    let listed: Vec<_> = listed.iter().map(|l| (&l.name[..], l.created_ms)).collect();
    assert_eq!(listed, [("a", 7_000), ("b", CREATED_MS)]);
}

#[test]
fn basins_at_the_ends_of_their_numbers_do_not_mix() {
    let mut partition = Fixture::new();
    let basins = [0, 1, 0xff, 0x100, u64::MAX - 1, u64::MAX].map(BasinId);
    for basin in basins {
        let name = format!("of {basin}");
        partition.create_in(basin, &name, StreamSettings::default());
    }
    for basin in basins {
        assert_eq!(list(&partition, basin, "", "", 10), [format!("of {basin}")]);
        assert_eq!(list(&partition, basin, "of", "o", 10).len(), 1);
    }
}

#[test]
fn names_in_memory_follow_every_change_and_are_given_up_when_there_are_too_many() {
    // What is listed is the same whether it comes from memory, from the database, or from one and then the other.
    for options in [eager(), with_few_names()] {
        let mut partition = Fixture::with(options);
        let others = BasinId(BASIN.0 + 1);
        partition.create("b");
        assert_eq!(list(&partition, BASIN, "", "", 10), ["b"]);
        partition.create("a");
        partition.create_in(others, "x", StreamSettings::default());
        assert_eq!(list(&partition, BASIN, "", "", 10), ["a", "b"]);
        assert_eq!(list(&partition, BASIN, "", "a", 10), ["b"]);
        partition.delete("b");
        partition.create("c");
        assert_eq!(list(&partition, BASIN, "", "", 10), ["a", "c"]);
        // In one step: what counts is what is left.
        let step = [
            delete(BASIN, "a"),
            create(BASIN, "a", StreamSettings::default()),
            create(BASIN, "d", StreamSettings::default()),
            delete(BASIN, "d"),
        ];
        partition.step(step.into());
        assert_eq!(list(&partition, BASIN, "", "", 10), ["a", "c"]);
        partition.apply(drop_basin(BASIN));
        assert_eq!(list(&partition, BASIN, "", "", 10), [""; 0]);
        assert_eq!(list(&partition, others, "", "", 10), ["x"]);
        partition.reopen();
        partition.maintain_all();
        assert_eq!(list(&partition, BASIN, "", "", 10), [""; 0]);
        assert_eq!(list(&partition, others, "", "", 10), ["x"]);
    }
}
