//! The promises of the node's database as a whole.

use std::fs;

use prost::Message as _;
use rust_rocksdb::ErrorKind;

use super::error::is_refusal;
use super::*;
use crate::ids::BasinId;
use crate::keys;
use crate::streams::name_index::name_entry;

fn options() -> StoreOptions {
    StoreOptions {
        block_cache: 1024 * 1024,
        write_buffer: 1024 * 1024,
        write_buffers_total: 4 * 1024 * 1024,
        max_open_files: 32,
        background_jobs: 1,
        checkpoints: None,
        damage: DamageReport::default(),
    }
}

fn cluster_init(partitions: u32, voters: &[u64]) -> ClusterInit {
    ClusterInit {
        partitions,
        voters: voters.to_vec(),
        cluster_id: "a cluster".to_owned(),
    }
}

#[test]
fn a_new_database_is_at_lsn_0_durably_with_its_members() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(directory.path(), &options(), &cluster_init(3, &[4, 5])).unwrap();
    for number in 0..=3 {
        let part = store.partition_db(PartitionId(number));
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
    drop(Store::create(directory.path(), &options(), &cluster_init(2, &[1])).unwrap());
    // More partitions than it has, and fewer.
    assert!(Store::open(directory.path(), &options(), 3).is_err());
    assert!(Store::open(directory.path(), &options(), 1).is_err());
    // A partition without a position.
    let store = Store::open(directory.path(), &options(), 2).unwrap();
    let part = store.partition_db(PartitionId(2));
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
    let store = Store::create(directory.path(), &options(), &cluster_init(1, &[1])).unwrap();
    let advanced = Applied {
        lsn: 7,
        term: 2,
        voters: vec![1],
        learners: vec![9],
        ..Applied::default()
    };
    for (number, position) in [(0, None), (1, Some(advanced.encode_to_vec()))] {
        let part = store.partition_db(PartitionId(number));
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
    let store = Store::create(directory.path(), &options(), &cluster_init(2, &[1])).unwrap();
    let positions =
        [0, 1, 2].map(|number| store.partition_db(PartitionId(number)).durable().unwrap());
    assert_eq!(
        positions.clone().map(|p| p.map(|p| p.lsn)),
        [Some(0), Some(7), Some(0)]
    );
    assert_eq!(positions[1], Some(advanced));
    drop(store);
    assert!(Store::open(directory.path(), &options(), 2).is_ok());
}

#[test]
fn partitions_that_are_only_prepared_are_absent_and_a_creation_completes_them() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open_any(directory.path(), &options()).unwrap();
    store.prepare_partitions((0..=2).map(PartitionId)).unwrap();
    assert!(store.applied(PartitionId(1)).unwrap().is_none());
    drop(store);
    assert!(Store::open(directory.path(), &options(), 2).is_err());
    drop(Store::create(directory.path(), &options(), &cluster_init(2, &[1])).unwrap());
    assert!(Store::open(directory.path(), &options(), 2).is_ok());
}

#[test]
fn the_options_of_all_partitions_are_not_written_anew_for_each_that_is_created() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open_any(directory.path(), &options()).unwrap();
    // RocksDB numbers its files, and takes a new number each time that it writes the options.
    let newest = || {
        let files = fs::read_dir(directory.path()).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        let numbers = names.filter_map(|name| name.strip_prefix("OPTIONS-")?.parse::<u64>().ok());
        numbers.max().unwrap()
    };
    let before = newest();
    store.prepare_partitions((0..100).map(PartitionId)).unwrap();
    assert!(newest() - before < 20, "{before}, then {}", newest());
}

