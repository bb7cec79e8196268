//! Tests that are specific to S3: each request is sent once, and a fault of the server is an error of one
//! request.

use std::time::Duration;

use esker_repository::destination::Destination;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{Error, ObjectStoreExt as _, PutMode};
use testkit_s3::{Fault, Matching, Operation, S3Server};

use crate::suite::text;
use crate::support::Destinations as _;

#[tokio::test]
async fn nothing_is_tried_twice_behind_the_callers_back() {
    let server = S3Server::start().await;
    let store = server.destination("bucket").store().clone();
    let key = Path::from("root");
    for status in [500, 503] {
        for operation in [
            Operation::Put,
            Operation::Get,
            Operation::Head,
            Operation::BulkDelete,
        ] {
            server.forget();
            server
                .faults()
                .next(1, Matching::operation(operation), Fault::Status(status));
            let failed = match operation {
                Operation::Put => store.put(&key, text("x")).await.is_err(),
                Operation::Get => store.get(&key).await.is_err(),
                Operation::Head => store.head(&key).await.is_err(),
                _ => store.delete(&key).await.is_err(),
            };
            assert!(failed, "{operation:?} with {status}");
            assert_eq!(server.total(), 1, "{operation:?} with {status}");
        }
    }
}

#[tokio::test]
async fn a_put_that_was_applied_and_answered_with_an_error_was_applied() {
    let server = S3Server::start().await;
    let store = server.destination("bucket").store().clone();
    let key = Path::from("root");
    server.faults().next(
        1,
        Matching::operation(Operation::Put),
        Fault::AppliedThen(500),
    );
    let put = store
        .put_opts(&key, text("x"), PutMode::Create.into())
        .await;
    assert!(matches!(put, Err(Error::Generic { .. })), "{put:?}");
    let got = store.get(&key).await.unwrap().bytes().await.unwrap();
    assert_eq!(got, "x");
}

#[tokio::test]
async fn refusals_are_told_apart_from_failures() {
    let server = S3Server::start().await;
    let store = server.destination("bucket").store().clone();
    let key = Path::from("root");
    let get = Matching::operation(Operation::Get);
    server.faults().next(1, get.clone(), Fault::Status(403));
    assert!(matches!(
        store.get(&key).await,
        Err(Error::PermissionDenied { .. })
    ));
    server.faults().next(1, get, Fault::Status(404));
    assert!(matches!(store.get(&key).await, Err(Error::NotFound { .. })));
    server.faults().next(1, Matching::any(), Fault::Status(412));
    let put = store
        .put_opts(&key, text("x"), PutMode::Create.into())
        .await;
    assert!(matches!(put, Err(Error::AlreadyExists { .. })));
}

#[tokio::test]
async fn a_wrong_secret_is_refused() {
    let server = S3Server::start().await;
    let mut options = server.options("bucket");
    options.aws_secret_access_key = Some("wrong".to_owned());
    let destination = Destination::open("s3://bucket", &options).unwrap();
    let put = destination.store().put(&Path::from("x"), text("x")).await;
    assert!(
        matches!(put, Err(Error::PermissionDenied { .. })),
        "{put:?}"
    );
}

#[tokio::test]
async fn silence_ends_after_the_timeout() {
    let server = S3Server::start().await;
    let mut options = server.options("bucket");
    options.request_timeout = Duration::from_millis(300);
    let store = Destination::open("s3://bucket", &options)
        .unwrap()
        .store()
        .clone();
    server.faults().always(Matching::any(), Fault::Silence);
    assert!(store.get(&Path::from("x")).await.is_err());
    assert!(store.put(&Path::from("x"), text("x")).await.is_err());
}

#[tokio::test]
async fn a_body_that_breaks_off_is_an_error() {
    let server = S3Server::start().await;
    let store = server.destination("bucket").store().clone();
    let key = Path::from("x");
    store.put(&key, vec![7; 100_000].into()).await.unwrap();
    server
        .faults()
        .next(1, Matching::operation(Operation::Get), Fault::BrokenBody);
    let body: Result<Vec<_>, _> = match store.get(&key).await {
        Ok(got) => got.into_stream().try_collect().await,
        Err(error) => Err(error),
    };
    assert!(body.is_err());
    server
        .faults()
        .next(1, Matching::operation(Operation::Get), Fault::ShortBody);
    let short = store.get(&key).await.unwrap();
    assert_eq!(
        short.meta.size, 50_000,
        "a shortened object looks like a small one"
    );
    assert_eq!(
        store.get(&key).await.unwrap().bytes().await.unwrap().len(),
        100_000
    );
}

#[tokio::test]
async fn a_page_of_a_list_is_one_request_and_so_is_a_bulk_delete() {
    let server = S3Server::start().await;
    let dir = server.bucket("bucket");
    for n in 0..2_001 {
        std::fs::write(dir.join(format!("{n:04}")), "").unwrap();
    }
    let store = server.destination("bucket").store().clone();
    let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
    assert_eq!(listed.len(), 2_001);
    assert_eq!(server.requests(Operation::List), 3);
    let keys = listed.into_iter().map(|meta| Ok(meta.location));
    let deleted = store.delete_stream(Box::pin(futures::stream::iter(keys)));
    assert_eq!(deleted.try_collect::<Vec<_>>().await.unwrap().len(), 2_001);
    assert_eq!(server.requests(Operation::BulkDelete), 3);
    assert_eq!(server.total(), 6);
}

#[tokio::test]
async fn what_a_bulk_delete_refused_is_named() {
    let server = S3Server::start().await;
    let store = server.destination("bucket").store().clone();
    for key in ["a", "b", "kept", "z"] {
        store.put(&Path::from(key), text("x")).await.unwrap();
    }
    server.faults().keep("kept");
    let delete = async |keys: &[&str]| -> Vec<bool> {
        let keys: Vec<_> = keys.iter().map(|key| Ok(Path::from(*key))).collect();
        let deleted = store.delete_stream(Box::pin(futures::stream::iter(keys)));
        deleted.map(|answer| answer.is_ok()).collect().await
    };
    assert_eq!(delete(&["a", "kept", "z"]).await, [true, false, true]);
    assert_eq!(delete(&["kept"]).await, [false]);
    assert!(store.head(&Path::from("kept")).await.is_ok());
    assert!(store.head(&Path::from("z")).await.is_err());
}

#[tokio::test]
async fn parts_can_be_driven_one_by_one() {
    let server = S3Server::start().await;
    let destination = server.destination("bucket");
    let parts = destination.multipart().unwrap();
    let key = Path::from("large.sst");
    let id = parts.create_multipart(&key).await.unwrap();
    assert_eq!(server.unfinished_uploads(), 1);
    // Each part but the last must have at least 5 MiB.
    let large = vec![1; 5 * 1024 * 1024];
    let second = parts.put_part(&key, &id, 1, text("second")).await.unwrap();
    let first = parts.put_part(&key, &id, 0, large.clone().into()).await;
    parts
        .complete_multipart(&key, &id, vec![first.unwrap(), second])
        .await
        .unwrap();
    let got = destination.store().get(&key).await.unwrap();
    let wanted = [&large[..], b"second"].concat();
    assert!(got.bytes().await.unwrap() == wanted);
    let id = parts.create_multipart(&key).await.unwrap();
    parts.abort_multipart(&key, &id).await.unwrap();
    assert_eq!(server.unfinished_uploads(), 0);
    assert_eq!(server.uploaded(), large.len() as u64 + 6);
}
