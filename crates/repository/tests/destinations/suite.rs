//! The promises of every destination, tested on an S3 server and on a directory.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use esker_repository::destination::{Destination, DestinationOptions, probe};
use esker_repository::env::System;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::path::Path;
use object_store::{
    Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload,
    UpdateVersion,
};
use testkit_s3::S3Server;

use crate::support::Destinations as _;

/// A destination, and the directory in which its objects are files.
pub struct Place {
    pub destination: Destination,
    pub dir: PathBuf,
}

impl Place {
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        self.destination.store().clone()
    }

    pub fn key(&self, rest: &str) -> Path {
        let segments = self.destination.prefix().as_ref().split('/');
        let all: Vec<_> = segments
            .chain(rest.split('/'))
            .filter(|s| !s.is_empty())
            .collect();
        Path::parse(all.join("/")).unwrap()
    }

    async fn put(&self, key: &str, content: &str) -> UpdateVersion {
        let put = self.store().put(&self.key(key), text(content)).await;
        put.unwrap().into()
    }

    async fn get(&self, key: &str) -> Bytes {
        self.store()
            .get(&self.key(key))
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap()
    }

    async fn keys(&self) -> Vec<String> {
        let prefix = self.destination.prefix().clone();
        let listed = self.store().list(Some(&prefix));
        let metas: Vec<_> = listed.try_collect().await.unwrap();
        metas
            .into_iter()
            .map(|meta| meta.location.to_string())
            .collect()
    }
}

pub fn text(content: &str) -> PutPayload {
    PutPayload::from(content.to_owned())
}

macro_rules! on_both {
    ($($promise:ident),* $(,)?) => {
        mod on_s3 {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() {
                    let server = S3Server::start().await;
                    let place = Place {
                        destination: server.destination("bucket/some/prefix"),
                        dir: server.bucket("bucket").join("some/prefix"),
                    };
                    super::$promise(place).await;
                }
            )*
        }

        mod in_a_directory {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() {
                    let root = tempfile::tempdir().unwrap();
                    let dir = root.path().join("not/yet/there");
                    let options = DestinationOptions::default();
                    let destination = Destination::open(dir.to_str().unwrap(), &options).unwrap();
                    super::$promise(Place { destination, dir }).await;
                }
            )*
        }
    };
}

on_both!(
    an_object_is_created_once_whoever_tries,
    no_update_is_lost_among_many,
    an_update_needs_the_newest_etag_even_within_one_tick_of_the_clock,
    an_update_of_nothing_is_refused,
    a_list_of_several_pages_has_every_key_once_and_in_order,
    a_list_of_a_prefix_has_whole_segments_only,
    one_level_is_listed_without_what_is_below,
    many_are_deleted_at_once_and_absent_ones_are_no_error,
    a_range_is_what_was_asked_for,
    odd_keys_are_keys,
    parts_become_one_object_and_are_unseen_before,
    an_aborted_upload_leaves_nothing,
    a_condition_on_a_read_is_kept,
    a_probe_finds_nothing_wrong_and_leaves_nothing,
);

async fn an_object_is_created_once_whoever_tries(place: Place) {
    let tries = (0..24).map(|task| {
        let (store, key) = (place.store(), place.key("p/root"));
        tokio::spawn(async move {
            let content = format!("made by {task:02}");
            let put = store
                .put_opts(&key, text(&content), PutMode::Create.into())
                .await;
            match put {
                Ok(_) => Some(content),
                Err(Error::AlreadyExists { .. }) => None,
                Err(error) => panic!("neither made nor there: {error}"),
            }
        })
    });
    let made = futures::future::join_all(tries).await;
    let winners: Vec<_> = made.into_iter().filter_map(Result::unwrap).collect();
    assert_eq!(winners.len(), 1, "exactly one creates it: {winners:?}");
    assert_eq!(
        place.get("p/root").await,
        winners[0],
        "and it is the winner's"
    );
}

