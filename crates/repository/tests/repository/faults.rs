//! Faults of the store, of the network and of clocks: a put is done, or its error names the cause, and
//! nothing that is needed is damaged.

use std::time::Duration;

use esker_repository::{Error, Options, Progress, Put, Retries, StoreFailure, Which};
use futures::future::join;
use testkit_s3::{Fault, Matching, Operation};

use crate::fixture::{Clock, Files, Place, bytes, options, retries, some};
use crate::races::fencing;

on_both!(clocks_that_are_wrong_by_a_week_harm_nothing,);

fn puts(key: &str) -> Matching {
    Matching::operation(Operation::Put).key(key)
}

/// Checks that what was put is there, complete, and nothing else.
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

/// A put that cannot succeed. The existing objects do not change, and the next put succeeds.
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
    // The swap was applied, and a layer in between retried it and got a 412.
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
    // No request is answered, so a short limit does not depend on the speed of the machine.
    let silence = Duration::from_millis(100);
    let repository = place.with(impatient(silence));
    let checkpoint = place.checkpoint(2, &some(&[2]));
    place
        .server()
        .faults()
        .always(Matching::any(), Fault::Silence);
    let put = repository.put(&checkpoint, &Progress::new()).await;
    let Err(Error::Store {
        source, attempts, ..
    }) = put
    else {
        panic!("{put:?}");
    };
    // Each attempt was given up after this long, and there were no more of them than configured.
    assert!(
        matches!(source, StoreFailure::Silent(limit) if limit == silence),
        "{source:?}"
    );
    assert_eq!(attempts, 3);
    for failed in [
        repository.sweep().await.err(),
        repository.verify(true, &Progress::new()).await.err(),
        repository
            .restore(&Which::Newest, &place.target(), &Progress::new())
            .await
            .err(),
    ] {
        assert!(
            matches!(failed, Some(Error::Store { attempts: 3, .. })),
            "{failed:?}"
        );
    }
    place.server().faults().clear();
    assert!(place.verify().await.is_sound());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_never_came_is_read_back() {
    let place = Place::on_s3().await;
    place.put(1, &some(&[1])).await;
    // Long enough for the requests that are answered, also on a slow machine.
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
    // A bulk delete that hangs does not delay the put once for each of its keys.
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
    // The same for descriptions and the root.
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