#[test]
fn a_flush_of_one_partition_says_nothing_about_another() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(directory.path(), &options(), &cluster_init(2, &[1])).unwrap();
    let parts = [1, 2].map(|number| store.partition_db(PartitionId(number)));
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
    let store = Store::create(directory.path(), &options(), &cluster_init(1, &[1])).unwrap();
    let part = store.partition_db(PartitionId(1));
    let mut batch = part.batch();
    batch.put(keys::APPLIED, b"\xff\xff");
    batch.put(keys::stream_name(BasinId(1), "s"), b"short");
    batch.write().unwrap();
    let position = part.applied().unwrap_err().to_string();
    let name = name_entry(&part, BasinId(1), "s").unwrap_err().to_string();
    let path = directory.path().display().to_string();
    for (message, what) in [(position, "the position"), (name, "the index of names")] {
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
        // Another handle has the database open, or has just removed an old text log.
        (
            IOError,
            "IO error: lock hold by current process, acquire time 1 acquiring thread 2: /d/LOCK: No locks available",
            true,
        ),
        (
            IOError,
            "IO error: No such file or directory: while unlink() file: /d/LOG.old.176: No such file or directory",
            true,
        ),
        (
            IOError,
            "IO error: No such file or directory: While open a file for sequential reading: /LOG/000012.log",
            false,
        ),
    ] {
        assert_eq!(is_refusal(kind, message), refusal, "{message}");
    }
}

fn tables(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let mut tables: Vec<_> = entries
        .filter(|path| path.extension().is_some_and(|e| e == "sst"))
        .collect();
    tables.sort();
    tables
}

/// Two stream partitions with some keys each, in files of their own.
fn two_partitions(dir: &Path) -> Store {
    let store = Store::create(dir, &options(), &cluster_init(2, &[7])).unwrap();
    for number in 1..=2 {
        let part = store.partition_db(PartitionId(number));
        let mut batch = part.batch();
        for key in 0..500u32 {
            batch.put(format!("z{key:05}"), [number as u8; 100]);
        }
        batch.write().unwrap();
        part.flush().unwrap();
    }
    store
}

fn flip_middle(path: &Path) {
    let mut content = std::fs::read(path).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 0x10;
    std::fs::write(path, content).unwrap();
}

/// The largest file of a partition.
fn table_of(store: &Store, dir: &Path, partition: u64) -> PathBuf {
    let files = store.db.live_files().unwrap().into_iter();
    let own = files.filter(|f| f.column_family_name == format!("partition-{partition}"));
    let largest = own.max_by_key(|file| file.size).unwrap();
    dir.join(largest.name.trim_start_matches('/'))
}

#[test]
fn what_is_gone_or_cut_of_a_partition_is_its_damage_and_the_others_can_be_read() {
    for cut in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let store = two_partitions(dir.path());
        let table = table_of(&store, dir.path(), 2);
        store.close();
        drop(store);
        match cut {
            true => {
                let content = std::fs::read(&table).unwrap();
                std::fs::write(&table, &content[..content.len() / 2]).unwrap();
            }
            false => std::fs::remove_file(&table).unwrap(),
        }
        let options = options();
        let why = Store::open_any(dir.path(), &options).err().unwrap();
        assert!(!why.is_unreadable(), "{why}");
        let store = Store::open_damaged(dir.path(), &options, why).unwrap();
        assert_eq!(options.damage.of(PartitionId(1)), None);
        assert!(options.damage.of(PartitionId(2)).is_some(), "cut: {cut}");
        let healthy = store
            .partition_db(PartitionId(1))
            .get_bytes("z00499", "a key");
        assert!(healthy.unwrap().is_some());
        store.drop_partition(PartitionId(2)).unwrap();
        store.close();
        drop(store);
        let store = Store::open_any(dir.path(), &options).unwrap();
        assert!(store.has(PartitionId(1)) && !store.has(PartitionId(2)));
        assert!(options.damage.is_empty());
    }
}

#[test]
fn what_a_merge_meets_is_the_damage_of_the_partition_whose_file_it_is_and_the_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let options = options();
    let store = Store::create(dir.path(), &options, &cluster_init(2, &[7])).unwrap();
    drop(store);
    let store = two_partitions(dir.path());
    let table = table_of(&store, dir.path(), 2);
    store.close();
    drop(store);
    flip_middle(&table);
    let store = Store::open_any(dir.path(), &options).unwrap();
    let failed = store.partition_db(PartitionId(2)).compact().unwrap_err();
    assert!(failed.to_string().contains("checksum mismatch"), "{failed}");
    // The damaged partition accepts appends, too, until it is recovered.
    for (partition, round) in [(1, 0), (2, 0), (1, 1), (2, 1)] {
        let writer = store.partition_db(PartitionId(partition));
        let mut batch = writer.batch();
        batch.put("a", [round]);
        batch.write().unwrap();
        writer.flush().unwrap();
        assert_eq!(writer.get_bytes("a", "a key").unwrap(), Some(vec![round]));
    }
    assert_eq!(store.damage(PartitionId(1)), None);
    let found = store.damage(PartitionId(2)).unwrap();
    assert!(found.contains("checksum mismatch"), "{found}");
    assert_eq!(store.fatal(), None);
    // The damage is known while the database is open, even after other compactions have succeeded.
    store.partition_db(PartitionId(1)).compact().unwrap();
    store.partition_db(PartitionId(2)).stop_merging().unwrap();
    assert_eq!(store.damage(PartitionId(2)), Some(found));
    store.close();
}

