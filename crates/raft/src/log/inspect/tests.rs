//! What the inspection promises, on logs that raft-engine itself has written.

mod atomic_groups;
mod random;

use std::path::PathBuf;

use super::fixture::*;
use super::*;

/// Enough for several files; the last one holds several groups.
const GROUPS: u64 = 40;

fn look(dir: &Path) -> Result<Inspection, InspectError> {
    inspect(dir, MAX_GROUP_BYTES)
}

fn assert_rot(dir: &Path, file: &str, offset: usize) {
    match look(dir) {
        Err(InspectError::Rot {
            path,
            offset: found,
            ..
        }) => {
            assert_eq!((path, found), (dir.join(file), offset as u64));
        }
        other => panic!("expected rot in {file} at {offset}, got {other:?}"),
    }
}

/// Inspects, expects one torn tail, cuts it, and expects a clean log of so many groups.
fn assert_torn(dir: &Path, file: &str, offset: usize, groups: u64) -> TornTail {
    let found = look(dir).expect("torn is not rot");
    let [torn] = &found.torn[..] else {
        panic!("expected one torn tail, got {:?}", found.torn)
    };
    assert_eq!((&torn.path, torn.offset), (&dir.join(file), offset as u64));
    found.cut().expect("the tail can be cut");
    assert_eq!(look(dir).expect("clean after the cut").torn, []);
    assert_eq!(groups_in(dir, GROUPS), groups);
    torn.clone()
}

#[test]
fn an_absent_or_empty_directory_holds_no_log() {
    let (_keep, dir) = scratch();
    for make in [false, true] {
        if make {
            std::fs::create_dir(&dir).unwrap();
            std::fs::write(dir.join("LOCK"), b"").unwrap();
        }
        let found = look(&dir).unwrap();
        assert_eq!((found.files, found.bytes, found.torn), (0, 0, vec![]));
    }
}

#[test]
fn an_untouched_log_is_clean_with_and_without_preallocated_space() {
    let (_keep, dir) = scratch();
    let (crashed, closed) = log_of(GROUPS);
    assert!(
        closed.append().len() >= 3,
        "the log of the tests spans several files"
    );
    assert!(
        crashed.0[crashed.last_append()].1.ends_with(&[0; 64]),
        "space is preallocated"
    );
    let bytes: usize = closed.0.iter().map(|(_, bytes)| bytes.len()).sum();
    for files in [crashed, closed] {
        files.write(&dir);
        let found = look(&dir).unwrap();
        assert_eq!((found.files, found.bytes), (files.0.len(), bytes as u64));
        assert_eq!((found.torn_bytes(), &found.torn[..]), (0, &[][..]));
        assert_eq!(Files::read(&dir).0, files.0, "looking changes nothing");
        found.cut().unwrap();
        assert_eq!(groups_in(&dir, GROUPS), GROUPS);
    }
}

#[test]
fn a_last_batch_cut_short_anywhere_is_torn_and_only_that_batch_is_lost() {
    let (_keep, dir) = scratch();
    let (crashed, closed) = log_of(GROUPS);
    let last = closed.last_append();
    let (start, len) = *closed.batches(last).last().unwrap();
    for end in start + 1..start + len {
        let preallocated = end % 2 == 0;
        let mut files = if preallocated {
            crashed.clone()
        } else {
            closed.clone()
        };
        let (name, bytes) = (&crashed.0[last].0, &mut files.0[last].1);
        if preallocated {
            bytes[end..].fill(0)
        } else {
            bytes.truncate(end)
        }
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        files.write(&dir);
        if used <= start {
            // Only the leading zeros of its length are there: the same as not at all.
            assert_eq!(look(&dir).unwrap().torn, []);
        } else if end % 128 == 0 || end < start + 20 {
            let torn = assert_torn(&dir, name, start, GROUPS - 1);
            assert_eq!(torn.bytes, (used - start) as u64);
            assert_eq!(torn.queue, Queue::Append);
        } else {
            assert_eq!(look(&dir).unwrap().torn_bytes(), (used - start) as u64);
        }
    }
}

#[test]
fn a_last_batch_with_any_page_missing_is_torn() {
    let (_keep, dir) = scratch();
    // Group 40 is the first of the large ones after 33: it spans several pages.
    let (crashed, _) = log_of(GROUPS + 1);
    let last = crashed.last_append();
    let (start, len) = *crashed.batches(last).last().unwrap();
    assert!(len > 3 * 4096, "the last batch of this test is large");
    for page in start / 4096..=(start + len - 1) / 4096 {
        let mut files = crashed.clone();
        let (name, bytes) = (&crashed.0[last].0, &mut files.0[last].1);
        let (from, to) = (
            (page * 4096).max(start),
            ((page + 1) * 4096).min(start + len),
        );
        bytes[from..to].fill(0);
        files.write(&dir);
        assert_torn(&dir, name, start, GROUPS);
    }
}

