//! Reuse: an incremental put uploads only what is new.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;

use bytes::Bytes;
use esker_repository::checkpoint::Source;
use esker_repository::metadata::FileMetadata;
use esker_repository::{Checkpoint, Digest, Digests, Lsn, Options, Progress, Which};
use testkit_s3::Operation;

use crate::fixture::{Files, LINEAGE, Place, bytes, options, some};

on_both!(
    a_file_that_is_retained_is_not_uploaded_again,
    two_files_of_one_content_are_one_object,
    a_reused_sst_survives_the_eviction_of_its_first_owner,
    an_object_that_happens_to_be_there_is_not_adopted,
    a_file_of_another_key_range_is_another_file,
    a_retained_snapshot_that_cannot_be_read_offers_nothing,
    a_checksum_is_computed_once_and_remembered,
    a_file_that_changed_after_it_was_hashed_is_refused,
);

async fn a_file_that_is_retained_is_not_uploaded_again(place: Place) {
    let first = place.put(1, &some(&[1, 2, 3])).await;
    assert_eq!((first.files_uploaded, first.bytes_uploaded), (3, 1506));
    let second = place.put(2, &some(&[1, 2, 4])).await;
    assert_eq!((second.files, second.bytes), (3, 1507));
    assert_eq!((second.files_uploaded, second.bytes_uploaded), (1, 504));
    let (a, b) = (
        place.files_of(&first.snapshot),
        place.files_of(&second.snapshot),
    );
    assert_eq!(a[..2], b[..2]);
    assert_ne!(a[2], b[2]);
    // The file has another name.
    let renamed = Files::from([("other".to_owned(), bytes(4, 504))]);
    assert_eq!(place.put(3, &renamed).await.bytes_uploaded, 0);
    assert!(place.verify().await.is_sound());
}

async fn two_files_of_one_content_are_one_object(place: Place) {
    let twice = some(&[1, 1, 2]);
    let put = place.put(1, &twice).await;
    assert_eq!(
        (put.files, put.files_uploaded, put.bytes_uploaded),
        (3, 2, 1003)
    );
    let keys: BTreeSet<_> = place.files_of(&put.snapshot).into_iter().collect();
    assert_eq!(keys.len(), 2);
    let (_, restored) = place.restore(Which::Newest).await;
    assert_eq!(restored, twice);
}

async fn a_reused_sst_survives_the_eviction_of_its_first_owner(place: Place) {
    let one = Options {
        num_retained: NonZeroU32::new(1),
        ..options()
    };
    for lsn in 1..=4 {
        let files = some(&[1, lsn + 10]);
        let put = place.put_by(&place.with(one.clone()), lsn, &files).await;
        assert_eq!(put.files_uploaded, if lsn == 1 { 2 } else { 1 });
        place.assert_only_kept();
        let (_, restored) = place.restore(Which::Newest).await;
        assert_eq!(restored, files, "after the eviction before LSN {lsn}");
    }
}

async fn an_object_that_happens_to_be_there_is_not_adopted(place: Place) {
    place.put(1, &some(&[1])).await;
    // The same content under a key of an earlier upload, which a HEAD or a LIST would find.
    let content = some(&[2])["000001.sst"].clone();
    let orphan = format!("ssts/{}{:016x}.sst", Digest::of(&content), 5);
    place.write(&orphan, &content);
    let put = place.put(2, &some(&[2])).await;
    assert_eq!(put.files_uploaded, 1, "it is uploaded under its own key");
    assert!(!place.files_of(&put.snapshot).contains(&orphan));
    assert_eq!(place.repository().sweep().await.unwrap().deleted, 1);
    assert!(place.verify().await.is_sound());
}

#[derive(Debug)]
struct Hello;

#[async_trait::async_trait]
impl Source for Hello {
    async fn read_at(&self, _: &str, offset: u64, len: usize) -> std::io::Result<Bytes> {
        let offset = usize::try_from(offset).unwrap();
        Ok(Bytes::from_static(b"hello").slice(offset..offset + len))
    }
}

async fn a_file_of_another_key_range_is_another_file(place: Place) {
    let checkpoint = |lsn, start: &str| {
        let file = FileMetadata {
            start_key: Some(start.to_owned()),
            ..FileMetadata::plain("/000001.sst".to_owned(), 5)
        };
        let mut checkpoint = Checkpoint::new(Arc::new(Hello), vec![file], Lsn(lsn));
        checkpoint.lineage = Some(LINEAGE);
        checkpoint
    };
    let repository = place.repository();
    for (lsn, start, uploads) in [(1, "00", 1), (2, "01", 1), (3, "00", 0)] {
        let checkpoint = checkpoint(lsn, start);
        let put = repository.put(&checkpoint, &Progress::new()).await.unwrap();
        assert_eq!(put.files_uploaded, uploads, "LSN {lsn}");
    }
}

async fn a_retained_snapshot_that_cannot_be_read_offers_nothing(place: Place) {
    let first = place.put(1, &some(&[1, 2])).await;
    place.write(&first.snapshot.metadata(), "{");
    let second = place.put(2, &some(&[1, 2])).await;
    assert_eq!(second.files_uploaded, 2, "so its files are uploaded again");
    let (restored, files) = place.restore(Which::Newest).await;
    assert!(restored.passed_over().is_empty());
    assert_eq!(files, some(&[1, 2]));
}

