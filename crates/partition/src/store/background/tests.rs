//! Flushes that the operating system refuses for a while: nothing is lost, and the database continues.

use std::path::{Path, PathBuf};

use super::*;
use crate::ids::PartitionId;
use crate::keys;
use crate::store::{Applied, ClusterInit, StoreOptions};

fn store(path: &Path) -> Store {
    let options = StoreOptions {
        write_buffer: 64 * 1024,
        write_buffers_total: 64 * 1024 * 1024,
        ..StoreOptions::for_inspection()
    };
    let init = ClusterInit {
        partitions: 1,
        voters: vec![1],
        cluster_id: "a cluster".to_owned(),
    };
    Store::create(path, &options, &init).unwrap()
}

fn write(part: &PartitionDb, lsn: u64, bytes: usize) -> Result<(), StoreError> {
    use prost::Message as _;
    let applied = Applied {
        lsn,
        term: 1,
        voters: vec![1],
        ..Applied::default()
    };
    let mut batch = part.batch();
    batch.put(keys::APPLIED, applied.encode_to_vec());
    batch.put(lsn.to_be_bytes(), vec![7; bytes]);
    batch.write()
}

fn lsn(applied: Result<Option<Applied>, StoreError>) -> u64 {
    applied.unwrap().unwrap().lsn
}

/// While this exists, the directory has another name, so no user can create a file at its path.
struct Away {
    path: PathBuf,
    aside: PathBuf,
}

impl Away {
    fn new(path: &Path) -> Away {
        let away = Away {
            path: path.to_owned(),
            aside: path.with_extension("aside"),
        };
        std::fs::rename(&away.path, &away.aside).unwrap();
        away
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        std::fs::rename(&self.aside, &self.path).unwrap();
    }
}

#[test]
fn a_flush_that_is_refused_once_costs_nothing_and_the_next_one_works() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("db");
    let store = store(&path);
    let part = store.partition_db(PartitionId(1));
    write(&part, 1, 100).unwrap();
    part.flush().unwrap();

    let away = Away::new(&path);
    write(&part, 2, 100).unwrap();
    for _ in 0..2 {
        let refused = part.flush().unwrap_err();
        assert!(refused.is_unreadable(), "{refused}");
        let refused = refused.to_string();
        assert!(refused.contains("No such file or directory"), "{refused}");
        assert!(
            store
                .write_failure()
                .is_some_and(|why| refused.contains(&why))
        );
    }
    // Other writes have a memtable.
    write(&part, 3, 100).unwrap();
    assert_eq!((lsn(part.durable()), lsn(part.applied())), (1, 3));

    drop(away);
    part.flush().unwrap();
    assert_eq!(lsn(part.durable()), 3);
    assert_eq!(store.write_failure(), None);
    assert_eq!(store.fatal(), None);
}

#[test]
fn writes_are_refused_with_the_cause_once_memtables_are_full_and_go_on_when_flushes_work() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("db");
    let store = store(&path);
    let part = store.partition_db(PartitionId(1));
    part.flush().unwrap();

    let away = Away::new(&path);
    let mut written = 0;
    let refused = loop {
        match write(&part, written + 1, 8 * 1024) {
            Ok(()) => written += 1,
            Err(refused) => break refused,
        }
        // The most memtables that there may be: 64 KiB each.
        assert!(written <= 8 * (MAX_UNFLUSHED + 2), "{written}");
    };
    let refused = refused.to_string();
    assert!(refused.contains("No such file or directory"), "{refused}");
    assert!(
        part.unflushed() <= MAX_UNFLUSHED + 1,
        "{}",
        part.unflushed()
    );

    drop(away);
    // The apply loop does this: it repeats the same write.
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Err(error) = write(&part, written + 1, 8 * 1024) {
        assert!(Instant::now() < deadline, "{error}");
        part.try_again().unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    part.flush().unwrap();
    assert_eq!(lsn(part.durable()), written + 1);
    assert_eq!(store.write_failure(), None);
}

#[test]
fn a_flush_is_waited_for_until_its_deadline_and_goes_on_by_itself() {
    let scratch = tempfile::tempdir().unwrap();
    let store = store(&scratch.path().join("db"));
    let part = store.partition_db(PartitionId(1));
    part.flush().unwrap();
    let held = store.background.hold.lock();
    write(&part, 1, 100).unwrap();
    let late = part.flush_until(Some(Instant::now())).unwrap_err();
    assert!(late.to_string().contains("not done in time"), "{late}");
    assert_eq!(lsn(part.durable()), 0);
    drop(held);
    part.flush().unwrap();
    assert_eq!(lsn(part.durable()), 1);
}

#[test]
fn one_who_waits_for_a_flush_that_is_given_up_is_answered() {
    let scratch = tempfile::tempdir().unwrap();
    let store = store(&scratch.path().join("db"));
    let part = store.partition_db(PartitionId(1));
    part.flush().unwrap();
    let held = store.background.hold.lock();
    write(&part, 1, 100).unwrap();
    let waiting = std::thread::spawn({
        let part = part.clone();
        move || part.flush()
    });
    store.give_up();
    let answer = waiting.join().unwrap().unwrap_err().to_string();
    assert!(answer.contains("being closed"), "{answer}");
    drop(held);
    store.close();
}

