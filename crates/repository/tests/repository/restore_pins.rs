//! Pins, which keep a snapshot while it is restored.

use std::sync::Arc;
use std::time::Duration;

use esker_repository::env::{Env, System};
use esker_repository::{Error, Options, Progress, Repository, Retries, Root, Which};
use futures::future::BoxFuture;
use testkit_s3::{Fault, Matching, Operation};
use time::OffsetDateTime;

use crate::fixture::{PARTITION, Place, options, retries, some, until};
use crate::resuming::broken_off;

on_both!(
    a_pin_holds_while_it_reads_and_goes_afterwards,
    a_restore_that_fails_leaves_no_pin,
);

async fn a_pin_holds_while_it_reads_and_goes_afterwards(place: Place) {
    let one = Options {
        num_retained: std::num::NonZeroU32::new(1),
        ..options()
    };
    let repository = place.with(one);
    let put = place.put_by(&repository, 1, &some(&[1, 2])).await;
    let pin = repository.pin(&put.snapshot).await.unwrap();
    let shown = &place.json("latest.json")["pins"][0];
    assert_eq!(shown["id"], pin);
    assert_eq!(shown["path"], put.snapshot.to_string());
    // The snapshot is removed from the retained ones, and nothing of it is deleted while it is pinned.
    place.put_by(&repository, 2, &some(&[3])).await;
    repository.sweep().await.unwrap();
    place.assert_only_kept();
    let (_, files) = place.restore(Which::Exactly(put.snapshot.clone())).await;
    assert_eq!(files, some(&[1, 2]));
    let pins = place.json("latest.json")["pins"].clone();
    assert_eq!(pins.as_array().unwrap().len(), 1, "only the first is left");
    repository.unpin(&pin).await.unwrap();
    let sweep = repository.sweep().await.unwrap();
    assert_eq!(sweep.deleted, 3, "then it goes");
    let again = repository.pin(&put.snapshot).await;
    assert!(matches!(again, Err(Error::NoSnapshot(_))), "{again:?}");
}

async fn a_restore_that_fails_leaves_no_pin(place: Place) {
    let target = place.target();
    broken_off(&place, &target).await;
    assert_eq!(place.json("latest.json").get("pins"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_that_cannot_be_written_to_is_restored_unpinned_and_says_so() {
    let place = Place::on_s3().await;
    place.put(1, &some(&[1])).await;
    let before = place.objects();
    let denied = Matching::operation(Operation::Put);
    place.server().faults().always(denied, Fault::Status(403));
    let (restored, files) = place.restore(Which::Newest).await;
    assert_eq!(files, some(&[1]));
    let unpinned = restored.unpinned().expect("it says so").to_string();
    assert!(unpinned.contains("latest.json"), "{unpinned}");
    assert_eq!(place.objects(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_root_shows_the_pin_of_a_restore_under_way() {
    let place = Place::on_s3().await;
    let put = place.put(1, &some(&[1])).await;
    let faults = place.server().faults();
    let file = Matching::operation(Operation::Get).key("/ssts/");
    faults.next(1, file, Fault::Held);
    let repository = place.repository();
    let target = place.target();
    let progress = Progress::new();
    let restore = repository.restore(&Which::Newest, &target, &progress);
    let look = async {
        until("a file is asked for", || faults.held() == 1).await;
        let pins = place.json("latest.json")["pins"].clone();
        faults.release();
        pins
    };
    let (restored, pins) = futures::future::join(restore, look).await;
    restored.unwrap();
    assert_eq!(pins[0]["path"], put.snapshot.to_string());
    assert_eq!(place.json("latest.json").get("pins"), None);
}

/// A clock that does not advance, so no stall of the machine changes the result.
#[derive(Debug)]
struct StandsStill(OffsetDateTime);

impl Env for StandsStill {
    fn now(&self) -> OffsetDateTime {
        self.0
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        System.sleep(duration)
    }

    fn random(&self) -> u64 {
        System.random()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_restore_renews_its_pin() {
    const PIN_FOR: Duration = Duration::from_secs(6);
    let place = Place::on_s3().await;
    place.put(1, &some(&[1])).await;
    let faults = place.server().faults();
    let file = Matching::operation(Operation::Get).key("/ssts/");
    faults.next(1, file, Fault::Held);
    let repository = place.with(Options {
        pin_for: PIN_FOR,
        retries: Retries {
            silence: Duration::from_secs(60),
            ..retries()
        },
        ..options()
    });
    let target = place.target();
    let progress = Progress::new();
    let restore = repository.restore(&Which::Newest, &target, &progress);
    let expiry = || {
        // The file may be read in the middle of a swap.
        let root = std::fs::read(place.path("latest.json")).ok()?;
        let root = Root::parse(&root, PARTITION).ok()?;
        root.pins.first().map(|pin| pin.expires_at)
    };
    let look = async {
        until("a file is asked for", || faults.held() == 1).await;
        let first = expiry().unwrap();
        let mut renewed = first;
        until("the pin is renewed", || {
            renewed = expiry().unwrap_or(first);
            renewed != first
        })
        .await;
        // The clock is past the expiry that the pin had first.
        let later = Arc::new(StandsStill(first + Duration::from_millis(1)));
        let later = Repository::with_env(&place.destination, PARTITION, options(), later);
        let sweep = later.sweep().await.unwrap();
        faults.release();
        (first, renewed, sweep)
    };
    let (restored, (first, renewed, sweep)) = futures::future::join(restore, look).await;
    restored.unwrap();
    assert!(
        renewed < first + PIN_FOR,
        "it was renewed before it expired"
    );
    assert_eq!(sweep.unpinned, 0, "what was renewed holds");
    assert_eq!(place.json("latest.json").get("pins"), None);
}