#[test]
fn a_flipped_bit_in_an_acknowledged_batch_is_rot_there() {
    let (_keep, dir) = scratch();
    let (crashed, closed) = log_of(GROUPS);
    for original in [crashed, closed] {
        let last = original.last_append();
        for i in original.append() {
            let batches = original.batches(i);
            // In the last file, the last batch may be torn; everywhere else nothing may.
            let acknowledged = batches.len() - usize::from(i == last);
            for (start, len) in &batches[..acknowledged] {
                // Length, compression, footer's offset, entries (if any), items, checksum.
                for at in [5, 7, 15, 16, len / 2, len - 1] {
                    let mut files = original.clone();
                    files.0[i].1[start + at] ^= 1;
                    files.write(&dir);
                    assert_rot(&dir, &files.0[i].0, *start);
                }
            }
        }
    }
}

/// Not even its checksums protect all of it.
#[test]
fn a_flipped_bit_anywhere_in_a_header_is_rot() {
    let (_keep, dir) = scratch();
    let (_, closed) = log_of(GROUPS);
    // Without entries, with plain ones, with compressed ones.
    for group in [3, 4, 5] {
        let (start, _) = closed.batches(0)[group];
        for bit in 0..16 * 8 {
            let mut files = closed.clone();
            files.0[0].1[start + bit / 8] ^= 1 << (bit % 8);
            files.write(&dir);
            assert_rot(&dir, &files.0[0].0, start);
        }
    }
}

#[test]
fn a_damaged_header_of_a_file_in_use_is_rot() {
    let (_keep, dir) = scratch();
    let (crashed, _) = log_of(GROUPS);
    for i in crashed.append() {
        for at in [0, 30, 60, 68] {
            let mut files = crashed.clone();
            files.0[i].1[at] ^= 1;
            files.write(&dir);
            assert_rot(&dir, &files.0[i].0, 0);
        }
        let mut files = crashed.clone();
        files.0[i].1.fill(0);
        files.write(&dir);
        assert_rot(&dir, &files.0[i].0, 0);
    }
}

#[test]
fn a_file_that_was_rotated_away_may_end_with_a_batch_only() {
    let (_keep, dir) = scratch();
    let (_, closed) = log_of(GROUPS);
    let end = closed.0[0].1.len();
    let (start, _) = *closed.batches(0).last().unwrap();
    let mut shorter = closed.clone();
    shorter.0[0].1.truncate(end - 1);
    shorter.write(&dir);
    assert_rot(&dir, &closed.0[0].0, start);
    for tail in [[0u8; 100], [7; 100]] {
        let mut longer = closed.clone();
        longer.0[0].1.extend(tail);
        longer.write(&dir);
        assert_rot(&dir, &closed.0[0].0, end);
    }
}

#[test]
fn garbage_longer_than_a_write_group_is_rot() {
    let (_keep, dir) = scratch();
    let (_, closed) = log_of(GROUPS);
    let last = closed.last_append();
    let end = closed.0[last].1.len();
    for (bytes, rotten) in [(MAX_GROUP_BYTES, false), (MAX_GROUP_BYTES + 1, true)] {
        let mut files = closed.clone();
        files.0[last].1.extend(vec![0xa5; bytes as usize]);
        files.write(&dir);
        if rotten {
            assert_rot(&dir, &files.0[last].0, end);
        } else {
            assert_eq!(
                assert_torn(&dir, &files.0[last].0, end, GROUPS).bytes,
                bytes
            );
        }
    }
}

#[test]
fn anything_behind_a_complete_last_batch_with_broken_entries_is_rot() {
    let (_keep, dir) = scratch();
    let (crashed, _) = log_of(GROUPS + 1);
    let last = crashed.last_append();
    let (start, len) = *crashed.batches(last).last().unwrap();
    let mut files = crashed.clone();
    files.0[last].1[start + 16] ^= 1;
    files.write(&dir);
    assert_torn(&dir, &files.0[last].0, start, GROUPS);
    files.0[last].1.resize(start + len + 10, 0);
    files.0[last].1[start + len + 5] = 1;
    files.write(&dir);
    assert_rot(&dir, &files.0[last].0, start);
}

