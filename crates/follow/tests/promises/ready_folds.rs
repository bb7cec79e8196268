//! The ready folds: keys of values that differ, numbers of any size, and snapshots of their version 1.
//!
//! The fixtures are what version 1 wrote for [`RECORDS`] and [`PATCHES`].

use std::sync::Arc;

use esker_follow::folds::{Count, Latest, Merge};
use esker_follow::{External, Fold, Follower};
use object_store::ObjectStoreExt as _;

use crate::model::Stream;
use crate::store::Store;

const RECORDS: [&str; 8] = [
    r#"{"id":1,"n":0}"#,
    r#"{"id":"1","n":1}"#,
    r#"{"id":null,"n":2}"#,
    r#"{"id":"null","n":3}"#,
    r#"{"id":18446744073709551617,"n":4}"#,
    r#"{"id":18446744073709551618,"n":5}"#,
    r#"{"id":"c1","n":6}"#,
    r#"{"id":7,"n":7}"#,
];
const PATCHES: [&str; 3] = [
    r#"{"a":1,"b":{"c":"x","d":[1,{"e":null}]},"big":18446744073709551617}"#,
    r#"{"b":{"c":null,"f":2.50}}"#,
    r#"{"g":{"h":true,"i":null}}"#,
];

fn place(store: &Store) -> External {
    External::new(Arc::new(store.clone()), "s")
}

async fn open<F: Fold>(stream: &Stream, store: &Store, fold: F) -> Follower<F> {
    let builder = Follower::builder(stream.clone(), fold).external(place(store));
    let follower = builder.open().await.unwrap();
    follower.caught_up().await.unwrap();
    follower
}

/// The state of a fold with these records, once as it is and once through a snapshot.
async fn states<F: Fold>(fold: F, records: &[&'static str]) -> [F; 2] {
    let (stream, store) = (Stream::new(1), Store::new(1, 0.0, 0));
    stream.data(records.iter().copied());
    let follower = open(&stream, &store, fold.clone()).await;
    follower.snapshot().await.unwrap();
    let one = follower.close().await.unwrap().state;
    let restored = open(&stream, &store, fold).await;
    assert_eq!(restored.status().applied, 0);
    [one, restored.close().await.unwrap().state]
}

/// Follows a stream with these records from a snapshot that version 1 took behind them, and then with
/// these that came since.
async fn from_version_1<F: Fold>(
    fold: F,
    fixture: &'static str,
    records: &[&'static str],
    since: &[&'static str],
) -> [F; 2] {
    let (stream, store) = (Stream::new(1), Store::new(1, 0.0, 0));
    stream.data(records.iter().copied());
    let object = format!("s/{}.json", records.len());
    store
        .put(&object.as_str().into(), fixture.into())
        .await
        .unwrap();
    stream.data(since.iter().copied());
    let follower = open(&stream, &store, fold.clone()).await;
    assert_eq!(follower.restored().unwrap().place, object);
    let taken = follower.snapshot().await.unwrap();
    let one = follower.close().await.unwrap().state;
    // What it takes itself is of version 2, and has everything.
    let restored = open(&stream, &store, fold).await;
    assert_eq!(restored.restored().unwrap().place, taken.place);
    [one, restored.close().await.unwrap().state]
}

fn bodies(latest: &Latest) -> Vec<(String, String)> {
    let text = |body: &[u8]| String::from_utf8(body.to_vec()).unwrap();
    let mut bodies: Vec<_> = latest
        .iter()
        .map(|(key, body)| (key.to_owned(), text(body)))
        .collect();
    bodies.sort();
    bodies
}

fn counts(count: &Count) -> Vec<(&str, u64)> {
    count.iter().collect()
}

#[tokio::test(start_paused = true)]
async fn no_record_is_lost_to_another_one_whose_key_only_looks_the_same() {
    for latest in states(Latest::by("/id").unwrap(), &RECORDS).await {
        let found: Vec<_> = bodies(&latest).into_iter().map(|(_, body)| body).collect();
        let mut expected: Vec<_> = RECORDS.iter().map(ToString::to_string).collect();
        expected.sort_by_key(|body| found.iter().position(|found| found == body));
        assert_eq!(found, expected);
    }
    for count in states(Count::by("/id").unwrap(), &RECORDS).await {
        assert_eq!(
            counts(&count),
            [
                ("\"1\"", 1),
                ("\"null\"", 1),
                ("1", 1),
                ("18446744073709551617", 1),
                ("18446744073709551618", 1),
                ("7", 1),
                ("c1", 1),
                ("null", 1),
            ]
        );
    }
    for merge in states(Merge::new(), &PATCHES).await {
        assert_eq!(
            merge.document().to_string(),
            r#"{"a":1,"b":{"d":[1,{"e":null}],"f":2.50},"big":18446744073709551617,"g":{"h":true}}"#
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_of_latest_s_version_1_opens_and_its_records_have_their_keys_of_now() {
    let fixture = include_str!("../fixtures/latest-1.json");
    let since = [r#"{"id":1,"n":8}"#, r#"{"id":18446744073709551617,"n":9}"#];
    for latest in from_version_1(Latest::by("/id").unwrap(), fixture, &RECORDS, &since).await {
        let expected = [
            ("\"1\"", RECORDS[1]),
            ("\"null\"", RECORDS[3]),
            ("1", since[0]),
            ("18446744073709551617", since[1]),
            ("18446744073709551618", RECORDS[5]),
            ("7", RECORDS[7]),
            ("c1", RECORDS[6]),
        ];
        let expected = expected.map(|(key, body)| (key.to_owned(), body.to_owned()));
        assert_eq!(bodies(&latest), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_count_of_version_1_goes_to_the_first_key_that_it_may_be_of() {
    let fixture = include_str!("../fixtures/count-1.json");
    for count in from_version_1(Count::by("/id").unwrap(), fixture, &RECORDS, &[]).await {
        assert_eq!(
            counts(&count),
            [
                ("1", 2),
                ("1.8446744073709552e+19", 2),
                ("7", 1),
                ("c1", 1),
                ("null", 2),
            ]
        );
    }
    let since = [
        r#"{"id":"1"}"#,
        r#"{"id":1}"#,
        r#"{"id":18446744073709551618}"#,
        r#"{"id":18446744073709551617}"#,
        r#"{"id":"c1"}"#,
        r#"{"id":7}"#,
        r#"{"id":7}"#,
    ];
    for count in from_version_1(Count::by("/id").unwrap(), fixture, &RECORDS, &since).await {
        assert_eq!(
            counts(&count),
            [
                ("\"1\"", 3),
                ("1", 1),
                ("18446744073709551617", 1),
                ("18446744073709551618", 3),
                ("7", 3),
                ("c1", 2),
                ("null", 2),
            ]
        );
        assert_eq!(count.iter().map(|(_, n)| n).sum::<u64>(), 15);
    }
}

#[tokio::test(start_paused = true)]
async fn a_document_of_version_1_opens_and_keeps_the_digits_of_what_comes_since() {
    let fixture = include_str!("../fixtures/merge-1.json");
    let since = [r#"{"a":18446744073709551617}"#];
    for merge in from_version_1(Merge::new(), fixture, &PATCHES, &since).await {
        assert_eq!(
            merge.document().to_string(),
            r#"{"a":18446744073709551617,"b":{"d":[1,{"e":null}],"f":2.5},"big":1.8446744073709552e+19,"g":{"h":true}}"#
        );
    }
}
