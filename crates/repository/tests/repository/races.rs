//! Concurrent puts, forks and sweeps: each succeeds or is refused, and nothing that is needed is damaged.

use std::sync::Arc;

use bytes::Bytes;
use esker_repository::checkpoint::Source;
use esker_repository::{Checkpoint, Digests, Error, Progress, Repository, Which};
use futures::future::join;

use crate::fixture::{Clock, Files, LINEAGE, Place, bytes, options, some};

on_both!(
    two_uploaders_at_once_both_succeed,
    many_uploaders_of_the_same_files_leave_a_sound_repository,
    a_fenced_upload_begins_again,
    an_upload_that_is_fenced_each_time_gives_up_and_says_so,
    a_reused_file_that_goes_meanwhile_is_uploaded_after_all,
    a_fork_fences_uploads_under_way,
    of_two_forks_at_once_one_loses,
);

async fn two_uploaders_at_once_both_succeed(place: Place) {
    // An older snapshot is put first, so that the older upload is not refused.
    place.put(1, &some(&[1])).await;
    for round in 0..5 {
        let lsn = 10 * (round + 1);
        let (older, newer) = (some(&[1, 2, lsn]), some(&[1, 3, lsn]));
        let (a, b) = (
            place.checkpoint(lsn, &older),
            place.checkpoint(lsn + 1, &newer),
        );
        let (one, two) = (place.repository(), place.repository());
        let progress = Progress::new();
        let (a, b) = join(one.put(&a, &progress), two.put(&b, &progress)).await;
        let (a, b) = (a.unwrap(), b.unwrap());
        let root = place.json("latest.json");
        assert_eq!(
            root["path"],
            b.snapshot.to_string(),
            "the top is the newest, whoever was last"
        );
        for (put, files) in [(a, &older), (b, &newer)] {
            let (_, there) = place.restore(Which::Exactly(put.snapshot)).await;
            assert_eq!(there, *files);
        }
    }
    assert!(place.verify().await.is_sound());
    place.repository().sweep().await.unwrap();
    place.assert_only_kept();
}

