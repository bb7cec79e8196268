//! Names are durable when the directory that they are in is synced, all the way up.

use super::*;

/// The syncs of each step: each operation fails once, and names its file. Not all of them matter.
fn synced(run: impl Fn(&Path, DiskFaults) -> Result<(), StoreError>) -> Vec<String> {
    let (dir, faults) = (tempfile::tempdir().unwrap(), DiskFaults::default());
    run(dir.path(), faults.clone()).unwrap();
    let said = (0..faults.operations()).filter_map(|after| {
        let (dir, faults) = (tempfile::tempdir().unwrap(), DiskFaults::default());
        faults.fail_once_after(after);
        let said = run(dir.path(), faults).err()?.to_string();
        let path = said.strip_prefix("syncing ")?.split(": ").next()?;
        Some(path.to_owned())
    });
    said.collect()
}

#[track_caller]
fn assert_each_directory(synced: &[String]) {
    for dir in ["files", "files/a", "files/a/b", "files/c"] {
        let is = |path: &&String| path.ends_with(&format!("/{dir}"));
        assert!(synced.iter().any(|p| is(&p)), "{dir} is not: {synced:#?}");
    }
}

const CONTENTS: [(&str, &[u8]); 3] = [("a/b/x", b"xx"), ("c/y", b"yy"), ("z", b"zz")];

#[test]
fn every_directory_of_a_stored_snapshot_is_synced() {
    let synced = synced(|dir, faults| {
        let data = files(&dir.join("host"), &CONTENTS);
        let store = SnapshotStore::open(&dir.join("group"), identity(), faults)?;
        store.store(&snapshot(10, data)).map(|_| ())
    });
    assert_each_directory(&synced);
}

#[test]
fn every_directory_of_a_fetch_is_synced_before_it_counts_as_begun() {
    let synced = synced(|dir, faults| {
        let store = SnapshotStore::open(&dir.join("group"), identity(), faults)?;
        Arc::new(store)
            .begin_fetch(&offered(30, &CONTENTS))
            .map(|_| ())
    });
    assert_each_directory(&synced);
}
