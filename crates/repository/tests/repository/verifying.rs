//! Verification: each damaged object by its key, and the snapshots that need it.

use esker_repository::{Error, LineageId, Lsn, Options, Progress};
use testkit_s3::Operation;

use crate::fixture::{LINEAGE, Place, full, only_damage, options, some};

on_both!(
    what_is_sound_is_counted,
    a_shared_object_hurts_all_that_need_it,
    without_data_sizes_are_looked_at_and_with_data_every_byte,
    a_description_that_is_gone_is_found_by_who_has_read_it_before,
    pinned_and_abandoned_snapshots_are_looked_at,
    descriptions_that_contradict_each_other_are_found,
    orphans_and_foreign_files_are_no_damage,
);

async fn what_is_sound_is_counted(place: Place) {
    let a = place.put(1, &some(&[1, 2])).await;
    let b = place.put(2, &some(&[1, 3])).await;
    let progress = Progress::new();
    let report = place.repository().verify(true, &progress).await.unwrap();
    assert!(report.is_sound() && report.data);
    assert_eq!(
        report.snapshots,
        [b.snapshot.to_string(), a.snapshot.to_string()],
        "newest first"
    );
    assert_eq!((report.objects, report.bytes), (3, 501 + 502 + 503));
    assert_eq!(progress.bytes_done(), report.bytes);
    assert!(report.without_checksums.is_empty());
}

async fn a_shared_object_hurts_all_that_need_it(place: Place) {
    let a = place.put(1, &some(&[1, 2])).await;
    let b = place.put(2, &some(&[1, 3])).await;
    let shared = place.files_of(&a.snapshot)[0].clone();
    place.damage(&shared, |content| content[0] ^= 1);
    let report = place.verify().await;
    let (key, why, hurts) = only_damage(&report);
    assert_eq!(key, shared);
    assert!(why.contains("checksum"), "{why}");
    let both = [b.snapshot.to_string(), a.snapshot.to_string()];
    assert_eq!(hurts, both);
}

async fn without_data_sizes_are_looked_at_and_with_data_every_byte(place: Place) {
    let put = place.put(1, &some(&[1, 2, 3])).await;
    let keys = place.files_of(&put.snapshot);
    place.damage(&keys[0], |content| content[250] ^= 1);
    place.damage(&keys[1], |content| content.truncate(10));
    place.remove(&keys[2]);
    let repository = place.repository();
    for (data, found) in [(false, 2), (true, 3)] {
        let report = repository.verify(data, &Progress::new()).await.unwrap();
        assert_eq!(report.damaged.len(), found, "{:?}", report.damaged);
        let why = |key: &String| {
            let damaged = report.damaged.iter().find(|d| d.key == *key);
            damaged.map(|d| d.why.clone())
        };
        assert_eq!(why(&keys[0]).is_some(), data);
        assert!(why(&keys[1]).unwrap().contains("10 bytes instead of 502"));
        assert!(why(&keys[2]).unwrap().contains("missing"));
    }
}

async fn a_description_that_is_gone_is_found_by_who_has_read_it_before(place: Place) {
    let repository = place.repository();
    let put = place.put_by(&repository, 1, &some(&[1])).await;
    repository.sweep().await.unwrap();
    assert!(
        repository
            .verify(true, &Progress::new())
            .await
            .unwrap()
            .is_sound()
    );
    let key = put.snapshot.metadata();
    place.damage(&key, |content| content.truncate(50));
    let report = repository.verify(false, &Progress::new()).await.unwrap();
    assert_eq!(only_damage(&report).0, key);
    place.remove(&key);
    let report = repository.verify(false, &Progress::new()).await.unwrap();
    let (damaged, why, hurts) = only_damage(&report);
    assert_eq!((damaged, why), (&*key, "it is missing"));
    assert_eq!(hurts, [put.snapshot.to_string()]);
}

async fn pinned_and_abandoned_snapshots_are_looked_at(place: Place) {
    let repository = place.with(Options {
        num_retained: std::num::NonZeroU32::new(1),
        ..options()
    });
    let pinned = place.put_by(&repository, 1, &some(&[1])).await;
    repository.pin(&pinned.snapshot).await.unwrap();
    let abandoned = place.put_by(&repository, 2, &some(&[2])).await;
    repository
        .fork(Some(LINEAGE), Lsn(0), LineageId(9))
        .await
        .unwrap();
    for put in [&pinned, &abandoned] {
        place.remove(&place.files_of(&put.snapshot)[0]);
    }
    let report = place.verify().await;
    let mut hurt: Vec<_> = report.damaged.iter().map(|d| d.hurts[0].clone()).collect();
    hurt.sort();
    assert_eq!(
        hurt,
        [pinned.snapshot.to_string(), abandoned.snapshot.to_string()]
    );
}

async fn descriptions_that_contradict_each_other_are_found(place: Place) {
    let a = place.put(1, &some(&[1])).await;
    place.put(2, &some(&[1])).await;
    place.edit(&a.snapshot.metadata(), |metadata| {
        metadata["checksums"]["/000001.sst"] = "0".repeat(32).into();
    });
    let report = place.verify().await;
    assert_eq!(report.damaged.len(), 1, "{:?}", report.damaged);
    assert!(report.damaged[0].hurts.contains(&a.snapshot.to_string()));
}

async fn orphans_and_foreign_files_are_no_damage(place: Place) {
    let put = place.put_by(&place.with(full()), 1, &some(&[1])).await;
    place.write("ssts/00ff.sst", "orphan");
    place.write(&format!("{}/notes.txt", put.snapshot), "foreign");
    place.write(&put.snapshot.file("/999999.sst"), "more than is described");
    assert!(place.verify().await.is_sound());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_data_no_file_is_read() {
    let place = Place::on_s3().await;
    place.put(1, &some(&[1, 2])).await;
    let server = place.server();
    server.forget();
    let repository = place.repository();
    repository.verify(false, &Progress::new()).await.unwrap();
    assert_eq!(server.requests(Operation::Get), 2, "root and description");
    assert_eq!(
        server.requests(Operation::List),
        1,
        "sizes come from a list"
    );
    assert_eq!(server.total(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_refuses_is_an_error_and_no_damage() {
    use testkit_s3::{Fault, Matching};
    let place = Place::on_s3().await;
    place.put(1, &some(&[1])).await;
    let denied = Matching::operation(Operation::Get).key("/ssts/");
    place.server().faults().always(denied, Fault::Status(403));
    let verified = place.repository().verify(true, &Progress::new()).await;
    assert!(
        matches!(verified, Err(Error::Denied { .. })),
        "{verified:?}"
    );
}
