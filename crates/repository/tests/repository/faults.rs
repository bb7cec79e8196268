//! Faults of a store, of the network and of clocks: a put is done, or says why not, and nothing that
//! is needed is harmed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker_repository::checkpoint::Source;
use esker_repository::{
    Checkpoint, Digests, Error, Options, Progress, Put, Repository, Retries, StoreFailure, Which,
};
use futures::future::join;
use testkit_s3::{Fault, Matching, Operation};

use crate::fixture::{Clock, Files, LINEAGE, Place, bytes, options, retries, some};

on_both!(
    two_uploaders_at_once_both_succeed,
    many_uploaders_of_the_same_files_leave_a_sound_repository,
    a_fenced_upload_begins_again,
    an_upload_that_is_fenced_each_time_gives_up_and_says_so,
    a_reused_file_that_goes_meanwhile_is_uploaded_after_all,
    a_fork_fences_uploads_under_way,
    of_two_forks_at_once_one_loses,
    clocks_that_are_wrong_by_a_week_harm_nothing,
);

fn puts(key: &str) -> Matching {
    Matching::operation(Operation::Put).key(key)
}

/// What was put is there, whole, and nothing else is.
async fn is_as_if_nothing_had_happened(place: &Place, put: &Put, files: &Files) {
    let root = place.json("latest.json");
    assert_eq!(root["path"], put.snapshot.to_string());
    assert_eq!(root.get("intents"), None);
    assert_eq!(place.server().unfinished_uploads(), 0);
    let (restored, there) = place.restore(Which::Newest).await;
    assert!(restored.passed_over().is_empty());
    assert!(there == *files);
    assert!(place.verify().await.is_sound());
    place.repository().sweep().await.unwrap();
    place.assert_only_kept();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_was_lost_after_the_write_was_done_is_a_success() {
    let place = Place::on_s3().await;
    let mut lsn = 0;
    for (what, skipped) in [
        (puts("latest.json"), 0),
        (puts("latest.json"), 1),
        (puts("metadata.json"), 0),
        (puts("/ssts/"), 0),
        (Matching::operation(Operation::UploadPart), 1),
        (Matching::operation(Operation::CompleteUpload), 0),
    ] {
        for fault in [Fault::AppliedThen(500), Fault::AppliedThen(503)] {
            lsn += 1;
            let mut files = some(&[lsn, lsn + 1000]);
            files.insert("large".to_owned(), bytes(lsn, (9 << 20) + 1));
            place
                .server()
                .faults()
                .after(skipped, 1, what.clone(), fault);
            let put = place.put(lsn, &files).await;
            assert_eq!(place.server().faults().pending(), 0, "{what:?} {fault:?}");
            assert_eq!(put.files, files.len() as u64);
            is_as_if_nothing_had_happened(&place, &put, &files).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bursts_within_the_budget_are_waited_out() {
    let place = Place::on_s3().await;
    let mut files = some(&[1, 2]);
    files.insert("large".to_owned(), bytes(1, (9 << 20) + 1));
    let mut lsn = 0;
    for status in [500, 503] {
        for what in [
            puts("latest.json"),
            puts("metadata.json"),
            puts("/ssts/"),
            Matching::operation(Operation::Get),
            Matching::operation(Operation::List),
            Matching::operation(Operation::CreateUpload),
            Matching::operation(Operation::UploadPart),
            Matching::operation(Operation::CompleteUpload),
            Matching::operation(Operation::BulkDelete),
        ] {
            lsn += 1;
            files.insert("fresh".to_owned(), bytes(lsn + 50, 700));
            if format!("{what:?}").contains("Upload") {
                files.insert("large".to_owned(), bytes(lsn, (9 << 20) + 1));
            }
            place.server().faults().next(2, what, Fault::Status(status));
            let put = place.put(lsn, &files).await;
            assert_eq!(put.retention.failed, 0);
            let (_, there) = place.restore(Which::Newest).await;
            assert!(there == files);
            place.repository().sweep().await.unwrap();
            place.server().faults().clear();
            place.assert_only_kept();
        }
    }
    assert_eq!(place.server().unfinished_uploads(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_root_is_made_although_the_store_stumbles() {
    for fault in [Fault::Status(503), Fault::AppliedThen(500)] {
        let place = Place::on_s3().await;
        place.server().faults().next(1, puts("latest.json"), fault);
        let put = place.put(1, &some(&[1])).await;
        is_as_if_nothing_had_happened(&place, &put, &some(&[1])).await;
    }
}

/// A put that cannot succeed. What was there stays as it is, and the next one succeeds.
async fn fails(place: &Place, lsn: u64, files: &Files) -> Error {
    let before = place.restore(Which::Newest).await.1;
    let checkpoint = place.checkpoint(lsn, files);
    let put = place.repository().put(&checkpoint, &Progress::new()).await;
    let error = put.expect_err("it cannot succeed");
    place.server().faults().clear();
    assert_eq!(place.server().unfinished_uploads(), 0, "after {error}");
    assert!(place.verify().await.is_sound(), "after {error}");
    assert!(place.restore(Which::Newest).await.1 == before, "{error}");
    error
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_not_tried_again_and_names_the_object() {
    let place = Place::on_s3().await;
    place.put(1, &some(&[1])).await;
    let mut files = some(&[7]);
    files.insert("large".to_owned(), bytes(1, (20 << 20) + 1));
    for (what, object) in [
        (puts("latest.json"), "latest.json"),
        (puts("metadata.json"), "metadata.json"),
        (puts("/ssts/"), "/ssts/"),
        (Matching::operation(Operation::CreateUpload), "/ssts/"),
        (Matching::operation(Operation::UploadPart), "/ssts/"),
        (Matching::operation(Operation::CompleteUpload), "/ssts/"),
    ] {
        place
            .server()
            .faults()
            .always(what.clone(), Fault::Status(403));
        let error = fails(&place, 2, &files).await;
        assert!(matches!(error, Error::Denied { .. }), "{what:?}: {error:?}");
        assert!(error.to_string().contains(object), "{error}");
        let root = place.json("latest.json");
        assert_eq!(
            root.get("intents"),
            None,
            "its intent is withdrawn: {what:?}"
        );
        place.repository().sweep().await.unwrap();
        place.assert_only_kept();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_fails_for_ever_is_given_up_and_what_was_begun_is_aborted() {
    let place = Place::on_s3().await;
    place.put(1, &some(&[1])).await;
    let mut files = some(&[7]);
    files.insert("large".to_owned(), bytes(1, (20 << 20) + 1));
    for what in [
        puts("metadata.json"),
        Matching::operation(Operation::UploadPart),
        Matching::operation(Operation::CompleteUpload),
    ] {
        place
            .server()
            .faults()
            .always(what.clone(), Fault::Status(503));
        let error = fails(&place, 2, &files).await;
        let Error::Store { attempts, .. } = error else {
            panic!("{what:?}: {error:?}");
        };
        assert_eq!(attempts, 6);
        place.repository().sweep().await.unwrap();
        place.assert_only_kept();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_412_is_a_lost_race_and_tried_on_what_is_there_now() {
    let place = Place::on_s3().await;
    place.put(1, &some(&[1])).await;
    let lost = Fault::Status(412);
    place.server().faults().next(3, puts("latest.json"), lost);
    let put = place.put(2, &some(&[2])).await;
    is_as_if_nothing_had_happened(&place, &put, &some(&[2])).await;
    // It was applied, and a layer in between tried again and got a 412.
    for spare in [0, 1] {
        let lost = Fault::AppliedThen(412);
        place
            .server()
            .faults()
            .after(spare, 1, puts("latest.json"), lost);
        let put = place.put(3 + spare as u64, &some(&[3])).await;
        is_as_if_nothing_had_happened(&place, &put, &some(&[3])).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listed_object_that_answers_404_is_missing_and_named() {
    let place = Place::on_s3().await;
    place.put(1, &some(&[1])).await;
    let newest = place.put(2, &some(&[2])).await;
    let key = place.files_of(&newest.snapshot)[0].clone();
    let gone = Matching::operation(Operation::Get).key(&key);
    place.server().faults().always(gone, Fault::Status(404));
    let (restored, files) = place.restore(Which::Newest).await;
    assert_eq!(files, some(&[1]));
    assert!(
        matches!(&restored.passed_over()[0].1, Error::Missing { object } if object.contains(&key))
    );
    let report = place.verify().await;
    assert_eq!(crate::fixture::only_damage(&report).0, key);
}

fn impatient(silence: Duration) -> Options {
    Options {
        retries: Retries {
            attempts: 3,
            silence,
            ..retries()
        },
        ..options()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_never_answers_is_given_up_in_time() {
    let place = Place::on_s3().await;
    place.put(1, &some(&[1])).await;
    // Nothing is answered, however fast the machine is.
    let repository = place.with(impatient(Duration::from_millis(100)));
    let checkpoint = place.checkpoint(2, &some(&[2]));
    place
        .server()
        .faults()
        .always(Matching::any(), Fault::Silence);
    let began = Instant::now();
    let put = repository.put(&checkpoint, &Progress::new()).await;
    let Err(Error::Store { source, .. }) = put else {
        panic!("{put:?}");
    };
    assert!(matches!(source, StoreFailure::Silent(_)), "{source:?}");
    for failed in [
        repository.sweep().await.err(),
        repository.verify(true, &Progress::new()).await.err(),
        repository
            .restore(&Which::Newest, &place.target(), &Progress::new())
            .await
            .err(),
    ] {
        assert!(matches!(failed, Some(Error::Store { .. })), "{failed:?}");
    }
    // By default a single request is waited for longer.
    assert!(began.elapsed() < Duration::from_secs(60));
    place.server().faults().clear();
    assert!(place.verify().await.is_sound());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_never_came_is_read_back() {
    let place = Place::on_s3().await;
    place.put(1, &some(&[1])).await;
    // Long enough for what is answered, on a slow machine too.
    let repository = place.with(impatient(Duration::from_millis(500)));
    for (lsn, what, spare) in [
        (2, puts("latest.json"), 0),
        (3, puts("latest.json"), 1),
        (4, puts("metadata.json"), 0),
        (5, puts("/ssts/"), 0),
    ] {
        let faults = place.server().faults();
        faults.after(spare, 1, what, Fault::AppliedThenSilence);
        let files = some(&[lsn]);
        let put = place.put_by(&repository, lsn, &files).await;
        is_as_if_nothing_had_happened(&place, &put, &files).await;
    }
    // A bulk delete that hangs does not hold up the put for every one of its keys.
    let delete = Matching::operation(Operation::BulkDelete);
    place.server().faults().always(delete, Fault::Silence);
    let deletes = || {
        let server = place.server();
        server.requests(Operation::BulkDelete) + server.requests(Operation::Delete)
    };
    let before = deletes();
    let put = place.put_by(&repository, 6, &some(&[6])).await;
    assert!(put.retention.failed > 0);
    let asked = deletes() - before;
    assert!(asked <= 3, "asked {asked} times");
    place.server().faults().clear();
    place.repository().sweep().await.unwrap();
    place.assert_only_kept();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_that_breaks_off_goes_on_where_it_stopped() {
    let place = Place::on_s3().await;
    let files = Files::from([("large".to_owned(), bytes(1, 4 << 20))]);
    place.put(1, &files).await;
    let server = place.server();
    let get = Matching::operation(Operation::Get).key("/ssts/");
    server.faults().next(4, get.clone(), Fault::BrokenBody);
    server.forget();
    let (restored, there) = place.restore(Which::Newest).await;
    assert!(there == files && restored.passed_over().is_empty());
    let gets = server
        .log()
        .iter()
        .filter(|r| r.key.contains("/ssts/"))
        .count();
    assert_eq!(gets, 5, "four broke off");
    server.faults().next(3, get, Fault::BrokenBody);
    assert!(place.verify().await.is_sound());
    // Documents as well.
    let documents = Matching::operation(Operation::Get).key(".json");
    server.faults().next(2, documents, Fault::BrokenBody);
    assert!(place.restore(Which::Newest).await.1 == files);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_lies_is_never_taken_for_the_file() {
    let place = Place::on_s3().await;
    place.put(1, &some(&[1])).await;
    let newest = place.put(2, &some(&[2])).await;
    let key = place.files_of(&newest.snapshot)[0].clone();
    for fault in [Fault::ShortBody, Fault::FlippedBit] {
        let get = Matching::operation(Operation::Get).key(&key);
        place.server().faults().always(get, fault);
        let (restored, files) = place.restore(Which::Newest).await;
        assert_eq!(files, some(&[1]), "{fault:?}");
        assert_eq!(restored.passed_over()[0].0, newest.snapshot);
        place.server().faults().clear();
    }
    let (restored, files) = place.restore(Which::Newest).await;
    assert!(restored.passed_over().is_empty());
    assert_eq!(files, some(&[2]));
}

async fn two_uploaders_at_once_both_succeed(place: Place) {
    // So that the older one finds something older still.
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

/// Does something to the repository when a certain file is read.
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

/// Sweeps by a clock of two days later: every intent is dead.
fn fencing(place: &Place) -> Repository {
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
    // Other uploads push the snapshot that has the file out of the root, and delete it.
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
    // Hashed before, so that the first read comes after the decision to reuse.
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

/// Knows all checksums.
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

async fn clocks_that_are_wrong_by_a_week_harm_nothing(place: Place) {
    place.put(1, &some(&[1, 2])).await;
    let repositories: Vec<_> = [-7, 0, 7]
        .map(|days| place.with_clock(options(), Clock::wrong_by(days)))
        .into();
    for round in 0..3_u64 {
        let mut uploads = Vec::new();
        for (i, repository) in repositories.iter().enumerate() {
            let files = some(&[1, 10 + round, 20 + i as u64]);
            let checkpoint = place.checkpoint(2 + round, &files);
            uploads.push(async move {
                let progress = Progress::new();
                let (put, swept) =
                    join(repository.put(&checkpoint, &progress), repository.sweep()).await;
                swept.unwrap();
                match put {
                    Ok(_) | Err(Error::Fenced { .. } | Error::Superseded { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            });
        }
        futures::future::join_all(uploads).await;
        assert!(place.verify().await.is_sound());
        place.restore(Which::Newest).await;
    }
    fencing(&place).sweep().await.unwrap();
    let week = place.with_clock(options(), Clock::wrong_by(20));
    week.sweep().await.unwrap();
    place.assert_only_kept();
}