async fn many_uploaders_of_the_same_files_leave_a_sound_repository(place: Place) {
    place.put(1, &some(&[1])).await;
    let place = Arc::new(place);
    let tasks: Vec<_> = (0..6)
        .map(|task: u64| {
            let place = place.clone();
            tokio::spawn(async move {
                let repository = place.repository();
                for round in 0..3 {
                    let files = some(&[1, 2, task % 2 + 3, round + 10]);
                    let checkpoint = place.checkpoint(100 + round, &files);
                    match repository.put(&checkpoint, &Progress::new()).await {
                        Ok(_) | Err(Error::Superseded { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                    repository.sweep().await.unwrap();
                    let report = repository.verify(true, &Progress::new()).await.unwrap();
                    assert!(report.is_sound(), "{:?}", report.damaged);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert!(place.verify().await.is_sound());
    place.repository().sweep().await.unwrap();
    place.assert_only_kept();
}

/// Calls a function after each read of a file.
struct Meddling {
    inner: Arc<dyn Source>,
    meddle: Box<dyn Fn() -> futures::future::BoxFuture<'static, ()> + Send + Sync>,
}

impl std::fmt::Debug for Meddling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meddling")
    }
}

#[async_trait::async_trait]
impl Source for Meddling {
    async fn read_at(&self, name: &str, offset: u64, len: usize) -> std::io::Result<Bytes> {
        let bytes = self.inner.read_at(name, offset, len).await?;
        (self.meddle)().await;
        Ok(bytes)
    }
}

fn meddled(
    place: &Place,
    lsn: u64,
    files: &Files,
    meddle: impl Fn() -> futures::future::BoxFuture<'static, ()> + Send + Sync + 'static,
) -> Checkpoint {
    let mut checkpoint = place.checkpoint(lsn, files);
    checkpoint.source = Arc::new(Meddling {
        inner: checkpoint.source,
        meddle: Box::new(meddle),
    });
    checkpoint
}

/// Sweeps with a clock that is two days ahead, by which every intent has expired.
pub fn fencing(place: &Place) -> Repository {
    place.with_clock(options(), Clock::wrong_by(2))
}

async fn a_fenced_upload_begins_again(place: Place) {
    place.put(1, &some(&[1])).await;
    let fence = fencing(&place);
    let once = Arc::new(std::sync::Once::new());
    let files = some(&[1, 2]);
    let checkpoint = meddled(&place, 2, &files, move || {
        let (fence, once) = (fence.clone(), once.clone());
        Box::pin(async move {
            let mut first = false;
            once.call_once(|| first = true);
            if first {
                assert_eq!(fence.sweep().await.unwrap().fenced, 1);
            }
        })
    });
    let repository = place.repository();
    let put = repository.put(&checkpoint, &Progress::new()).await.unwrap();
    assert_eq!(place.json("latest.json")["path"], put.snapshot.to_string());
    assert_eq!(place.restore(Which::Newest).await.1, files);
    place.repository().sweep().await.unwrap();
    place.assert_only_kept();
}

async fn an_upload_that_is_fenced_each_time_gives_up_and_says_so(place: Place) {
    place.put(1, &some(&[1])).await;
    let fence = fencing(&place);
    let checkpoint = meddled(&place, 2, &some(&[2]), move || {
        let fence = fence.clone();
        Box::pin(async move {
            fence.sweep().await.unwrap();
        })
    });
    let repository = place.repository();
    let put = repository.put(&checkpoint, &Progress::new()).await;
    assert!(matches!(put, Err(Error::Fenced { attempts: 3 })), "{put:?}");
    place.repository().sweep().await.unwrap();
    place.assert_only_kept();
    assert_eq!(place.json("latest.json")["min_applied_lsn"], 1);
}

async fn a_reused_file_that_goes_meanwhile_is_uploaded_after_all(place: Place) {
    place.put(1, &some(&[1])).await;
    // Other uploads remove the snapshot that has the file from the root, and delete the file.
    let (other, work) = (place.repository(), place.work.path().join("others"));
    let meddle = move || -> futures::future::BoxFuture<'static, ()> {
        let (other, work) = (other.clone(), work.clone());
        Box::pin(async move {
            if work.exists() {
                return;
            }
            for lsn in 2..=4 {
                std::fs::create_dir_all(&work).unwrap();
                std::fs::write(work.join("x"), bytes(lsn + 90, 100)).unwrap();
                let lsn = esker_repository::Lsn(lsn);
                let mut checkpoint = Checkpoint::scan(&work, lsn, Digests::new()).unwrap();
                checkpoint.lineage = Some(LINEAGE);
                other.put(&checkpoint, &Progress::new()).await.unwrap();
                std::fs::remove_file(work.join("x")).unwrap();
            }
        })
    };
    let files = some(&[1, 2]);
    let mut checkpoint = meddled(&place, 5, &files, || Box::pin(async {}));
    // The file is hashed before, so that its first read comes after the decision to reuse.
    let quiet = checkpoint.source.clone();
    checkpoint.source = Arc::new(Hashed {
        source: Meddling {
            inner: quiet,
            meddle: Box::new(meddle),
        },
        files: files.clone(),
    });
    let repository = place.repository();
    let put = repository.put(&checkpoint, &Progress::new()).await.unwrap();
    assert_eq!(put.files_uploaded, 2, "the reused one as well, in the end");
    assert_eq!(place.restore(Which::Newest).await.1, files);
    assert!(place.verify().await.is_sound());
    place.repository().sweep().await.unwrap();
    place.assert_only_kept();
}

/// A source that knows all checksums.
#[derive(Debug)]
struct Hashed {
    source: Meddling,
    files: Files,
}

#[async_trait::async_trait]
impl Source for Hashed {
    async fn read_at(&self, name: &str, offset: u64, len: usize) -> std::io::Result<Bytes> {
        self.source.read_at(name, offset, len).await
    }

    fn known_digest(&self, name: &str) -> Option<esker_repository::Digest> {
        let content = self.files.get(name.trim_start_matches('/'))?;
        Some(esker_repository::Digest::of(content))
    }
}

async fn a_fork_fences_uploads_under_way(place: Place) {
    place.put(1, &some(&[1])).await;
    let repository = place.repository();
    let branch = esker_repository::LineageId(77);
    let checkpoint = meddled(&place, 2, &some(&[2]), move || {
        let repository = repository.clone();
        Box::pin(async move {
            let lsn = esker_repository::Lsn(1);
            let _ = repository.fork(Some(LINEAGE), lsn, branch).await;
        })
    });
    let repository = place.repository();
    let put = repository.put(&checkpoint, &Progress::new()).await;
    assert!(matches!(put, Err(Error::OtherLineage { .. })), "{put:?}");
    let root = place.json("latest.json");
    assert_eq!(root["lineage"], branch.to_string());
    assert_eq!(root["parent"]["lineage"], LINEAGE.to_string());
    assert_eq!(root["min_applied_lsn"], 1);
    place.repository().sweep().await.unwrap();
    place.assert_only_kept();
}

async fn of_two_forks_at_once_one_loses(place: Place) {
    place.put(1, &some(&[1])).await;
    let above = place.put(2, &some(&[2])).await;
    let (a, b) = (place.repository(), place.repository());
    let lsn = esker_repository::Lsn(1);
    let (x, y) = (
        esker_repository::LineageId(1),
        esker_repository::LineageId(2),
    );
    let (first, second) = join(a.fork(Some(LINEAGE), lsn, x), b.fork(Some(LINEAGE), lsn, y)).await;
    assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
    let lost = first.err().or(second.err()).unwrap();
    assert!(matches!(lost, Error::OtherLineage { .. }), "{lost:?}");
    let root = place.json("latest.json");
    assert_eq!(root["abandoned"][0]["path"], above.snapshot.to_string());
    assert_eq!(root["abandoned"][0]["lineage"], LINEAGE.to_string());
    assert_eq!(root["abandoned"].as_array().unwrap().len(), 1);
    assert_eq!(root["min_applied_lsn"], 1);
    assert_eq!(place.repository().sweep().await.unwrap().deleted, 0);
}
