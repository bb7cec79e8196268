//! Names that contain anything; order.

use crate::client::{Name, Read, State, key};

#[tokio::test]
async fn names_that_look_alike_when_joined_are_different() {
    let state = State::fresh().await;
    let names = [
        Name("n", "b:c", "k"),
        Name("n:b", "c", "k"),
        Name("n", "b", "c:k"),
        Name("n%3Ab", "c", "k"),
        Name("n\u{0}b", "c", "k"),
        Name("n", "b", "c\u{0}k"),
        Name("n", "b\u{0}c", "k"),
        Name("", "", ""),
        Name("", "", "\u{0}"),
        Name("\u{0}", "", ""),
        Name("n/b", "c\n", "é😀"),
    ];
    for (index, name) in names.iter().enumerate() {
        state.put(*name, &format!("{{\"n\":{index}}}")).await;
    }
    for (index, name) in names.iter().enumerate() {
        let read = state.get(*name).await;
        let expected = Read::of(&format!("{{\"n\":{index}}}"), 1, index as u64 + 1);
        assert_eq!(read, expected, "{index}");
        let keys = state.keys(name.0, name.1).await;
        let same = names.iter().filter(|it| (it.0, it.1) == (name.0, name.1));
        let mut same: Vec<_> = same.map(|it| it.2.to_owned()).collect();
        same.sort();
        assert_eq!(keys, same, "{index}");
    }
}

#[tokio::test]
async fn keys_are_in_order_of_their_bytes_and_prefixes_are_exact() {
    let state = State::fresh().await;
    let names = [
        "b",
        "a/2",
        "a/10",
        "a",
        "é",
        "a/1",
        "B",
        "a0",
        "ab",
        "\u{10ffff}",
    ];
    let txn = state.begin().await;
    for name in names {
        state.write(&txn, key(name), "{}").await.unwrap();
    }
    state.commit(&txn).await.unwrap();
    let mut sorted = names.map(str::to_owned);
    sorted.sort();
    assert_eq!(state.keys("default", "a").await, sorted);
    let scanned = async |prefix: &str| {
        let entries = state.scan("a", prefix).await;
        entries.into_iter().map(|it| it.key).collect::<Vec<_>>()
    };
    assert_eq!(scanned("a/").await, ["a/1", "a/10", "a/2"]);
    assert_eq!(scanned("a/1").await, ["a/1", "a/10"]);
    assert_eq!(scanned("\u{10ffff}").await, ["\u{10ffff}"]);
    assert_eq!(scanned("").await, sorted);
    assert!(scanned("c").await.is_empty());
}
