//! Atomic groups that no log has, and that files of different copies of one have together.

use super::*;

const MARK: &[u8] = b"__\x01";
/// As long; raft-engine refuses to write the mark itself.
const STAND_IN: &[u8] = b"==\x01";

/// A file with these batches, each a number of an atomic group and a mark, as file `seq`.
fn file(seq: u64, batches: &[(u64, u8)]) -> Vec<u8> {
    let (_keep, dir) = scratch();
    let engine = open(&dir);
    for (id, mark) in batches {
        let mut batch = group(0);
        let marked = batch.put(*id, STAND_IN.to_vec(), vec![*mark]);
        marked.expect("the key is not reserved");
        engine.write(&mut batch, true).expect("it can be written");
    }
    drop(engine);
    let mut files = Files::read(&dir);
    let found = files.batches(0);
    assert_eq!(found.len(), batches.len());
    let bytes = &mut files.0[0].1;
    for (at, len) in found {
        let footer = bytes[at + 8..at + 16].iter();
        let footer = at + footer.fold(0, |n, byte| n << 8 | usize::from(*byte));
        let end = at + len - 4;
        let mut stand_ins = bytes[footer..end].windows(STAND_IN.len());
        let key = footer + stand_ins.position(|key| key == STAND_IN).expect("the mark");
        bytes[key..key + MARK.len()].copy_from_slice(MARK);
        let crc = crc32fast::hash(&bytes[footer..end]) ^ batch::signature(seq);
        bytes[end..end + 4].copy_from_slice(&crc.to_le_bytes());
    }
    std::mem::take(bytes)
}

/// A log whose rewrite queue has these files.
fn log(rewrite: &[&[(u64, u8)]]) -> (tempfile::TempDir, PathBuf) {
    let (keep, dir) = scratch();
    let engine = open(&dir);
    append(&engine, 0..1);
    drop(engine);
    let mut files = Files::read(&dir);
    files.0.retain(|(name, _)| name.ends_with(".raftlog"));
    for (seq, batches) in (1..).zip(rewrite) {
        files
            .0
            .push((format!("{seq:016}.rewrite"), file(seq, batches)));
    }
    files.write(&dir);
    (keep, dir)
}

fn opens(dir: &Path) -> bool {
    let open = || drop(open(dir));
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(open)).is_ok()
}

#[test]
fn atomic_groups_of_one_partition_that_overlap_are_refused_before_raft_engine_panics() {
    let (_keep, dir) = log(&[&[(3, 0)], &[(4, 0), (4, 2)], &[(3, 2)]]);
    let found = look(&dir);
    assert!(
        matches!(&found, Err(InspectError::OtherCopy { path, .. })
            if *path == dir.join("0000000000000003.rewrite")),
        "{found:?}"
    );
    assert!(
        !opens(&dir),
        "raft-engine takes it: the check is too strict"
    );
}

#[test]
fn atomic_groups_that_follow_each_other_or_were_interrupted_are_those_of_a_log() {
    for files in [
        &[&[(3, 0), (3, 1)][..], &[(3, 2), (4, 0)], &[(4, 2)]][..],
        &[&[(0, 0), (0, 1)], &[(0, 0), (0, 2)]],
        &[&[(7, 1), (7, 2)], &[(7, 0), (7, 2)]],
    ] {
        let (_keep, dir) = log(files);
        look(&dir).unwrap();
        assert!(opens(&dir));
    }
}

#[test]
fn a_mark_of_an_atomic_group_that_is_none_is_rot() {
    let (_keep, dir) = log(&[&[(3, 9), (4, 0)]]);
    let found = look(&dir);
    assert!(matches!(found, Err(InspectError::Rot { .. })), "{found:?}");
    assert!(!opens(&dir), "raft-engine takes it");
}
