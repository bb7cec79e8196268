//! Pages of the state store.

use bytes::Bytes;
use esker_node::Client;
use esker_node::state::{Scan, StateKey};
use serde_json::{Value, json};

use super::World;

#[tokio::test(flavor = "multi_thread")]
async fn the_versions_of_a_key_are_listed_page_by_page() {
    let world = World::new().await;
    for value in [r#"{"a":1}"#, r#"{"a":2}"#, r#"{"a":3}"#] {
        world.commit("k", value).await;
    }
    let path = "/state/versions?namespace=n&agent=a&key=k";
    let numbers = |page: &Value| -> Vec<u64> {
        let versions = page["versions"].as_array().unwrap().iter();
        versions.map(|it| it["version"].as_u64().unwrap()).collect()
    };
    let all = world.get(path).await;
    assert_eq!((numbers(&all), &all["next"]), (vec![3, 2, 1], &Value::Null));
    let first = world.get(&format!("{path}&limit=2")).await;
    assert_eq!((numbers(&first), &first["next"]), (vec![3, 2], &json!(2)));
    let second = world.get(&format!("{path}&limit=2&before=2")).await;
    assert_eq!((numbers(&second), &second["next"]), (vec![1], &Value::Null));
    // One that the key does not have yet is above all.
    let beyond = world.get(&format!("{path}&before=9")).await;
    assert_eq!(numbers(&beyond), [3, 2, 1]);
    world.stop().await;
}

/// Keys of one commit: as many as its record holds with ease.
const MANY: usize = 4000;

impl World {
    /// Commits one operation on each of these keys of the agent `n`, `a`.
    async fn commit_all(&self, keys: std::ops::Range<usize>, value: Option<&'static str>) {
        let store = self.node.state();
        let txn = store.begin(Client::default(), None).unwrap();
        for number in keys {
            let key = StateKey::new("n", "a", format!("key-{number:06}"));
            match value {
                Some(value) => store.write(&txn, key, Bytes::from_static(value.as_bytes()), None),
                None => store.delete(&txn, key, None),
            }
            .unwrap();
        }
        let done = store.commit(&txn, vec![], Client::default(), None);
        done.await.unwrap();
    }

    /// The names on all pages of keys, and how many pages there are.
    async fn keys_of_all_pages(&self, query: &str) -> (Vec<String>, usize) {
        let (mut names, mut pages, mut after) = (Vec::new(), 0, String::new());
        loop {
            let path = format!("/state/keys?namespace=n&agent=a&limit=10{query}{after}");
            let page = self.get(&path).await;
            pages += 1;
            let keys = page["keys"].as_array().unwrap().iter();
            names.extend(keys.map(|it| it["key"].as_str().unwrap().to_owned()));
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => return (names, pages),
            }
            assert!(pages < 100, "the pages have no end");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_keys_reads_a_bounded_number_of_rows_however_many_keys_are_gone() {
    let world = World::new().await;
    world.commit("a", "{}").await;
    let before = world.node.state().commit_ts();
    for part in 0..3 {
        let keys = part * MANY..(part + 1) * MANY;
        world.commit_all(keys, Some("{}")).await;
    }
    world.commit("z", "{}").await;
    let written = world.node.state().commit_ts();
    for part in 0..3 {
        let keys = part * MANY..(part + 1) * MANY;
        world.commit_all(keys, None).await;
    }
    // Deleted, not yet written, and as they were: each page is short, and together they have every key.
    let (names, pages) = world.keys_of_all_pages("").await;
    assert_eq!((names, pages), (vec!["a".to_owned(), "z".to_owned()], 2));
    let as_of = format!("&commit_ts={before}");
    let (names, pages) = world.keys_of_all_pages(&as_of).await;
    assert_eq!(names, ["a"]);
    assert!(pages > 2, "{pages} pages");
    let first = format!("/state/keys?namespace=n&agent=a&limit=10&commit_ts={written}");
    let first = world.get(&first).await;
    assert_eq!(first["keys"].as_array().unwrap().len(), 10);

    // What one of those pages reads.
    let scan = |at, max_rows| Scan {
        namespace: "n".to_owned(),
        agent_id: "a".to_owned(),
        prefix: String::new(),
        at,
        keys_only: false,
        after: None,
        limit: Some(10),
        max_bytes: 1 << 20,
        max_rows,
    };
    // The last key is looked at whole.
    const MAX: u64 = 500;
    const SEARCH: u64 = 10;
    for at in [None, Some(before)] {
        let read = world.node.state().visit(&scan(at, Some(MAX)), |_| true);
        let read = read.unwrap();
        assert!((MAX..MAX + SEARCH).contains(&read.rows), "{read:?}");
        assert!(read.ended_at.is_some());
        let all = world.node.state().visit(&scan(at, None), |_| true).unwrap();
        assert!(all.rows >= 3 * MANY as u64, "{all:?}");
        assert_eq!(all.ended_at, None);
    }
    // One that has found what it was asked for names no key to go on from: its caller has the last one.
    let read = world
        .node
        .state()
        .visit(&scan(Some(written), None), |_| true);
    let read = read.unwrap();
    assert!(read.rows < 10 * SEARCH, "{read:?}");
    assert_eq!(read.ended_at, None);
    world.stop().await;
}