#[test]
fn a_block_that_was_damaged_before_the_checkpoint_is_found_when_its_blocks_are_verified() {
    let dir = tempfile::tempdir().unwrap();
    let (db, scratch) = (dir.path().join("db"), dir.path().join("scratch"));
    let store = two_partitions(&db);
    let sound = store
        .partition_db(PartitionId(2))
        .begin_checkpoint()
        .take()
        .unwrap();
    sound.verify_blocks(&scratch).unwrap();
    flip_middle(&table_of(&store, &db, 1));
    let damaged = store
        .partition_db(PartitionId(1))
        .begin_checkpoint()
        .take()
        .unwrap();
    damaged.verify().unwrap();
    let error = damaged.verify_blocks(&scratch).unwrap_err();
    assert!(!error.is_unreadable(), "{error}");
    assert!(!scratch.exists());
    assert!(tables(&db).len() > 2);
}

#[test]
fn a_checkpoint_whose_description_names_no_level_is_refused_before_the_database_sees_it() {
    for level in [-1, 7, i32::MAX] {
        let dir = tempfile::tempdir().unwrap();
        let store = two_partitions(&dir.path().join("db"));
        let part = store.partition_db(PartitionId(2));
        let taken = part.begin_checkpoint().take().unwrap();
        let description = taken.dir.join("checkpoint.json");
        let text = std::fs::read_to_string(&description).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["files"][0]["level"] = level.into();
        std::fs::write(&description, json.to_string()).unwrap();
        let altered = crate::Checkpoint::open(&taken.dir).unwrap();
        store.drop_partition(PartitionId(2)).unwrap();
        let error = store.import(PartitionId(2), &altered).unwrap_err();
        assert!(error.to_string().contains("there is no level"), "{error}");
        assert!(!error.is_unreadable());
    }
}

#[test]
fn positions_that_cannot_have_moved_are_not_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(directory.path(), &options(), &cluster_init(1, &[1])).unwrap();
    let part = store.partition_db(PartitionId(1));
    let apply = |lsn| {
        let mut batch = part.batch();
        let applied = Applied {
            lsn,
            ..Applied::default()
        };
        batch.put(keys::APPLIED, applied.encode_to_vec());
        batch.write().unwrap();
    };
    let applied = |lsn| part.applied_as_of(lsn).unwrap().unwrap().lsn;
    let durable = |lsn| part.durable_as_of(lsn).unwrap().unwrap().lsn;
    let reads = |of: &dyn Fn() -> u64| {
        let before = part.position_reads();
        (of(), part.position_reads() - before)
    };
    apply(5);
    assert_eq!(reads(&|| applied(5)), (5, 1));
    assert_eq!(reads(&|| applied(5)), (5, 0));
    // Nothing of it is durable yet, so that may change at any time.
    assert_eq!(reads(&|| durable(5)), (0, 1));
    assert_eq!(reads(&|| durable(5)), (0, 1));
    part.flush().unwrap();
    assert_eq!(reads(&|| durable(5)), (5, 1));
    assert_eq!(reads(&|| durable(5)), (5, 0));
    apply(6);
    assert_eq!(reads(&|| applied(6)), (6, 1));
    assert_eq!(reads(&|| durable(6)), (5, 1));
    part.flush().unwrap();
    assert_eq!(reads(&|| durable(6)), (6, 1));
    // Another handle of the same partition shares what was read.
    assert_eq!(part.clone().durable_as_of(6).unwrap().unwrap().lsn, 6);
    assert_eq!(reads(&|| durable(6)), (6, 0));
}