#[test]
fn a_broken_batch_before_a_torn_one_is_rot() {
    let (_keep, dir) = scratch();
    let (crashed, _) = log_of(GROUPS + 1);
    let last = crashed.last_append();
    let [.., (before, _), (start, len)] = crashed.batches(last)[..] else {
        panic!("two batches")
    };
    let mut files = crashed.clone();
    files.0[last].1[before + 5] ^= 1;
    // The page with the last batch's entries never arrived; its header and footer did.
    files.0[last].1[start + 100..start + len / 2].fill(0);
    files.write(&dir);
    assert_rot(&dir, &files.0[last].0, before);
}

#[test]
fn a_stub_left_by_a_rotation_is_removed_and_the_file_before_it_goes_on() {
    let (_keep, dir) = scratch();
    let (crashed, closed) = log_of(GROUPS);
    let last = closed.last_append();
    let header = closed.0[last].1[..69].to_vec();
    let name = format!("{:016}.raftlog", closed.append().len() + 1);
    let mut stubs: Vec<Vec<u8>> = [0, 1, 53, 68].map(|len| header[..len].to_vec()).into();
    stubs.push(vec![0; 69]);
    stubs.push(header.iter().map(|byte| byte ^ 4).collect());
    for stub in stubs {
        let mut files = closed.clone();
        files.0.push((name.clone(), stub.clone()));
        files.write(&dir);
        let torn = assert_torn(&dir, &name, 0, GROUPS);
        assert_eq!(
            torn.bytes,
            stub.iter()
                .rposition(|b| *b != 0)
                .map_or(0, |i| i as u64 + 1)
        );
        assert!(!dir.join(&name).exists());
        append(&open(&dir), GROUPS..GROUPS + 20);
        assert_eq!(look(&dir).unwrap().torn, []);
        assert_eq!(groups_in(&dir, GROUPS + 20), GROUPS + 20);

        // The disk was full when the stub was made; the file before it stayed in use until the
        // power went: it has preallocated space, and a torn tail.
        let mut files = crashed.clone();
        let (start, len) = *crashed.batches(last).last().unwrap();
        files.0[last].1[start + len - 1] ^= 1;
        files.0.push((name.clone(), stub));
        files.write(&dir);
        let found = look(&dir).unwrap();
        let offsets: Vec<u64> = found.torn.iter().map(|torn| torn.offset).collect();
        assert_eq!(offsets, [0, start as u64]);
        found.cut().unwrap();
        assert_eq!(groups_in(&dir, GROUPS), GROUPS - 1);
    }
}

#[test]
fn a_log_whose_first_file_was_never_finished_is_no_log() {
    let (_keep, dir) = scratch();
    std::fs::create_dir(&dir).unwrap();
    let file = dir.join(format!("{:016}.raftlog", 1));
    std::fs::write(&file, b"RAFT-LOG").unwrap();
    let found = look(&dir).unwrap();
    assert_eq!((found.files, found.bytes, found.torn_bytes()), (0, 0, 8));
    found.cut().unwrap();
    assert_eq!(groups_in(&dir, 1), 0);
    assert_eq!(
        look(&dir).unwrap().files,
        2,
        "raft-engine has begun both queues"
    );
}

#[test]
fn a_missing_file_is_named() {
    let (_keep, dir) = scratch();
    let (_, closed) = log_of(GROUPS);
    let missing = |expected: PathBuf| match look(&dir) {
        Err(InspectError::MissingFile { path, .. }) => assert_eq!(path, expected),
        other => panic!(
            "expected {} to be missing, got {other:?}",
            expected.display()
        ),
    };
    for seq in 2..closed.append().len() {
        closed.write(&dir);
        let path = dir.join(format!("{seq:016}.raftlog"));
        std::fs::remove_file(&path).unwrap();
        missing(path);
    }
    // A stub whose predecessors are all gone.
    let mut files = closed.clone();
    files.0.retain(|(name, _)| name.ends_with(".rewrite"));
    files.0.push((format!("{:016}.raftlog", 7), Vec::new()));
    files.write(&dir);
    missing(dir.join(format!("{:016}.raftlog", 6)));
    // The whole append queue.
    files.0.pop();
    files.write(&dir);
    missing(dir.join("*.raftlog"));
}

#[test]
fn purged_files_are_not_missing() {
    let (_keep, dir) = scratch();
    let (_, closed) = log_of(GROUPS);
    closed.write(&dir);
    let engine = open(&dir);
    engine.purge_manager().must_rewrite_append_queue(None, None);
    drop(engine);
    let found = look(&dir).unwrap();
    assert_eq!(
        (found.files, found.torn),
        (2, vec![]),
        "one file of each queue is left"
    );
    assert_eq!(groups_in(&dir, GROUPS), GROUPS);
}

