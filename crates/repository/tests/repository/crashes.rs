//! A crash at every await point: the future of an operation is dropped after its k-th poll, for every k
//! until it completes. Whatever k is, the repository verifies, the next put succeeds, and when the
//! remaining intent has expired, a sweep leaves only what is kept.
//!
//! An operation that crashes has a runtime of its own, and nothing of it continues when the next step
//! begins, neither on a thread nor at the server.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use esker_repository::prune::PruneOptions;
use esker_repository::{LineageId, Lsn, Options, Progress, Repository, Which};
use futures::future::BoxFuture;
use testkit_s3::Door;

use crate::fixture::{Clock, LINEAGE, Place, full, options, read_dir, some};

/// A future that crashes: it returns `None` after so many polls.
struct AbortAfter<'a, T> {
    work: BoxFuture<'a, T>,
    polls: usize,
}

impl<T> Future for AbortAfter<'_, T> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        if self.polls == 0 {
            return Poll::Ready(None);
        }
        self.polls -= 1;
        self.work.as_mut().poll(cx).map(Some)
    }
}

/// Lets `work` crash after so many polls. It is an operation of a repository from [`Place::elsewhere`],
/// behind this door.
async fn crash<T>(
    door: Option<Door>,
    polls: usize,
    work: impl Future<Output = T> + Send,
) -> Option<T> {
    let work: BoxFuture<'_, T> = Box::pin(work);
    let done = tokio::task::block_in_place(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let done = runtime.block_on(AbortAfter { work, polls });
        // Dropping the runtime waits for what its threads have begun.
        drop(runtime);
        done
    });
    if let Some(door) = door {
        door.close().await;
    }
    done
}

/// The next number of polls to crash after: every number in a directory, fewer over the network.
fn next(place: &Place, polls: usize) -> usize {
    if place.is_s3() {
        polls + 1 + polls / 4
    } else {
        polls + 1
    }
}

/// Checks what must be true after any crash.
async fn recovers(place: &Place, lsn: u64, lineage: LineageId, polls: usize) {
    let verified = place.verify().await;
    assert!(
        verified.is_sound(),
        "after {polls} polls: {:?}",
        verified.damaged
    );
    let files = some(&[1, 2, lsn]);
    let mut checkpoint = place.checkpoint(lsn, &files);
    checkpoint.lineage = Some(lineage);
    let put = place.repository().put(&checkpoint, &Progress::new()).await;
    put.unwrap_or_else(|error| panic!("the next put works after {polls} polls: {error}"));
    let later = place.with_clock(options(), Clock::wrong_by(2));
    later.sweep().await.unwrap();
    place.assert_only_kept();
    let (_, restored) = place.restore(Which::Newest).await;
    assert_eq!(restored, files, "after {polls} polls");
}

on_both!(
    a_put_that_crashes_anywhere_harms_nothing,
    a_full_put_that_crashes_anywhere_harms_nothing,
    a_first_put_that_crashes_anywhere_harms_nothing,
    a_sweep_that_crashes_anywhere_harms_nothing,
    a_restore_that_crashes_anywhere_is_gone_on_with,
    a_prune_that_crashes_anywhere_harms_nothing,
    a_fork_that_crashes_anywhere_is_done_or_not,
);

async fn puts_that_crash(place: Place, crashing: Options) {
    let mut lsn = 10;
    // Retention takes part, because three snapshots are retained.
    for lsn in 1..=3 {
        place
            .put_by(&place.with(crashing.clone()), lsn, &some(&[1, lsn]))
            .await;
    }
    // The number of polls depends on the speed of the threads that the operation waits for.
    let (mut polls, mut completed) = (0, 0);
    while completed < 3 {
        polls = next(&place, polls);
        lsn += 2;
        let (repository, door) = place.elsewhere(crashing.clone()).await;
        let checkpoint = place.checkpoint(lsn, &some(&[1, lsn]));
        let progress = Progress::new();
        let done = crash(door, polls, repository.put(&checkpoint, &progress)).await;
        recovers(&place, lsn + 1, LINEAGE, polls).await;
        if let Some(put) = done {
            put.unwrap();
            completed += 1;
        }
    }
}

async fn a_put_that_crashes_anywhere_harms_nothing(place: Place) {
    puts_that_crash(place, options()).await;
}

async fn a_full_put_that_crashes_anywhere_harms_nothing(place: Place) {
    puts_that_crash(place, full()).await;
}

async fn a_first_put_that_crashes_anywhere_harms_nothing(place: Place) {
    let mut polls = 0;
    loop {
        polls = next(&place, polls);
        let _ = std::fs::remove_dir_all(&place.dir);
        let checkpoint = place.checkpoint(1, &some(&[1, 2]));
        let (repository, door) = place.elsewhere(options()).await;
        let progress = Progress::new();
        let done = crash(door, polls, repository.put(&checkpoint, &progress)).await;
        if done.is_none() && !place.path("latest.json").exists() {
            place.put(1, &some(&[1, 2])).await;
        }
        recovers(&place, 2, LINEAGE, polls).await;
        if let Some(put) = done {
            put.unwrap();
            return;
        }
    }
}

