//! What a purge that fails leaves to the next one.

use super::*;

/// raft-engine forgets the mark of the beginning when it cannot copy it.
#[test]
fn entries_from_before_a_new_beginning_do_not_come_back_after_a_purge_that_has_failed() {
    let keep = tempfile::tempdir().unwrap();
    let faults = Faults::new();
    let mut open = Open::new(keep.path(), &faults);
    let mut busy = 0;
    // Another group fills a file, and needs nothing of it.
    let mut fill = |open: &Open| {
        open.append(1, busy + 1..=busy + 20, 1, 1000);
        busy += 20;
        open.compact(1, floor(busy, 1));
    };
    open.append(0, 1..=15, 1, 10);
    for _ in 0..10 {
        fill(&open);
        open.log.purge().unwrap();
    }
    assert!(open.log.file_span().0 > 1, "the entries are copies by now");
    open.log
        .begin_group(GroupId(0), floor(3, 4), b"new")
        .unwrap();
    let begun_in = open.log.file_span().1;
    for _ in 0..5 {
        fill(&open);
    }
    faults.fail_writes_after(0, WriteFault::Io);
    open.log.purge().unwrap_err();
    faults.clear();
    let expected = Found::begun(3, 4, b"new");
    for _ in 0..10 {
        fill(&open);
        open.log.purge().unwrap();
    }
    assert_eq!(open.found(0), expected);
    assert!(open.log.file_span().0 <= begun_in, "the mark is kept");
    // An open finds the mark again, and copies it before the file goes.
    for _ in 0..2 {
        open.close();
        open = Open::new(keep.path(), &Faults::new());
        assert_eq!(open.found(0), expected);
        for _ in 0..20 {
            fill(&open);
            open.log.purge().unwrap();
        }
        assert!(open.log.file_span().0 > begun_in, "the file is deleted");
    }
    open.close();
}