#[test]
fn names_that_mislead_raft_engine_are_refused_and_others_ignored() {
    use std::os::unix::ffi::OsStrExt;
    let (_keep, dir) = scratch();
    let (_, closed) = log_of(GROUPS);
    let ignored = [
        "LOCK",
        "notes.txt",
        "0000000000000001.raftlog.reserved",
        "1.raftlog",
        "x.raftlog",
    ];
    let refused: [&[u8]; 3] = [
        b"0000000000000009 (copy).raftlog",
        b"\xff\xfe",
        "000000000000000é.raftlog".as_bytes(),
    ];
    closed.write(&dir);
    for name in ignored {
        std::fs::write(dir.join(name), b"something else").unwrap();
    }
    std::fs::create_dir(dir.join("0000000000000042.raftlog")).unwrap();
    assert_eq!(look(&dir).unwrap().files, closed.0.len());
    for name in refused {
        let path = dir.join(std::ffi::OsStr::from_bytes(name));
        std::fs::write(&path, b"").unwrap();
        let found = look(&dir);
        assert!(
            matches!(&found, Err(InspectError::Foreign { path: p, .. }) if *p == path),
            "{found:?}"
        );
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_file_that_cannot_be_looked_at_is_neither_missing_nor_damaged() {
    let (_keep, dir) = scratch();
    let engine = open(&dir);
    append(&engine, 0..GROUPS);
    drop(engine);
    let file = names::list(&dir).unwrap().0.remove(0).path;
    std::fs::remove_file(&file).unwrap();
    for target in [file.clone(), dir.join("not mounted")] {
        std::os::unix::fs::symlink(target, &file).unwrap();
        let found = look(&dir);
        assert!(
            matches!(&found, Err(InspectError::Io { path, .. }) if *path == file),
            "{found:?}"
        );
        std::fs::remove_file(&file).unwrap();
    }
}

#[test]
fn an_older_copy_of_a_file_leaves_a_gap_that_is_named() {
    let (_keep, dir) = scratch();
    let engine = open(&dir);
    append(&engine, 0..GROUPS);
    drop(engine);
    look(&dir).unwrap().cut().unwrap();
    let newest = || names::list(&dir).unwrap().0.pop().unwrap().path;
    let file = newest();
    let old = std::fs::read(&file).unwrap();
    let engine = open(&dir);
    append(&engine, GROUPS..3 * GROUPS);
    drop(engine);
    assert!(newest() > file);
    assert_eq!(look(&dir).unwrap().torn, []);
    std::fs::write(&file, old).unwrap();
    let found = look(&dir);
    let Err(InspectError::Gap {
        path, after, next, ..
    }) = &found
    else {
        panic!("expected a gap, got {found:?}");
    };
    assert!(*path > file && *next > after + 1, "{found:?}");
}

/// A log that purge has copied to the rewrite queue: several batches in one file. The originals
/// are still there, as after a crash in the middle of a purge.
fn rewritten() -> Files {
    let (_keep, dir) = scratch();
    let mut config = config(&dir);
    config.target_file_size = raft_engine::ReadableSize::mb(1);
    config.purge_threshold = raft_engine::ReadableSize::mb(1);
    let engine = raft_engine::Engine::open(config).unwrap();
    append(&engine, 0..3 * GROUPS);
    engine
        .purge_manager()
        .must_rewrite_append_queue(None, Some(2));
    drop(engine);
    Files::read(&dir)
}

#[test]
fn the_rewrite_queue_is_torn_in_its_last_batch_and_rotten_before() {
    let (_keep, dir) = scratch();
    let files = rewritten();
    let i = files
        .0
        .iter()
        .position(|(name, _)| name.ends_with(".rewrite"))
        .unwrap();
    let (name, _) = &files.0[i];
    let batches = files.batches(i);
    assert!(
        batches.len() >= 3,
        "purge has written several batches: {batches:?}"
    );
    for (n, (start, len)) in batches.iter().enumerate() {
        let mut damaged = files.clone();
        damaged.0[i].1[start + len / 2] ^= 1;
        damaged.write(&dir);
        if n + 1 < batches.len() {
            assert_rot(&dir, name, *start);
            continue;
        }
        let found = look(&dir).unwrap();
        let [torn] = &found.torn[..] else {
            panic!("expected one torn tail: {found:?}")
        };
        assert_eq!((torn.queue, torn.offset), (Queue::Rewrite, *start as u64));
        found.cut().unwrap();
        assert_eq!(
            groups_in(&dir, 3 * GROUPS),
            3 * GROUPS,
            "the originals are still there"
        );
    }
}