fn litter(place: &Place) {
    for key in [
        "ssts/00.sst",
        "ssts/01.sst",
        "lsn_00000000000000000009-snap_1abc/metadata.json",
        "lsn_00000000000000000009-snap_1abc/000001.sst",
    ] {
        place.write(key, "orphan");
    }
    place.edit("latest.json", |root| {
        root["intents"] = serde_json::json!([{
            "snapshot_ids": ["snap_1dead"], "generation": 4711, "node_name": "n2",
            "renewed_at": "2020-01-01T00:00:00Z",
        }]);
    });
}

async fn a_sweep_that_crashes_anywhere_harms_nothing(place: Place) {
    place.put(1, &some(&[1])).await;
    let (mut polls, mut lsn) = (0, 1);
    loop {
        polls = next(&place, polls);
        lsn += 1;
        litter(&place);
        let (repository, door) = place.elsewhere(options()).await;
        let done = crash(door, polls, repository.sweep()).await;
        recovers(&place, lsn, LINEAGE, polls).await;
        if let Some(sweep) = done {
            sweep.unwrap();
            return;
        }
    }
}

async fn a_restore_that_crashes_anywhere_is_gone_on_with(place: Place) {
    place.put(1, &some(&[1])).await;
    let files = some(&[1, 2]);
    let put = place.put(2, &files).await;
    let (mut polls, mut lsn) = (0, 2);
    loop {
        polls = next(&place, polls);
        lsn += 1;
        // A pin keeps the snapshot, however many follow it.
        let repository = place.repository();
        let pin = repository.pin(&put.snapshot).await.unwrap();
        let (target, progress) = (place.target(), Progress::new());
        let which = Which::Exactly(put.snapshot.clone());
        let (elsewhere, door) = place.elsewhere(options()).await;
        let restore = elsewhere.restore(&which, &target, &progress);
        let done = crash(door, polls, restore).await;
        assert!(
            !target.exists() || read_dir(&target) == files,
            "it is there with everything or not at all, after {polls} polls"
        );
        if !target.exists() {
            let restored = repository.restore(&which, &target, &progress).await;
            restored.unwrap();
        }
        assert_eq!(read_dir(&target), files, "after {polls} polls");
        recovers_pinned(&place, &repository, &pin, lsn, polls).await;
        if let Some(restored) = done {
            restored.unwrap();
            return;
        }
    }
}

/// As `recovers`, with a snapshot that remains pinned.
async fn recovers_pinned(
    place: &Place,
    repository: &Repository,
    pin: &str,
    lsn: u64,
    polls: usize,
) {
    let verified = place.verify().await;
    assert!(
        verified.is_sound(),
        "after {polls} polls: {:?}",
        verified.damaged
    );
    place.put(lsn, &some(&[1, lsn])).await;
    repository.sweep().await.unwrap();
    place.assert_only_kept();
    let root = place.json("latest.json");
    let pins = root["pins"].as_array().unwrap();
    assert!(pins.iter().any(|p| p["id"] == pin));
    // The pin of the crashed restore is removed, as if it had expired.
    place.edit("latest.json", |root| {
        let pins = root["pins"].as_array_mut().unwrap();
        pins.retain(|p| p["id"] == pin);
        pins.truncate(1);
    });
}

async fn a_prune_that_crashes_anywhere_harms_nothing(place: Place) {
    place.put(1, &some(&[1])).await;
    let (mut polls, mut lsn) = (0, 1);
    loop {
        polls = next(&place, polls);
        lsn += 2;
        place.put(lsn, &some(&[1, 3])).await;
        litter(&place);
        let repository = place.repository();
        let keep_one = PruneOptions {
            keep: std::num::NonZeroU32::new(1),
            ..PruneOptions::default()
        };
        let plan = repository.plan_prune(&keep_one).await.unwrap();
        assert!(!plan.objects.is_empty() && !plan.released.is_empty());
        let (elsewhere, door) = place.elsewhere(options()).await;
        let done = crash(door, polls, elsewhere.prune(&plan)).await;
        recovers(&place, lsn + 1, LINEAGE, polls).await;
        if let Some(pruned) = done {
            assert_eq!(pruned.unwrap().failed, 0);
            return;
        }
    }
}

async fn a_fork_that_crashes_anywhere_is_done_or_not(place: Place) {
    place.put(1, &some(&[1])).await;
    let (mut polls, mut lsn, mut parent) = (0, 1, LINEAGE);
    loop {
        polls = next(&place, polls);
        lsn += 1;
        let (repository, door) = place.elsewhere(options()).await;
        let branch = LineageId(0x1000 + polls as u128);
        let fork = repository.fork(Some(parent), Lsn(lsn - 1), branch);
        let done = crash(door, polls, fork).await;
        let now = place.repository().root().await.unwrap().lineage.unwrap();
        assert!(now == branch || now == parent, "after {polls} polls");
        assert!(done.is_none() || now == branch);
        parent = now;
        recovers(&place, lsn, parent, polls).await;
        if done.is_some() {
            return;
        }
    }
}