#[test]
fn a_flush_that_keeps_failing_is_tried_after_1_2_4_8_16_and_every_30_seconds() {
    let started = Instant::now();
    let mut backoff = Backoff::default();
    let mut tries = Vec::new();
    // The log keeper checks four times a second.
    for quarter in 0..4 * 200 {
        let now = started + Duration::from_millis(250 * quarter);
        if backoff.is_due(now) {
            tries.push(quarter / 4);
            backoff.failed(now);
        }
    }
    assert_eq!(tries, [0, 1, 3, 7, 15, 31, 61, 91, 121, 151, 181]);
    backoff.succeeded();
    assert!(backoff.is_due(started));
    assert_eq!(backoff.failed(started), FIRST_RETRY);
}

/// A database that keeps few files open, so that a compaction opens what it merges.
fn store_with_few_open_files(path: &Path) -> Store {
    let options = StoreOptions {
        max_open_files: 20,
        ..StoreOptions::for_inspection()
    };
    let init = ClusterInit {
        partitions: 2,
        voters: vec![1],
        cluster_id: "a cluster".to_owned(),
    };
    Store::create(path, &options, &init).unwrap()
}

/// The oldest file of a partition.
fn oldest_table(part: &PartitionDb) -> PathBuf {
    let files = part.store.db.live_files().unwrap();
    let name = super::super::cf_name(part.partition);
    let own = files.into_iter().filter(|f| *f.column_family_name == *name);
    let names = own.map(|file| file.name.trim_start_matches('/').to_owned());
    part.store.path.join(names.min().unwrap())
}

/// Adds `files` files at level 0.
fn add_files(part: &PartitionDb, lsn: &mut u64, files: u64) {
    for _ in 0..files {
        *lsn += 1;
        write(part, *lsn, 100).unwrap();
        part.flush().unwrap();
    }
}

/// Waits for something that RocksDB does by itself.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn while_compactions_go_on_failing_writes_are_refused_with_the_cause_before_rocksdb_lets_them_wait()
{
    let scratch = tempfile::tempdir().unwrap();
    let store = store_with_few_open_files(&scratch.path().join("db"));
    let (part, other) = (
        store.partition_db(PartitionId(1)),
        store.partition_db(PartitionId(2)),
    );
    let mut last = 0;
    // Fewer files than trigger a compaction, but so many that the oldest is no longer open.
    add_files(&part, &mut last, 20);
    let table = oldest_table(&part);
    let aside = table.with_extension("aside");
    std::fs::rename(&table, &aside).unwrap();
    // The operating system refuses to open it, because the link refers to itself.
    std::os::unix::fs::symlink(&table, &table).unwrap();

    let refused = loop {
        last += 1;
        match write(&part, last, 100) {
            Ok(()) => part.flush().unwrap(),
            Err(refused) => break refused,
        }
        // Flushes of a test are so small that there can be very many before the first compaction has failed. One of
        // newer files may end well in between, and then some more are written.
        let files = part.level0_files();
        if files >= MAX_LEVEL0_FILES / 2 {
            eventually("a compaction has failed", || {
                store.background.failed_compactions() > 0
            });
        }
        assert!(files < LEVEL0_STOP as u64, "{files} files, and no refusal");
    };
    assert!(part.level0_files() >= MAX_LEVEL0_FILES);
    let refused = refused.to_string();
    assert!(refused.contains("symbolic links"), "{refused}");
    let mut failure = None;
    eventually("the failure is known", || {
        failure = store.write_failure();
        failure.is_some()
    });
    let failure = failure.unwrap();
    assert!(failure.contains("symbolic links"), "{failure}");
    // Writes to other partitions do not wait, and nothing is damaged.
    write(&other, 1, 100).unwrap();
    assert_eq!(store.damage(PartitionId(1)), None);
    assert_eq!(store.fatal(), None);

    std::fs::rename(&aside, &table).unwrap();
    eventually("writes are taken again", || write(&part, last, 100).is_ok());
    eventually("files are merged", || part.level0_files() < 32);
    assert_eq!(lsn(part.applied()), last);
}

#[test]
fn a_missing_table_that_a_compaction_meets_is_damage_of_its_partition_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let store = store_with_few_open_files(&scratch.path().join("db"));
    let (part, other) = (
        store.partition_db(PartitionId(1)),
        store.partition_db(PartitionId(2)),
    );
    let mut last = 0;
    add_files(&part, &mut last, 20);
    let table = oldest_table(&part);
    std::fs::remove_file(&table).unwrap();
    assert_eq!(store.damage(PartitionId(1)), None, "nobody has looked yet");
    add_files(&part, &mut last, 20);
    eventually("a compaction has met it", || {
        store.background.failed_compactions() > 0
    });
    let name = table.file_name().unwrap().to_str().unwrap();
    let damage = store.damage(PartitionId(1)).expect("it is damage");
    assert!(damage.contains(name), "{damage}");
    write(&other, 1, 100).unwrap();
    assert_eq!(store.damage(PartitionId(2)), None);
}
