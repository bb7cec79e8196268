//! Networks on which a file takes longer than a store may be silent.

use std::sync::Arc;
use std::time::Duration;

use esker_repository::destination::DestinationOptions;
use esker_repository::{Destination, Error, Options, Progress, Repository, Retries};
use testkit_s3::{Operation, SlowLink};

use crate::fixture::{Files, PARTITION, Place, bytes, options, retries, until};
use crate::support::Destinations as _;

const MIB: usize = 1 << 20;
/// How long a store may be silent in these tests: longer than a machine stands still on which many tests run. A pause of
/// that length looks like a silent store, and everything that is under way is sent again.
const SILENCE: Duration = Duration::from_secs(4);
/// Bytes in a second. One part alone takes half of [`SILENCE`] at that rate, and parts that share the link twice as long
/// as that and more.
const RATE: u64 = 4 << 20;

/// A repository behind a slow link, whose store may be silent for so long.
fn behind(place: &Place, link: &SlowLink, silence: Duration) -> Repository {
    let options = DestinationOptions {
        aws_endpoint_url: Some(format!("http://{}", link.address)),
        request_timeout: silence,
        ..place.server().options("bucket")
    };
    let destination = Destination::open("s3://bucket/some/prefix", &options).unwrap();
    let options = Options {
        retries: Retries {
            silence,
            ..retries()
        },
        ..self::options()
    };
    Repository::with_env(
        &destination,
        PARTITION,
        options,
        Arc::new(place.clock.clone()),
    )
}

/// Three parts, which share the link, and files that are sent in one request each.
fn files() -> Files {
    let mut files = Files::from([("000001.sst".to_owned(), bytes(1, 24 * MIB))]);
    files.insert("000002.sst".to_owned(), bytes(2, 6 * MIB));
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_takes_longer_than_a_store_may_be_silent_is_sent_once() {
    let files = files();
    let size: usize = files.values().map(Vec::len).sum();
    let mut sent = Vec::new();
    // A machine that stalls for so long looks like a silent store, so the test may be repeated.
    for _ in 0..5 {
        let place = Place::on_s3().await;
        // Together they take longer than a store may be silent.
        let link = SlowLink::to(&place.server().endpoint(), RATE).await;
        let put = place
            .put_by(&behind(&place, &link, SILENCE), 1, &files)
            .await;
        assert_eq!(put.bytes_uploaded, size as u64);
        assert!(place.verify().await.is_sound());
        let parts = place.server().requests(Operation::UploadPart);
        // The headers of requests, descriptions and the root are some kilobytes.
        if parts == 3 && link.taken() < (size + MIB) as u64 {
            return;
        }
        sent.push((parts, link.taken()));
    }
    panic!("3 parts, {size} bytes; parts and bytes that were sent: {sent:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_that_have_arrived_are_not_sent_again_after_a_link_was_dead() {
    let place = Place::on_s3().await;
    let link = SlowLink::to(&place.server().endpoint(), RATE).await;
    let repository = behind(&place, &link, SILENCE);
    let size = 32 * MIB;
    let files = Files::from([("000001.sst".to_owned(), bytes(1, size))]);
    let putting = place.put_by(&repository, 1, &files);
    let trouble = async {
        let arrived = || place.server().requests(Operation::UploadPart);
        let began = std::time::Instant::now();
        while arrived() < 2 && began.elapsed() < Duration::from_secs(60) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        link.stall(true);
        // Long enough for the requests under way to fail.
        tokio::time::sleep(4 * SILENCE).await;
        link.stall(false);
    };
    futures::join!(putting, trouble);
    // Of four parts, two had arrived; the others were sent again.
    assert!(
        link.taken() < (size + size / 2 + 8 * MIB) as u64,
        "{} bytes were sent of {size}",
        link.taken()
    );
    assert!(place.verify().await.is_sound());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_takes_nothing_is_given_up_in_bounded_time() {
    let place = Place::on_s3().await;
    let link = SlowLink::to(&place.server().endpoint(), RATE).await;
    // It is given up after a multiple of this. A pause of the machine that looks like silence does no harm here: what is
    // sent again is given up as well.
    let repository = behind(&place, &link, SILENCE / 4);
    let checkpoint = place.checkpoint(1, &files());
    let progress = Progress::new();
    let putting = repository.put(&checkpoint, &progress);
    let dead = async {
        until("something is sent", || link.taken() > 9 * MIB as u64).await;
        link.stall(true);
    };
    let (put, ()) = tokio::time::timeout(Duration::from_secs(180), async {
        futures::join!(putting, dead)
    })
    .await
    .expect("it is given up");
    assert!(matches!(put, Err(Error::Store { .. })), "{put:?}");
}
