//! Snapshots that other members have sent, as copies.

use super::super::super::member_copies::leave;
use super::*;

/// Writes what another member has sent, as the library of the groups stores it; without files.
fn sent(cx: &Context, name: &str, lineage: LineageId, lsn: u64) -> PathBuf {
    let described = describe_local(cx, lineage, lsn, lsn);
    let group = cx.data_dir.raft().join(format!("group-{PARTITION}"));
    let dir = group.join(name).join("files");
    std::fs::create_dir_all(dir.parent().unwrap()).unwrap();
    std::fs::rename(described, &dir).unwrap();
    dir
}

/// The copies beside the database, newest first, by their LSNs.
async fn copies(cx: &Context, facts: &PartitionFacts) -> (Vec<u64>, Vec<String>) {
    let mut search = Search {
        witness: None,
        ..Search::lossless(cx, facts)
    };
    let found = search.locals().await.unwrap();
    let lsns = found.iter().map(|copy| copy.meta.lsn).collect();
    assert!(search.log.is_some() || facts.log.is_none());
    (lsns, search.unreadable)
}

#[tokio::test]
async fn what_other_members_have_sent_is_a_copy_as_local_snapshots_are() {
    let dir = tempfile::tempdir().unwrap();
    let cx = context(dir.path());
    let ours = lineage(&cx).id();
    let with_log = facts(&cx, Some((10, 20)), None);
    assert_eq!(copies(&cx, &with_log).await, (vec![], vec![]));
    sent(&cx, "snap-12-aa", ours, 12);
    sent(&cx, "fetch-bb", ours, 18);
    describe_local(&cx, ours, 15, 15);
    // The log is restarted after an install: what is ahead of it does not show that it was cut.
    sent(&cx, "fetch-cc", ours, 34);
    // One that is being fetched, one that is being removed.
    let partial = sent(&cx, "fetch-dd", ours, 19);
    std::fs::remove_file(partial.join("checkpoint.json")).unwrap();
    sent(&cx, "gone-snap-17-ee", ours, 17);
    let found = copies(&cx, &with_log).await;
    assert_eq!(found, (vec![18, 15, 12], vec![]));
    let found = copies(&cx, &facts(&cx, None, None)).await;
    assert_eq!(found.0, [34, 18, 15, 12], "without a log");
    // What cannot be read now may be what is needed.
    std::fs::create_dir(partial.join("checkpoint.json")).unwrap();
    let (lsns, unreadable) = copies(&cx, &with_log).await;
    assert_eq!((lsns, unreadable.len()), (vec![18, 15, 12], 1));
}

#[test]
fn a_new_lineage_removes_what_it_has_and_puts_aside_what_it_does_not_have() {
    let ours = |cx: &Context| lineage(cx);
    let left = |lsn: u64, begins_without: bool, damaged: bool| {
        let dir = tempfile::tempdir().unwrap();
        let cx = context(dir.path());
        let files = sent(&cx, "snap-x-aa", ours(&cx).id(), lsn);
        if damaged {
            std::fs::write(files.join("checkpoint.json"), "x").unwrap();
        }
        let begun = ours(&cx).fork(LineageId(7), 20);
        leave(&cx.data_dir, PARTITION, &begun, begins_without).unwrap();
        // Again, as after a crash.
        leave(&cx.data_dir, PARTITION, &begun, begins_without).unwrap();
        assert!(!files.exists());
        let aside = dir.path().join("damaged");
        let aside = std::fs::read_dir(aside).map_or(0, Iterator::count);
        cx.raft.stop();
        aside
    };
    assert_eq!(left(20, false, false), 0, "the new lineage has all of it");
    assert_eq!(left(21, false, false), 1, "it has more");
    assert_eq!(left(20, true, false), 1, "nothing of it is used");
    assert_eq!(left(20, false, true), 1, "what is left of a damaged one");
}