/// Increments a number by compare-and-swap, and retries until the swap is done.
pub async fn increment(store: &dyn ObjectStore, key: &Path) {
    loop {
        let got = store.get(key).await.unwrap();
        let version = UpdateVersion {
            e_tag: got.meta.e_tag.clone(),
            version: None,
        };
        let number: u64 = std::str::from_utf8(&got.bytes().await.unwrap())
            .unwrap()
            .parse()
            .unwrap();
        // All contents have the same length.
        let next = text(&format!("{:08}", number + 1));
        match store
            .put_opts(key, next, PutMode::Update(version).into())
            .await
        {
            Ok(_) => return,
            Err(Error::Precondition { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

async fn no_update_is_lost_among_many(place: Place) {
    place.put("p/number", "00000000").await;
    let tasks = (0..8).map(|_| {
        let (store, key) = (place.store(), place.key("p/number"));
        tokio::spawn(async move {
            for _ in 0..5 {
                increment(&*store, &key).await;
            }
        })
    });
    for done in futures::future::join_all(tasks).await {
        done.unwrap();
    }
    assert_eq!(place.get("p/number").await, "00000040");
}

async fn an_update_needs_the_newest_etag_even_within_one_tick_of_the_clock(place: Place) {
    let mut versions = vec![place.put("root", "version-00").await];
    for number in 1..20 {
        let content = format!("version-{number:02}");
        let newest = PutMode::Update(versions[number - 1].clone());
        let put = place
            .store()
            .put_opts(&place.key("root"), text(&content), newest.into())
            .await;
        versions.push(put.expect("the newest ETag is taken").into());
        let old = PutMode::Update(versions[number / 2].clone());
        let put = place
            .store()
            .put_opts(&place.key("root"), text("lost"), old.into())
            .await;
        assert!(
            matches!(put, Err(Error::Precondition { .. })),
            "an old one is not: {put:?}"
        );
        let meta = place.store().head(&place.key("root")).await.unwrap();
        assert_eq!(
            meta.e_tag, versions[number].e_tag,
            "a read tells the same ETag as the put"
        );
    }
    let tags: BTreeSet<_> = versions.iter().map(|v| v.e_tag.clone().unwrap()).collect();
    assert_eq!(tags.len(), 20);
}

async fn an_update_of_nothing_is_refused(place: Place) {
    let version = place.put("gone", "x").await;
    place.store().delete(&place.key("gone")).await.unwrap();
    let mode = PutMode::Update(version);
    let put = place
        .store()
        .put_opts(&place.key("gone"), text("y"), mode.into())
        .await;
    assert!(matches!(put, Err(Error::Precondition { .. })), "{put:?}");
    assert!(place.keys().await.is_empty());
}

/// Creates objects without the store, which is faster.
fn make_files<'a>(place: &Place, keys: impl IntoIterator<Item = &'a str>) {
    for key in keys {
        let path = place.dir.join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, key).unwrap();
    }
}

async fn a_list_of_several_pages_has_every_key_once_and_in_order(place: Place) {
    let mut wanted: Vec<_> = (0..2_494).map(|n| format!("7/ssts/{n:05}.sst")).collect();
    // Keys around a directory, where names are sorted differently from keys.
    wanted.extend(["7/a", "7/b-c", "7/b/d", "7/b0", "7/ssts-x", "8/latest.json"].map(String::from));
    make_files(&place, wanted.iter().map(String::as_str));
    let mut wanted: Vec<_> = wanted
        .iter()
        .map(|key| place.key(key).to_string())
        .collect();
    wanted.sort();
    assert_eq!(place.keys().await, wanted);

    for after in [0, 1, 1_000, 2_498, 2_499] {
        let offset = Path::parse(&wanted[after]).unwrap();
        let prefix = place.destination.prefix().clone();
        let listed = place.store().list_with_offset(Some(&prefix), &offset);
        let rest: Vec<_> = listed
            .map_ok(|m| m.location.to_string())
            .try_collect()
            .await
            .unwrap();
        assert_eq!(rest, wanted[after + 1..], "after {offset}");
    }
}

async fn a_list_of_a_prefix_has_whole_segments_only(place: Place) {
    make_files(&place, ["1/a", "1/b/c", "10/a", "1x"]);
    let listed = place.store().list(Some(&place.key("1")));
    let found: Vec<_> = listed.try_collect().await.unwrap();
    let keys: Vec<_> = found.iter().map(|meta| meta.location.clone()).collect();
    assert_eq!(keys, [place.key("1/a"), place.key("1/b/c")]);
    assert_eq!(found[1].size, 5);
    let nothing = place.store().list(Some(&place.key("2"))).next().await;
    assert!(nothing.is_none(), "{nothing:?}");
}

async fn one_level_is_listed_without_what_is_below(place: Place) {
    make_files(
        &place,
        ["1/x", "1/ssts/a", "1/ssts/b", "1/lsn/metadata.json", "2/x"],
    );
    let level = place
        .store()
        .list_with_delimiter(Some(&place.key("1")))
        .await
        .unwrap();
    assert_eq!(
        level.common_prefixes,
        [place.key("1/lsn"), place.key("1/ssts")]
    );
    assert_eq!(level.objects.len(), 1);
    assert_eq!(level.objects[0].location, place.key("1/x"));
}

async fn many_are_deleted_at_once_and_absent_ones_are_no_error(place: Place) {
    let names: Vec<_> = (0..1_200).map(|n| format!("p/{n}")).collect();
    make_files(&place, names.iter().map(String::as_str).chain(["p/kept"]));
    let mut keys: Vec<_> = names.iter().map(|name| place.key(name)).collect();
    keys.extend([place.key("p/never-there"), place.key("no/such/directory")]);
    let all = stream::iter(keys.clone().into_iter().map(Ok)).boxed();
    let answers: Vec<_> = place.store().delete_stream(all).collect().await;
    let deleted: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(deleted, keys, "each is answered, in order");
    assert_eq!(place.keys().await, [place.key("p/kept").to_string()]);
    let got = place.store().get(&place.key("p/0")).await;
    assert!(matches!(got, Err(Error::NotFound { .. })), "{got:?}");
}

async fn a_range_is_what_was_asked_for(place: Place) {
    let content: Vec<u8> = (0..3_000_000_u32).flat_map(|n| n.to_le_bytes()).collect();
    let key = place.key("large");
    place
        .store()
        .put(&key, content.clone().into())
        .await
        .unwrap();
    let size = content.len();
    for (range, wanted) in [
        (GetRange::Bounded(0..1), 0..1),
        (GetRange::Bounded(999_999..5_000_001), 999_999..5_000_001),
        (GetRange::Bounded(11_999_999..99_999_999), 11_999_999..size),
        (GetRange::Offset(11_000_000), 11_000_000..size),
        (GetRange::Suffix(7), size - 7..size),
    ] {
        let options = GetOptions::new().with_range(Some(range.clone()));
        let got = place.store().get_opts(&key, options).await.unwrap();
        assert_eq!(got.meta.size, size as u64);
        assert_eq!(got.range, wanted.start as u64..wanted.end as u64);
        assert_eq!(got.bytes().await.unwrap(), content[wanted], "{range:?}");
    }
    let beyond = GetOptions::new().with_range(Some(GetRange::Offset(size as u64)));
    assert!(place.store().get_opts(&key, beyond).await.is_err());
    let ranges = [5..10, 0..5, 11_000_000..11_000_004];
    let parts = place.store().get_ranges(&key, &ranges).await.unwrap();
    assert_eq!(parts.concat().len(), 14);
}

async fn odd_keys_are_keys(place: Place) {
    let odd = [
        "a b",
        "a%20b",
        "a+b",
        "ä/ö/漢字",
        "...",
        "..a",
        ".hidden",
        "a&b=c",
        "a#b",
        "q?x",
        "\"quoted\"",
        "<tag>",
        "back\\slash",
        "~",
        "-",
        "colon:",
        "semi;colon",
        "x/.tmp/y",
        "%2E%2E",
    ];
    for key in odd {
        place.put(key, key).await;
    }
    for key in odd {
        assert_eq!(place.get(key).await, key, "{key}");
    }
    let mut wanted: Vec<_> = odd.iter().map(|key| place.key(key).to_string()).collect();
    wanted.sort();
    assert_eq!(place.keys().await, wanted);
    let keys: Vec<_> = odd.iter().map(|key| Ok(place.key(key))).collect();
    let deleted: Vec<_> = place
        .store()
        .delete_stream(stream::iter(keys).boxed())
        .collect()
        .await;
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    assert!(place.keys().await.is_empty());
}

async fn parts_become_one_object_and_are_unseen_before(place: Place) {
    const PART: usize = 5 * 1024 * 1024;
    let key = place.key("p/large.sst");
    let mut upload = place.store().put_multipart(&key).await.unwrap();
    let sizes = [PART, PART, 1000];
    let parts: Vec<_> = (0..3_u8)
        .map(|n| upload.put_part(vec![n; sizes[usize::from(n)]].into()))
        .collect();
    // The last part is written first.
    for part in parts.into_iter().rev() {
        part.await.unwrap();
    }
    assert!(place.keys().await.is_empty(), "nothing is listed yet");
    assert!(place.store().head(&key).await.is_err(), "nor found");
    upload.complete().await.unwrap();
    let content = place.get("p/large.sst").await;
    let wanted = [vec![0; PART], vec![1; PART], vec![2; 1000]].concat();
    assert!(
        content == wanted,
        "parts are in order: {} bytes",
        content.len()
    );
}

async fn an_aborted_upload_leaves_nothing(place: Place) {
    let key = place.key("p/large.sst");
    let mut upload = place.store().put_multipart(&key).await.unwrap();
    upload.put_part(text("part")).await.unwrap();
    upload.abort().await.unwrap();
    assert!(place.keys().await.is_empty());
    let root = match place.destination.local() {
        Some(local) => local.root().join(".tmp"),
        None => place.dir.ancestors().nth(3).unwrap().to_owned(),
    };
    let left: Vec<_> = std::fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("put-") || name.starts_with(".upload"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

async fn a_condition_on_a_read_is_kept(place: Place) {
    let version = place.put("root", "x").await;
    let known = GetOptions::new().with_if_none_match(version.e_tag.clone());
    let got = place
        .store()
        .get_opts(&place.key("root"), known.clone())
        .await;
    assert!(matches!(got, Err(Error::NotModified { .. })), "{got:?}");
    place.put("root", "y").await;
    let got = place
        .store()
        .get_opts(&place.key("root"), known)
        .await
        .unwrap();
    assert_eq!(got.bytes().await.unwrap(), "y");
    let old = GetOptions::new().with_if_match(version.e_tag);
    let got = place.store().get_opts(&place.key("root"), old).await;
    assert!(matches!(got, Err(Error::Precondition { .. })), "{got:?}");
}

async fn a_probe_finds_nothing_wrong_and_leaves_nothing(place: Place) {
    place.put("7/latest.json", "{}").await;
    probe(&place.destination, &System).await.unwrap();
    assert_eq!(place.keys().await, [place.key("7/latest.json").to_string()]);
}