async fn a_checksum_is_computed_once_and_remembered(place: Place) {
    let digests = Digests::new();
    let dir = place.work.path().join("remembered");
    std::fs::create_dir(&dir).unwrap();
    let file = dir.join("000001.sst");
    std::fs::write(&file, bytes(1, 100)).unwrap();
    let mut checkpoint = Checkpoint::scan(&dir, Lsn(1), digests.clone()).unwrap();
    checkpoint.lineage = Some(LINEAGE);
    assert_eq!(checkpoint.source.known_digest("/000001.sst"), None);
    let repository = place.repository();
    repository.put(&checkpoint, &Progress::new()).await.unwrap();
    let known = Some(Digest::of(&bytes(1, 100)));
    assert_eq!(checkpoint.source.known_digest("/000001.sst"), known);

    let saved = place.work.path().join("digests.json");
    digests.save(&saved).unwrap();
    let again = Checkpoint::scan(&dir, Lsn(2), Digests::load(&saved)).unwrap();
    assert_eq!(again.source.known_digest("/000001.sst"), known);
    // A new file of the same name and size is recognized as another one.
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, bytes(2, 100)).unwrap();
    assert_eq!(again.source.known_digest("/000001.sst"), None);
    std::fs::write(&saved, "garbage").unwrap();
    let fresh = Checkpoint::scan(&dir, Lsn(2), Digests::load(&saved)).unwrap();
    assert_eq!(fresh.source.known_digest("/000001.sst"), None);
}

/// A source that reports a wrong checksum.
#[derive(Debug)]
struct Changed;

#[async_trait::async_trait]
impl Source for Changed {
    async fn read_at(&self, name: &str, offset: u64, len: usize) -> std::io::Result<Bytes> {
        Hello.read_at(name, offset, len).await
    }

    fn known_digest(&self, _: &str) -> Option<Digest> {
        Some(Digest::of(b"what it was"))
    }
}

async fn a_file_that_changed_after_it_was_hashed_is_refused(place: Place) {
    place.put(1, &some(&[1])).await;
    let file = FileMetadata::plain("/000001.sst".to_owned(), 5);
    let mut checkpoint = Checkpoint::new(Arc::new(Changed), vec![file], Lsn(2));
    checkpoint.lineage = Some(LINEAGE);
    let put = place.repository().put(&checkpoint, &Progress::new()).await;
    let error = put.expect_err("it changed").to_string();
    assert!(error.contains("000001.sst"), "{error}");
    let root = place.json("latest.json");
    assert_eq!(root["min_applied_lsn"], 1);
    assert_eq!(root.get("intents"), None, "the intent is withdrawn");
    place.repository().sweep().await.unwrap();
    place.assert_only_kept();
}

/// Beside the files, a put sends at most seven requests: it reads the marker and the root, registers, reads
/// the descriptions that it does not know, writes the description, and commits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incremental_put_costs_its_new_parts_and_seven_requests() {
    let place = Place::on_s3().await;
    let mut files: Files = (0..20_u32)
        .map(|i| (format!("{i:06}.sst"), bytes(u64::from(i) + 1, 2000)))
        .collect();
    place.put(1, &files).await;
    let server = place.server();
    files.insert("000003.sst".to_owned(), bytes(100, 3000));
    files.insert("000020.sst".to_owned(), bytes(101, (20 << 20) + 1));
    server.forget();
    let put = place.put(2, &files).await;
    let new = 3000 + (20 << 20) + 1;
    assert_eq!((put.files_uploaded, put.bytes_uploaded), (2, new));
    let log = server.log();
    let count = |operation| server.requests(operation);
    assert_eq!(count(Operation::CreateUpload), 1);
    assert_eq!(count(Operation::UploadPart), 3);
    assert_eq!(count(Operation::CompleteUpload), 1);
    let parts = 1 + 3;
    assert!(
        server.total() <= parts + 2 + 7,
        "{} requests: {log:#?}",
        server.total()
    );
    let documents: u64 = log
        .iter()
        .filter(|r| r.key.ends_with(".json"))
        .map(|r| r.bytes)
        .sum();
    assert_eq!(
        server.uploaded(),
        new + documents,
        "no byte of a file that was there is sent"
    );
    assert_eq!(server.unfinished_uploads(), 0);
    let (_, restored) = place.restore(Which::Newest).await;
    assert!(restored == files, "and it is whole");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_of_what_is_there_already_uploads_two_documents() {
    let place = Place::on_s3().await;
    let repository = place.repository();
    place.put_by(&repository, 1, &some(&[1, 2, 3])).await;
    place.put_by(&repository, 2, &some(&[1, 2, 3])).await;
    place.server().forget();
    let put = place.put_by(&repository, 3, &some(&[1, 2, 3])).await;
    assert_eq!((put.files_uploaded, put.bytes_uploaded), (0, 0));
    let server = place.server();
    assert_eq!(
        server.requests(Operation::Put),
        3,
        "intent, description, root"
    );
    assert!(server.total() <= 7, "{:#?}", server.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_file_goes_in_parts_and_small_buffers_do_not_stop_it() {
    let place = Place::on_s3().await;
    let files = Files::from([
        ("000001.sst".to_owned(), bytes(1, (20 << 20) + 17)),
        ("000002.sst".to_owned(), bytes(2, 8 << 20)),
        ("000003.sst".to_owned(), bytes(3, (8 << 20) + 1)),
    ]);
    let repository = place.with(Options {
        buffer: 1,
        parallel_files: 3,
        ..crate::fixture::full()
    });
    place.put_by(&repository, 1, &files).await;
    assert_eq!(place.server().requests(Operation::CreateUpload), 2);
    assert_eq!(place.server().requests(Operation::UploadPart), 3 + 2);
    let (_, restored) = place.restore(Which::Newest).await;
    assert!(restored == files);
    assert!(place.verify().await.is_sound());
}
