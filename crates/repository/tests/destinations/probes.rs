//! A probe finds every way in which a store can violate what the protocol requires of it.

use std::time::Duration;

use esker_repository::destination::probe::Lie as Found;
use esker_repository::destination::{ProbeError, probe};
use esker_repository::env::{Env, System};
use futures::future::BoxFuture;
use testkit_s3::{Fault, Lie, Matching, Operation, S3Server};

use crate::support::Destinations as _;

/// The number of objects in a bucket.
fn left(server: &S3Server) -> usize {
    fn count(dir: &std::path::Path) -> usize {
        let entries = std::fs::read_dir(dir).unwrap();
        entries
            .map(|entry| {
                let path = entry.unwrap().path();
                if path.is_dir() { count(&path) } else { 1 }
            })
            .sum()
    }
    count(&server.bucket("bucket"))
}

async fn what_is_found(lie: Lie) -> Found {
    let server = S3Server::start().await;
    let destination = server.destination("bucket/prefix");
    server.faults().lie(lie);
    let error = probe(&destination, &System).await.unwrap_err();
    if lie != Lie::KeepsDeleted {
        assert_eq!(left(&server), 0, "it cleans up");
    }
    let message = error.to_string();
    assert!(message.contains("s3://bucket/prefix"), "{message}");
    assert!(message.contains("cannot be used for writing"), "{message}");
    match error {
        ProbeError::Liar { lie, .. } => lie,
        error => panic!("{error:?}"),
    }
}

#[tokio::test]
async fn a_store_that_ignores_if_none_match_is_found_out() {
    assert_eq!(
        what_is_found(Lie::IgnoresIfNoneMatch).await,
        Found::ReplacedOnCreate
    );
}

#[tokio::test]
async fn a_store_that_ignores_if_match_is_found_out() {
    assert_eq!(
        what_is_found(Lie::IgnoresIfMatch).await,
        Found::UpdatedAbsent
    );
}

#[tokio::test]
async fn a_store_that_refuses_if_match_is_found_out() {
    assert_eq!(
        what_is_found(Lie::RefusesIfMatch).await,
        Found::RefusedRightETag
    );
}

#[tokio::test]
async fn a_store_whose_updates_are_not_atomic_is_found_out() {
    assert_eq!(what_is_found(Lie::RacyIfMatch).await, Found::BothWon);
}

#[tokio::test]
async fn a_store_whose_lists_lag_behind_is_found_out() {
    assert_eq!(what_is_found(Lie::StaleLists).await, Found::StaleList);
}

#[tokio::test]
async fn a_store_that_keeps_what_was_deleted_is_found_out() {
    assert_eq!(what_is_found(Lie::KeepsDeleted).await, Found::StillThere);
}

#[tokio::test]
async fn a_store_whose_reads_lag_behind_is_found_out() {
    assert_eq!(what_is_found(Lie::StaleReads).await, Found::StillThere);
    let server = S3Server::start().await;
    server
        .faults()
        .next(1, Matching::operation(Operation::Get), Fault::FlippedBit);
    let error = probe(&server.destination("bucket"), &System)
        .await
        .unwrap_err();
    let stale = matches!(
        error,
        ProbeError::Liar {
            lie: Found::StaleRead,
            ..
        }
    );
    assert!(stale, "{error}");
}

#[tokio::test]
async fn a_store_that_may_only_be_read_is_told_apart() {
    let server = S3Server::start().await;
    server
        .faults()
        .always(Matching::operation(Operation::Put), Fault::Status(403));
    let error = probe(&server.destination("bucket"), &System)
        .await
        .unwrap_err();
    assert!(matches!(error, ProbeError::ReadOnly { .. }), "{error}");
}

#[tokio::test]
async fn a_bucket_that_does_not_exist_is_no_liar() {
    let server = S3Server::start().await;
    let destination = server.destination("bucket");
    std::fs::remove_dir(server.bucket("bucket")).unwrap();
    server.faults().always(Matching::any(), Fault::Status(404));
    let error = probe(&destination, &System).await.unwrap_err();
    assert!(matches!(error, ProbeError::Failed { .. }), "{error}");
}

/// Waits for at most two seconds.
#[derive(Debug)]
struct Impatient;

impl Env for Impatient {
    fn now(&self) -> time::OffsetDateTime {
        System.now()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        System.sleep(duration.min(Duration::from_secs(2)))
    }

    fn random(&self) -> u64 {
        System.random()
    }
}

#[tokio::test]
async fn a_store_that_does_not_answer_does_not_stop_the_probe() {
    let server = S3Server::start().await;
    server
        .faults()
        .next(1, Matching::operation(Operation::List), Fault::Silence);
    let error = probe(&server.destination("bucket"), &Impatient)
        .await
        .unwrap_err();
    assert!(matches!(error, ProbeError::Silent { .. }), "{error}");
    assert_eq!(left(&server), 0, "it cleans up");
}
