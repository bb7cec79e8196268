//! Names of files that are put.

use std::sync::Arc;

use bytes::Bytes;
use esker_repository::metadata::FileMetadata;
use esker_repository::{Checkpoint, Error, Lsn, Progress};

use crate::fixture::{Files, LINEAGE, Place, bytes, full};
use crate::putting::One;

on_both!(
    odd_names_are_names_of_incremental_files,
    a_full_snapshot_refuses_odd_names_and_says_what_to_do,
    a_name_that_could_not_be_restored_is_refused,
);

async fn odd_names_are_names_of_incremental_files(place: Place) {
    let files: Files = [
        "sub/dir/file",
        "with space and %41%2F and ?#",
        "ümlaut-日本",
        "-rf",
        "metadata.json",
        "latest.json",
        "..dots..",
        "a'\"b",
        "MANIFEST-000004",
        ".hidden",
    ]
    .iter()
    .enumerate()
    .map(|(i, name)| ((*name).to_owned(), bytes(i as u64 + 1, 64)))
    .collect();
    place.put(1, &files).await;
    let (_, restored) = place.restore(esker_repository::Which::Newest).await;
    assert_eq!(restored, files);
    assert!(place.verify().await.is_sound());
}

async fn a_full_snapshot_refuses_odd_names_and_says_what_to_do(place: Place) {
    for odd in ["CURRENT", "12a.sst", "sub/000001.sst", "000001.sst.tmp"] {
        let files = Files::from([(odd.to_owned(), vec![1])]);
        let checkpoint = place.checkpoint(1, &files);
        let put = place.with(full()).put(&checkpoint, &Progress::new()).await;
        let error = put.expect_err(odd).to_string();
        assert!(error.contains(odd), "it names the file: {error}");
        assert!(error.contains("incremental"), "and a way out: {error}");
    }
    assert_eq!(place.objects(), Files::new(), "and writes nothing");
}

async fn a_name_that_could_not_be_restored_is_refused(place: Place) {
    let long = format!("/{}", "x".repeat(2000));
    for names in [
        &["/../x"][..],
        &["x"],
        &["/a//b"],
        &["/a/./b"],
        &["/nul\0"],
        &["/back\\slash"],
        &["/"],
        &[""],
        &[&long],
        &["/twice", "/twice"],
        &["/a", "/a/b"],
        &["/.esker-restore.json"],
    ] {
        let files = names
            .iter()
            .map(|n| FileMetadata::plain((*n).to_owned(), 1));
        let source = Arc::new(One(Bytes::from_static(b"h")));
        let mut checkpoint = Checkpoint::new(source, files.collect(), Lsn(1));
        checkpoint.lineage = Some(LINEAGE);
        let put = place.repository().put(&checkpoint, &Progress::new()).await;
        assert!(matches!(put, Err(Error::Invalid(_))), "{names:?}: {put:?}");
    }
    assert_eq!(place.objects(), Files::new(), "and nothing is written");
}
