//! A limit on the rate of uploads, at real destinations: in parts, as copies, as links. The simulation
//! tests how exactly it is kept.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use esker_repository::{Options, Progress, RateLimiter};
use testkit_s3::{Fault, Matching, Operation};

use crate::fixture::{Files, Place, bytes, full};

const MIB: usize = 1 << 20;

/// Puts files at so many bytes a second, and checks them. Returns the time that it took.
async fn time_of_put(place: &Place, per_second: usize, parallel: usize, files: &Files) -> Duration {
    let repository = place.with(Options {
        rate_limiter: NonZeroU64::new(per_second as u64).map(RateLimiter::new),
        parallel_files: parallel,
        ..full()
    });
    let checkpoint = place.checkpoint(1, files);
    let began = Instant::now();
    let progress = Progress::new();
    repository.put(&checkpoint, &progress).await.unwrap();
    let took = began.elapsed();
    assert_eq!(progress.bytes_done(), progress.bytes());
    assert!(place.verify().await.is_sound());
    took
}

fn large() -> Files {
    let file = |number: u64| (format!("{number:06}.sst"), bytes(number, 20 * MIB));
    [file(1), file(2)].into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_wait_for_their_turn() {
    let place = Place::on_s3().await;
    let took = time_of_put(&place, 32 * MIB, 8, &large()).await;
    // Of 40 MiB, 8 MiB are sent at once.
    assert!(took >= Duration::from_secs(1), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_into_a_directory_wait_for_their_turn() {
    let place = Place::linked(false);
    let took = time_of_put(&place, 32 * MIB, 8, &large()).await;
    assert!(took >= Duration::from_secs(1), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_cost_nothing() {
    let place = Place::linked(true);
    let took = time_of_put(&place, MIB, 8, &large()).await;
    // 40 MiB, of which 1 MiB is sent at once, would take 39 seconds.
    assert!(took < Duration::from_secs(38), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_had_to_be_sent_again_counts() {
    let place = Place::on_s3().await;
    let put_of_one = Matching::operation(Operation::Put).key("000001.sst");
    let faults = place.server().faults();
    faults.next(4, put_of_one, Fault::Status(503));
    let file = |number: u64| (format!("{number:06}.sst"), bytes(number, MIB / 4));
    let files: Files = [file(1), file(2)].into();
    let took = time_of_put(&place, MIB, 1, &files).await;
    assert_eq!(faults.pending(), 0);
    // Six times a quarter of a second, of which a second's worth is sent at once.
    assert!(took >= Duration::from_millis(500), "{took:?}");
}
