use std::io::Read as _;

use bytes::Bytes;

use super::reader::MAX_ENTRY;
use super::*;

fn entry() -> StateEntry {
    StateEntry {
        version: 1,
        commit_ts: 1,
        forks: 0,
        value: Some(Bytes::from_static(b"{\"a\":1}")),
        first: true,
    }
}

fn try_write(files: &Files, commit_ts: u64) -> io::Result<Written> {
    let header = Header {
        created_at: 1,
        commit_ts,
        lineage: String::new(),
        lsn: 0,
        forks: 0,
        commit_forks: None,
        log_tail: None,
    };
    files.write(header, |to| {
        to.entry(&StateKey::new("n", "a", "k"), &entry(), false)
    })
}

fn write(files: &Files, commit_ts: u64) -> Written {
    try_write(files, commit_ts).unwrap()
}

fn files() -> (tempfile::TempDir, Files) {
    let dir = tempfile::tempdir().unwrap();
    let files = Files::open(dir.path().join("snapshots")).unwrap();
    (dir, files)
}

fn commits(files: &Files) -> Vec<u64> {
    let found = files.list().unwrap();
    found.into_iter().map(|one| one.commit_ts).collect()
}

#[test]
fn a_snapshot_that_was_changed_is_never_used() {
    let (_dir, files) = files();
    let written = write(&files, 7);
    assert_eq!(files.check(7).unwrap(), (written.clone(), true));
    let path = files.path(7);
    let whole = fs::read(&path).unwrap();
    assert_eq!(whole.len() as u64, written.bytes);
    // Each of them reads as a snapshot, but for its end.
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        fs::write(&path, &changed).unwrap();
        assert!(files.check(7).is_err(), "byte {at}");
        fs::write(&path, &whole[..at]).unwrap();
        assert!(files.check(7).is_err(), "cut at {at}");
    }
    fs::write(&path, &whole).unwrap();
    assert!(files.check(7).is_ok());
}

#[test]
fn a_snapshot_without_a_checksum_is_read_strictly_and_one_of_another_name_is_refused() {
    let (_dir, files) = files();
    let written = write(&files, 7);
    fs::remove_file(files.sum_path(7)).unwrap();
    assert_eq!(files.check(7).unwrap(), (written, false));
    fs::rename(files.path(7), files.path(8)).unwrap();
    let why = files.check(8).unwrap_err();
    assert_eq!(
        why.to_string(),
        "it is of commit_ts 7, not of that in its name"
    );
}

#[test]
fn the_newest_are_kept_with_their_checksums_and_nothing_of_others_is_touched() {
    let (_dir, files) = files();
    for commit_ts in [9, 10, 200, 30] {
        write(&files, commit_ts);
    }
    for other in ["snapshot-007.json", "notes.txt", "snapshot-x.json"] {
        fs::write(files.dir().join(other), "mine").unwrap();
    }
    assert_eq!(files.remove(&[10, 9, 8]).unwrap(), [10, 9]);
    assert_eq!(commits(&files), [200, 30]);
    assert_eq!(fs::read_dir(files.sums()).unwrap().count(), 2);
    assert!(files.dir().join("snapshot-007.json").exists());
    // A snapshot that was removed by hand is no error, and its checksum is removed.
    fs::remove_file(files.path(200)).unwrap();
    let again = Files::open(files.dir().to_owned()).unwrap();
    assert_eq!(commits(&again), [30]);
    assert_eq!(fs::read_dir(files.sums()).unwrap().count(), 1);
}

#[test]
fn the_last_room_on_the_disk_is_left_to_the_log() {
    let (_dir, mut files) = files();
    files.leave_free = u64::MAX;
    let refused = try_write(&files, 3).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
    assert_eq!(fs::read_dir(&files.dir).unwrap().count(), 1, "only .sums");
    files.leave_free = LEAVE_FREE;
    write(&files, 3);
    assert_eq!(commits(&files), [3]);
}

#[test]
fn one_that_is_taken_over_replaces_a_damaged_one_with_or_without_a_checksum() {
    let ((_here, files), (_there, from)) = (self::files(), self::files());
    for has_sum in [true, false] {
        write(&files, 5);
        fs::write(files.path(5), "{}").unwrap();
        assert!(files.check(5).is_err());
        let whole = write(&from, 5);
        if !has_sum {
            // The checksum is of other bytes than the snapshot that is adopted.
            fs::write(files.sum_path(5), format!("{:032x}", 1)).unwrap();
            fs::remove_file(from.sum_path(5)).unwrap();
        }
        files.adopt(&from, 5).unwrap();
        assert_eq!(files.check(5).unwrap(), (whole, has_sum));
        assert_eq!(commits(&from), [0; 0]);
    }
}

#[test]
fn one_that_is_half_taken_over_is_never_used() {
    let ((_here, files), (_there, from)) = (self::files(), self::files());
    // It reads as a snapshot, and is not what was written.
    write(&files, 5);
    let text = fs::read_to_string(files.path(5)).unwrap();
    fs::write(files.path(5), text.replace("{\"a\":1}", "{\"a\":2}")).unwrap();
    write(&from, 5);
    for has_sum in [true, false] {
        if !has_sum {
            fs::remove_file(from.sum_path(5)).unwrap();
        }
        // The step after that of the checksum fails.
        let away = from.dir.join("away");
        fs::rename(from.path(5), &away).unwrap();
        assert!(files.adopt(&from, 5).is_err());
        assert!(files.check(5).is_err(), "with a checksum: {has_sum}");
        fs::rename(&away, from.path(5)).unwrap();
        write(&from, 5);
    }
}

#[test]
fn no_file_makes_memory_grow() {
    let head = r#"{"version":1,"created_at":1,"commit_ts":1,"lineage":"","state":{"#;
    let endless = [
        ("\"", b'x'),
        ("", b' '),
        ("\"n:a:k\": {\"value\": {\"v\": \"", b'x'),
    ];
    for (begin, byte) in endless {
        let from = head.as_bytes().chain(begin.as_bytes());
        let why = read(from.chain(io::repeat(byte)), |_| Ok(())).unwrap_err();
        assert!(matches!(&why, FileError::Damaged(_)), "{why}");
        assert!(why.to_string().contains("without an entry"), "{why}");
    }
    // The size is not bounded, as long as the content is entries.
    let mut text = head.as_bytes().to_vec();
    for n in 0..40 {
        document::write_entry(
            &mut text,
            n == 0,
            &StateKey::new("n", "a", format!("{n}")),
            &StateEntry {
                value: Some(format!("{{\"v\":\"{}\"}}", "x".repeat(1 << 19)).into()),
                ..entry()
            },
            false,
        )
        .unwrap();
    }
    document::write_end(&mut text).unwrap();
    assert!(text.len() as u64 > MAX_ENTRY);
    assert_eq!(read(&text[..], |_| Ok(())).unwrap().keys, 40);
}

#[test]
fn what_was_not_finished_is_removed() {
    let (_dir, files) = files();
    fs::write(files.dir().join(".tmp-5"), "half").unwrap();
    let again = Files::open(files.dir().to_owned()).unwrap();
    assert!(!files.dir().join(".tmp-5").exists());
    assert_eq!(commits(&again), Vec::<u64>::new());
    let failed = files.write::<io::Error>(
        Header {
            created_at: 1,
            commit_ts: 5,
            lineage: String::new(),
            lsn: 0,
            forks: 0,
            commit_forks: None,
            log_tail: None,
        },
        |_| Err(io::Error::other("no")),
    );
    assert!(failed.is_err());
    assert!(!files.dir().join(".tmp-5").exists());
}
