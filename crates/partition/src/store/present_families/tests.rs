//! Which column families count when a database is opened.

use std::path::Path;

use super::*;
use crate::applied::Applied;
use crate::keys;
use crate::lineage::Lineage;
use crate::store::{ClusterInit, StoreOptions};
use prost::Message as _;

const ONE: PartitionId = PartitionId(1);

fn options() -> StoreOptions {
    StoreOptions::for_inspection()
}

/// A database whose partition 1 is at `lsn`.
fn database(dir: &Path, lsn: u64) -> Store {
    let init = ClusterInit {
        partitions: 2,
        voters: vec![7],
        cluster_id: "a cluster".to_owned(),
    };
    let store = Store::create(dir, &options(), &init).unwrap();
    write(&store, 0, lsn);
    store
}

/// What a complete import of this number leaves.
fn import(store: &Store, number: u64, lsn: u64) {
    create(store, &[number]);
    write(store, number, lsn);
}

fn write(store: &Store, number: u64, lsn: u64) {
    let part = PartitionDb {
        pinned: Some(ColumnFamilies::new(&store.db, ONE, number)),
        ..store.partition_db(ONE)
    };
    let applied = Applied {
        lsn,
        term: 1,
        voters: vec![7],
        ..Applied::default()
    };
    let mut batch = part.batch();
    batch.put(keys::APPLIED, applied.encode_to_vec());
    let lineage = Lineage::first("a cluster", 2, ONE);
    batch.put(keys::LINEAGE, lineage.to_bytes());
    batch.write().unwrap();
    part.flush().unwrap();
}

/// What an import that was killed before it recorded the files leaves.
fn create(store: &Store, numbers: &[u64]) {
    for number in numbers {
        let segments = segments_name(ONE, *number);
        store
            .db
            .create_cf(segments, &store.segment_options)
            .unwrap();
        let rows = rows_name(ONE, *number);
        store.db.create_cf(rows, &store.partition_options).unwrap();
    }
}

fn reopened(store: Store, dir: &Path) -> Store {
    store.close();
    drop(store);
    Store::open_any(dir, &options()).unwrap()
}

fn lsn(store: &Store) -> Option<u64> {
    store.applied(ONE).unwrap().map(|applied| applied.lsn)
}

fn names(store: &Store) -> Vec<String> {
    store.column_families_of(ONE)
}

/// The path of a table of the rows of this number.
fn table(store: &Store, dir: &Path, number: u64) -> std::path::PathBuf {
    let rows = rows_name(ONE, number);
    let mut files = store.db.live_files().unwrap().into_iter();
    let file = files.find(|file| file.column_family_name == rows).unwrap();
    dir.join(file.name.trim_start_matches('/'))
}

#[test]
fn families_without_a_position_are_none_however_high_their_number_is() {
    let dir = tempfile::tempdir().unwrap();
    let store = database(dir.path(), 16);
    create(&store, &[1, 3]);
    let store = reopened(store, dir.path());
    assert_eq!(lsn(&store), Some(16));
    assert_eq!(names(&store), ["partition-1", "partition-1-segments"]);
    import(&store, 4, 28);
    create(&store, &[5, 12]);
    let store = reopened(store, dir.path());
    assert_eq!(lsn(&store), Some(28));
    assert_eq!(names(&store), ["partition-1.4", "partition-1.4-segments"]);
    // Again: nothing of it depends on what the open before has found.
    let store = reopened(store, dir.path());
    assert_eq!(lsn(&store), Some(28));
}

#[test]
fn the_highest_number_with_a_position_counts_whatever_was_applied_before() {
    let dir = tempfile::tempdir().unwrap();
    let store = database(dir.path(), 16);
    import(&store, 9, 20);
    import(&store, 10, 28);
    let store = reopened(store, dir.path());
    assert_eq!(lsn(&store), Some(28));
    assert_eq!(names(&store), ["partition-1.10", "partition-1.10-segments"]);
}

#[test]
fn a_partition_of_which_only_empty_families_are_left_is_absent_and_can_be_created() {
    let dir = tempfile::tempdir().unwrap();
    let store = database(dir.path(), 16);
    create(&store, &[5]);
    store.drop_families(ONE, 0).unwrap();
    let store = reopened(store, dir.path());
    assert_eq!(lsn(&store), None);
    assert!(!store.has(ONE));
    assert!(names(&store).is_empty());
    let init = ClusterInit {
        partitions: 2,
        voters: vec![7],
        cluster_id: "a cluster".to_owned(),
    };
    store.create_partition(ONE, &init).unwrap();
    let store = reopened(store, dir.path());
    assert_eq!(lsn(&store), Some(0));
}

#[test]
fn nothing_is_removed_while_the_position_of_the_highest_number_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let store = database(dir.path(), 16);
    import(&store, 1, 28);
    let part = PartitionDb {
        pinned: Some(ColumnFamilies::new(&store.db, ONE, 1)),
        ..store.partition_db(ONE)
    };
    let mut batch = part.batch();
    batch.put(keys::APPLIED, [0xff; 9]);
    batch.write().unwrap();
    // Not by way of the partition, which reads its position first.
    let rows = rows_name(ONE, 1);
    let rows = store.db.cf_handle(&rows).unwrap();
    store.db.flush_cf(&rows).unwrap();
    drop((rows, part));
    let four = names(&store);
    assert_eq!(four.len(), 4);
    store.close();
    drop(store);
    let options = options();
    let store = Store::open_any(dir.path(), &options).unwrap();
    assert!(store.applied(ONE).is_err());
    assert!(options.damage.of(ONE).is_some());
    assert_eq!(options.damage.of(PartitionId(2)), None);
    assert_eq!(names(&store), four);
    // Once another copy replaces it, none of the numbers counts again.
    store.drop_partition(ONE).unwrap();
    let store = reopened(store, dir.path());
    assert_eq!(lsn(&store), None);
    assert!(names(&store).is_empty());
}

#[test]
fn damage_of_families_that_were_replaced_is_not_the_partitions() {
    let dir = tempfile::tempdir().unwrap();
    let store = database(dir.path(), 16);
    import(&store, 1, 28);
    let replaced = table(&store, dir.path(), 0);
    store.close();
    drop(store);
    std::fs::remove_file(&replaced).unwrap();
    let options = options();
    let why = Store::open_any(dir.path(), &options).err().unwrap();
    assert!(!why.is_unreadable(), "{why}");
    let store = Store::open_damaged(dir.path(), &options, why).unwrap();
    assert!(options.damage.is_empty());
    assert_eq!(lsn(&store), Some(28));
    assert_eq!(names(&store), ["partition-1.1", "partition-1.1-segments"]);
    // The families in use are the partition's.
    let used = table(&store, dir.path(), 1);
    store.close();
    drop(store);
    std::fs::remove_file(&used).unwrap();
    let why = Store::open_any(dir.path(), &options).err().unwrap();
    let store = Store::open_damaged(dir.path(), &options, why).unwrap();
    assert!(options.damage.of(ONE).is_some());
    store.close();
}

#[test]
fn a_dropped_partition_stays_dropped_with_all_of_its_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let store = database(dir.path(), 16);
    import(&store, 1, 28);
    import(&store, 2, 40);
    store.drop_partition(ONE).unwrap();
    assert!(names(&store).is_empty());
    let store = reopened(store, dir.path());
    assert_eq!(lsn(&store), None);
    let two = store.applied(PartitionId(2)).unwrap();
    assert_eq!(two.map(|applied| applied.lsn), Some(0));
}
