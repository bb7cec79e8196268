//! Failures that other systems do not survive. Each test is named by its promise; most promises are tested
//! in depth by the modules of their nouns.

use std::num::NonZeroU32;
use std::time::Duration;

use esker_repository::{Options, Which};
use testkit_s3::{Fault, Matching, Operation};

use crate::fixture::{Place, full, options, some};

on_both!(
    a_flipped_byte_of_the_same_size_never_goes_live,
    one_missing_file_of_the_newest_does_not_keep_the_partition_down,
    a_late_writer_leaves_the_top_level_on_a_snapshot_that_stays,
    a_reused_file_is_protected_however_old_it_is,
    an_orphaned_directory_keeps_its_foreign_files,
    an_unreadable_description_is_loud_and_stops_no_put,
    an_idle_partition_is_swept,
    a_put_says_which_snapshot_it_made,
);

async fn a_flipped_byte_of_the_same_size_never_goes_live(place: Place) {
    let put = place.put(1, &some(&[1])).await;
    place.damage(&place.files_of(&put.snapshot)[0], |content| {
        content[77] ^= 1
    });
    let to = place.target();
    let repository = place.repository();
    let progress = esker_repository::Progress::new();
    assert!(
        repository
            .restore(&Which::Newest, &to, &progress)
            .await
            .is_err()
    );
    assert!(!to.exists(), "nothing that could be opened is there");
}

async fn one_missing_file_of_the_newest_does_not_keep_the_partition_down(place: Place) {
    place.put(1, &some(&[1, 2])).await;
    let newest = place.put(2, &some(&[1, 3])).await;
    place.remove(&place.files_of(&newest.snapshot)[1]);
    assert_eq!(place.restore(Which::Newest).await.1, some(&[1, 2]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_that_was_done_and_answered_500_is_a_success_and_nothing_of_it_is_cleaned_up() {
    let place = Place::on_s3().await;
    place.put(1, &some(&[1])).await;
    let root = Matching::operation(Operation::Put).key("latest.json");
    // The swap of the intent succeeds; the commit's answer is lost.
    place
        .server()
        .faults()
        .after(1, 1, root, Fault::AppliedThen(500));
    let put = place.put(2, &some(&[2])).await;
    assert_eq!(place.server().faults().pending(), 0);
    place.repository().sweep().await.unwrap();
    let (restored, files) = place.restore(Which::Newest).await;
    assert_eq!(restored.metadata().dir(), put.snapshot);
    assert_eq!(files, some(&[2]));
}

async fn a_late_writer_leaves_the_top_level_on_a_snapshot_that_stays(place: Place) {
    for lsn in [10, 20, 30] {
        place.put(lsn, &some(&[lsn])).await;
    }
    let late = place.put(10, &some(&[11])).await;
    let root = place.json("latest.json");
    assert_eq!(root["path"], root["retained_snapshots"][0]["path"]);
    assert_eq!(root["min_applied_lsn"], 30);
    assert_eq!(
        root["retained_snapshots"][2]["path"],
        late.snapshot.to_string()
    );
    assert!(place.verify().await.is_sound());
}

async fn a_reused_file_is_protected_however_old_it_is(place: Place) {
    let first = place.put(1, &some(&[1])).await;
    let old = std::fs::File::options()
        .write(true)
        .open(place.path(&place.files_of(&first.snapshot)[0]))
        .unwrap();
    old.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let one = Options {
        num_retained: NonZeroU32::new(1),
        orphan_min_age: Duration::from_secs(86_400),
        ..options()
    };
    let put = place
        .put_by(&place.with(one.clone()), 2, &some(&[1, 2]))
        .await;
    assert_eq!(put.files_uploaded, 1);
    place.with(one).sweep().await.unwrap();
    assert_eq!(place.restore(Which::Newest).await.1, some(&[1, 2]));
}

async fn an_orphaned_directory_keeps_its_foreign_files(place: Place) {
    let one = Options {
        num_retained: NonZeroU32::new(1),
        ..full()
    };
    let first = place.put_by(&place.with(one.clone()), 1, &some(&[1])).await;
    let notes = format!("{}/notes.txt", first.snapshot);
    place.write(&notes, "mine");
    place.put_by(&place.with(one.clone()), 2, &some(&[2])).await;
    place.with(one).sweep().await.unwrap();
    assert!(!place.path(&first.snapshot.metadata()).exists());
    assert_eq!(place.objects()[&notes], b"mine");
}

async fn an_unreadable_description_is_loud_and_stops_no_put(place: Place) {
    let put = place.put(1, &some(&[1])).await;
    place.write(&put.snapshot.metadata(), "garbage");
    let error = place.repository().sweep().await.unwrap_err().to_string();
    assert!(
        error.contains(&put.snapshot.metadata()),
        "it is named: {error}"
    );
    for lsn in 2..=4 {
        place.put(lsn, &some(&[lsn])).await;
    }
    // The snapshot is not retained any more, so sweeps work again.
    assert!(place.repository().sweep().await.unwrap().deleted > 0);
    place.assert_only_kept();
}

async fn an_idle_partition_is_swept(place: Place) {
    place.put(1, &some(&[1])).await;
    place.write("ssts/00.sst", "orphan");
    // No put follows; a repository that was just opened sweeps.
    assert_eq!(place.repository().sweep().await.unwrap().deleted, 1);
}

async fn a_put_says_which_snapshot_it_made(place: Place) {
    for lsn in [5, 9] {
        let put = place.put(lsn, &some(&[lsn])).await;
        assert_eq!(put.snapshot.lsn.0, lsn);
        assert_eq!(place.metadata(&put.snapshot).min_applied_lsn.0, lsn);
    }
}
