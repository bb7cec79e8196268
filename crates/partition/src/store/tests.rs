//! The promises of the node's database as a whole.

use super::*;

fn options() -> StoreOptions {
    StoreOptions {
        block_cache: 1024 * 1024,
        write_buffer: 1024 * 1024,
        write_buffers_total: 4 * 1024 * 1024,
        max_open_files: 32,
        background_jobs: 1,
        checkpoints: None,
    }
}

fn founding(partitions: u32, voters: &[u64]) -> Founding {
    Founding {
        partitions,
        voters: voters.to_vec(),
        cluster_id: "a cluster".to_owned(),
    }
}

#[test]
fn a_new_database_is_at_lsn_0_durably_with_its_members() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(directory.path(), &options(), &founding(3, &[4, 5])).unwrap();
    for number in 0..=3 {
        let part = store.part(PartitionId(number));
        let applied = part.durable().unwrap().unwrap();
        assert_eq!((applied.lsn, applied.term), (0, 0));
        assert_eq!(applied.voters, [4, 5]);
        assert_eq!(part.applied().unwrap(), Some(applied));
    }
}

#[test]
fn a_database_that_is_missing_is_an_error_and_nothing_is_made_in_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    for _ in 0..2 {
        assert!(matches!(
            Store::open(&path, &options(), 3),
            Err(StoreError::Missing { .. })
        ));
        assert!(!path.exists());
    }
}

#[test]
fn a_database_that_lacks_a_partition_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    drop(Store::create(directory.path(), &options(), &founding(2, &[1])).unwrap());
    // More partitions than it has, and fewer.
    assert!(Store::open(directory.path(), &options(), 3).is_err());
    assert!(Store::open(directory.path(), &options(), 1).is_err());
    // A part without a position.
    let store = Store::open(directory.path(), &options(), 2).unwrap();
    let part = store.part(PartitionId(2));
    let mut batch = part.batch();
    batch.delete(keys::APPLIED);
    batch.write().unwrap();
    part.flush().unwrap();
    drop((part, store));
    match Store::open(directory.path(), &options(), 2) {
        Err(StoreError::Incomplete { partition, .. }) => assert_eq!(partition, PartitionId(2)),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was opened"),
    };
}

#[test]
fn what_an_earlier_attempt_left_is_completed_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(directory.path(), &options(), &founding(1, &[1])).unwrap();
    let advanced = Applied {
        lsn: 7,
        term: 2,
        voters: vec![1],
        learners: vec![9],
        ..Applied::default()
    };
    for (number, position) in [(0, None), (1, Some(advanced.encode_to_vec()))] {
        let part = store.part(PartitionId(number));
        let mut batch = part.batch();
        match position {
            Some(position) => batch.put(keys::APPLIED, position),
            None => batch.delete(keys::APPLIED),
        }
        batch.write().unwrap();
        part.flush().unwrap();
    }
    drop(store);
    // The first partition has no position, a third does not exist.
    let store = Store::create(directory.path(), &options(), &founding(2, &[1])).unwrap();
    let positions = [0, 1, 2].map(|number| store.part(PartitionId(number)).durable().unwrap());
    assert_eq!(
        positions.clone().map(|p| p.map(|p| p.lsn)),
        [Some(0), Some(7), Some(0)]
    );
    assert_eq!(positions[1], Some(advanced));
    drop(store);
    assert!(Store::open(directory.path(), &options(), 2).is_ok());
}

#[test]
fn a_flush_of_one_partition_says_nothing_about_another() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(directory.path(), &options(), &founding(2, &[1])).unwrap();
    let parts = [1, 2].map(|number| store.part(PartitionId(number)));
    for part in &parts {
        let applied = Applied {
            lsn: 5,
            ..Applied::default()
        };
        let mut batch = part.batch();
        batch.put(keys::APPLIED, applied.encode_to_vec());
        batch.write().unwrap();
    }
    parts[0].flush().unwrap();
    let durable = parts
        .clone()
        .map(|part| part.durable().unwrap().unwrap().lsn);
    let applied = parts.map(|part| part.applied().unwrap().unwrap().lsn);
    assert_eq!((applied, durable), ([5, 5], [5, 0]));
}

#[test]
fn errors_say_where_and_what() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(directory.path(), &options(), &founding(1, &[1])).unwrap();
    let part = store.part(PartitionId(1));
    let mut batch = part.batch();
    batch.put(keys::APPLIED, b"\xff\xff");
    batch.put(keys::COUNTERS, b"short");
    batch.write().unwrap();
    let position = part.applied().unwrap_err().to_string();
    let numbers = part
        .get_ids(keys::COUNTERS, "the numbers")
        .unwrap_err()
        .to_string();
    let path = directory.path().display().to_string();
    for (message, what) in [(position, "the position"), (numbers, "the numbers")] {
        assert!(message.contains(&path), "{message}");
        assert!(message.contains("partition 1"), "{message}");
        assert!(message.contains(what), "{message}");
    }
}

#[test]
fn what_the_operating_system_refuses_is_told_from_damage() {
    use ErrorKind::{Corruption, IOError, NotSupported};
    for (kind, message, refusal) in [
        (
            IOError,
            "IO error: While open a file for random read: /d/7.sst: Too many open files",
            true,
        ),
        (
            IOError,
            "IO error: No space left on device: While appending to file: /d/7.sst",
            true,
        ),
        (
            IOError,
            "IO error: No such file or directory: While open a file for random read: /d/7.sst",
            false,
        ),
        (
            Corruption,
            "Corruption: block checksum mismatch: stored = 1, computed = 2 in /d/7.sst",
            false,
        ),
        (
            Corruption,
            "Corruption: Can't access /7.sst: IO error: No such file or directory: while stat a file for size: /d/7.sst",
            false,
        ),
        (
            Corruption,
            "Corruption: Can't access /7.sst: IO error: while stat a file for size: /d/7.sst: Permission denied",
            true,
        ),
        (NotSupported, "Not implemented: a newer version", true),
    ] {
        assert_eq!(is_refusal(kind, message), refusal, "{message}");
    }
}
