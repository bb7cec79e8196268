//! The order of snapshots: which is the newest, and which are removed.

use std::num::NonZeroU32;

use esker_repository::{Error, Kind, Lsn, Options, Progress, SnapshotDir};
use testkit_s3::Operation;

use crate::fixture::{Files, Place, full, options, some};

on_both!(
    of_equal_positions_the_later_put_is_the_newest,
    the_same_content_again_takes_the_place_of_the_former_and_pushes_nothing_out,
    a_put_that_its_own_commit_would_cut_off_is_refused,
    an_older_position_than_all_retained_is_refused,
    an_older_position_among_retained_ones_finds_its_place,
    a_cut_off_snapshot_is_deleted_at_once,
    without_a_number_only_the_newest_is_retained_and_the_rest_goes_by_the_sweep,
);

/// Puts a checkpoint without a lineage.
async fn put_without_lineage(place: &Place, lsn: u64, files: &Files) -> esker_repository::Put {
    let mut checkpoint = place.checkpoint(lsn, files);
    checkpoint.lineage = None;
    let put = place.repository().put(&checkpoint, &Progress::new()).await;
    put.unwrap()
}

async fn the_same_content_again_takes_the_place_of_the_former_and_pushes_nothing_out(place: Place) {
    let retained = || {
        let root = place.json("latest.json");
        let retained = root["retained_snapshots"].as_array().unwrap().clone();
        retained
            .iter()
            .map(|r| r["path"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let first = put_without_lineage(&place, 1, &some(&[1])).await;
    for _ in 0..4 {
        let again = put_without_lineage(&place, 2, &some(&[2])).await;
        assert_eq!(
            retained(),
            [again.snapshot.to_string(), first.snapshot.to_string()]
        );
        place.assert_only_kept();
    }
    // Another content at the same LSN is another snapshot.
    let other = put_without_lineage(&place, 2, &some(&[2, 3])).await;
    assert_eq!(retained().len(), 3);
    assert_eq!(retained()[0], other.snapshot.to_string());
    let inventory = place.repository().inventory().await.unwrap();
    let listed: Vec<_> = inventory.snapshots.iter().map(|s| &s.snapshot).collect();
    assert_eq!(
        listed,
        retained().iter().collect::<Vec<_>>(),
        "newest first"
    );

    // In one lineage, an LSN determines the content.
    let place = Place::in_a_directory();
    let first = place.put(1, &some(&[1])).await;
    place.put(2, &some(&[2])).await;
    let compacted = place.put(2, &some(&[7, 8])).await;
    let root = place.json("latest.json");
    assert_eq!(root["retained_snapshots"].as_array().unwrap().len(), 2);
    assert_eq!(root["path"], compacted.snapshot.to_string());
    assert_eq!(
        root["retained_snapshots"][1]["path"],
        first.snapshot.to_string()
    );
    place.assert_only_kept();
}

async fn a_put_that_its_own_commit_would_cut_off_is_refused(place: Place) {
    for lsn in [10, 20, 30] {
        place.put(lsn, &some(&[lsn])).await;
    }
    let fewer = place.with(Options {
        num_retained: NonZeroU32::new(2),
        ..options()
    });
    let before = place.objects();
    let checkpoint = place.checkpoint(15, &some(&[15]));
    let put = fewer.put(&checkpoint, &Progress::new()).await;
    let Err(Error::Superseded { lsn, oldest }) = put else {
        panic!("{put:?}");
    };
    assert_eq!((lsn, oldest), (Lsn(15), Lsn(20)));
    assert_eq!(place.objects(), before, "and nothing is written");
    // The next commit retains only as many as the smaller number permits.
    place.put_by(&fewer, 25, &some(&[25])).await;
    let root = place.json("latest.json");
    assert_eq!(root["retained_snapshots"].as_array().unwrap().len(), 2);
    assert_eq!(root["min_applied_lsn"], 30);
    place.assert_only_kept();
}

async fn of_equal_positions_the_later_put_is_the_newest(place: Place) {
    for number in 1..=4 {
        let put = put_without_lineage(&place, 5, &some(&[number])).await;
        let root = place.json("latest.json");
        assert_eq!(root["path"], put.snapshot.to_string());
        assert_eq!(
            root["retained_snapshots"][0]["path"],
            put.snapshot.to_string()
        );
    }
    let root = place.json("latest.json");
    assert_eq!(root["retained_snapshots"].as_array().unwrap().len(), 3);
    place.assert_only_kept();
}

async fn an_older_position_than_all_retained_is_refused(place: Place) {
    place.put(10, &some(&[1])).await;
    let before = place.objects();
    let checkpoint = place.checkpoint(9, &some(&[2]));
    let put = place.repository().put(&checkpoint, &Progress::new()).await;
    let Err(Error::Superseded { lsn, oldest }) = put else {
        panic!("{put:?}");
    };
    assert_eq!((lsn, oldest), (Lsn(9), Lsn(10)));
    assert_eq!(place.objects(), before, "and nothing is written");
}

async fn an_older_position_among_retained_ones_finds_its_place(place: Place) {
    for lsn in [10, 20, 30] {
        place.put(lsn, &some(&[lsn])).await;
    }
    let late = place.put(15, &some(&[15])).await;
    let root = place.json("latest.json");
    let lsns: Vec<_> = root["retained_snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["min_applied_lsn"].as_u64().unwrap())
        .collect();
    assert_eq!(lsns, [30, 20, 15]);
    assert_eq!(root["min_applied_lsn"], 30, "the top repeats the first");
    assert_eq!(late.retention.evicted.len(), 1, "{:?}", late.retention);
    place.assert_only_kept();
    assert!(place.verify().await.is_sound());
}

async fn a_cut_off_snapshot_is_deleted_at_once(place: Place) {
    for kind in [Kind::Incremental, Kind::Full] {
        let repository = place.with(Options {
            kind,
            num_retained: NonZeroU32::new(2),
            // Retention does not depend on ages.
            orphan_min_age: std::time::Duration::from_secs(86_400),
            ..options()
        });
        let base = if kind == Kind::Full { 100 } else { 0 };
        let first = place.put_by(&repository, base + 1, &some(&[1, 2])).await;
        place.put_by(&repository, base + 2, &some(&[1, 3])).await;
        let third = place.put_by(&repository, base + 3, &some(&[1, 4])).await;
        if kind == Kind::Incremental {
            let evicted = vec![first.snapshot.to_string()];
            assert_eq!(third.retention.evicted, evicted);
            assert_eq!(
                (third.retention.deleted, third.retention.failed),
                (2, 0),
                "its own file and its description; the shared one stays"
            );
        }
        place.assert_only_kept();
        assert!(place.verify().await.is_sound());
    }
}

async fn without_a_number_only_the_newest_is_retained_and_the_rest_goes_by_the_sweep(place: Place) {
    let day = Options {
        num_retained: None,
        orphan_min_age: std::time::Duration::from_secs(86_400),
        ..options()
    };
    let repository = place.with(day);
    let first = place.put_by(&repository, 1, &some(&[1, 2])).await;
    let second = place.put_by(&repository, 2, &some(&[1, 3])).await;
    let root = place.json("latest.json");
    assert_eq!(root["retained_snapshots"].as_array().unwrap().len(), 1);
    assert_eq!(second.retention.deleted, 0);
    let sweep = repository.sweep().await.unwrap();
    assert_eq!((sweep.deleted, sweep.young), (0, 2), "{sweep:?}");
    assert!(place.path(&first.snapshot.metadata()).exists());
    place.clock.jump(2);
    let sweep = repository.sweep().await.unwrap();
    assert_eq!((sweep.deleted, sweep.young), (2, 0), "{sweep:?}");
    place.assert_only_kept();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_deletes_files_first_and_the_description_last() {
    let place = Place::on_s3().await;
    let repository = place.with(Options {
        num_retained: NonZeroU32::new(1),
        ..full()
    });
    let first = place.put_by(&repository, 1, &some(&[1, 2])).await;
    let server = place.server();
    server.forget();
    let file = format!("{}/000001.sst", first.snapshot);
    server.faults().keep(&file);
    let second = place.put_by(&repository, 2, &some(&[3])).await;
    assert_eq!(second.retention.evicted, [first.snapshot.to_string()]);
    assert_eq!(second.retention.failed, 1, "{:?}", second.retention);
    assert!(
        place.path(&first.snapshot.metadata()).exists(),
        "what is left still says what it was"
    );
    server.faults().clear();
    let sweep = repository.sweep().await.unwrap();
    assert_eq!((sweep.deleted, sweep.failed), (2, 0), "{sweep:?}");
    place.assert_only_kept();

    server.forget();
    place.put_by(&repository, 3, &some(&[4])).await;
    assert_eq!(
        server.requests(Operation::BulkDelete),
        2,
        "files in one request, the description in the next"
    );
    place.assert_only_kept();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_deletes_nothing_while_something_that_stays_cannot_be_read() {
    let place = Place::on_s3().await;
    let two = Options {
        num_retained: NonZeroU32::new(2),
        ..full()
    };
    let dirs: Vec<SnapshotDir> = [
        place.put_by(&place.with(two.clone()), 1, &some(&[1])).await,
        place.put_by(&place.with(two.clone()), 2, &some(&[2])).await,
    ]
    .into_iter()
    .map(|put| put.snapshot)
    .collect();
    let sound = std::fs::read(place.path(&dirs[1].metadata())).unwrap();
    place.write(&dirs[1].metadata(), "garbage");
    let third = place.put_by(&place.with(two.clone()), 3, &some(&[3])).await;
    assert_eq!(third.retention.evicted, [dirs[0].to_string()]);
    assert_eq!(third.retention.deleted, 0);
    assert!(place.path(&dirs[0].file("/000001.sst")).exists());
    place.write(&dirs[1].metadata(), sound);
    place.with(two).sweep().await.unwrap();
    place.assert_only_kept();
}
