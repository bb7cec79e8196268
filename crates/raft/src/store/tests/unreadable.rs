//! What cannot be read for a moment is neither damaged nor absent: the operation fails with its cause, and
//! nothing is removed.

use super::*;

/// Whether the one fault of `faults` was used.
fn was_reached(faults: &DiskFaults, after: u64) -> bool {
    faults.operations() > after
}

/// Opens the store with each of its operations failing once, until none is left to fail.
fn open_with_each_failure(dir: &Path, check: impl Fn(&Arc<SnapshotStore>, u64)) -> u64 {
    let mut failed = 0;
    for after in 0.. {
        let faults = DiskFaults::default();
        faults.fail_once_after(after);
        match SnapshotStore::open(&dir.join("group"), identity(), faults.clone()) {
            Ok(store) => check(&Arc::new(store), after),
            Err(error) => {
                assert!(error.is_unreadable(), "after {after}: {error}");
                failed += 1;
            }
        }
        if !was_reached(&faults, after) {
            break;
        }
    }
    failed
}

#[test]
fn an_open_that_cannot_read_a_snapshots_metadata_fails_and_lists_no_fewer_snapshots() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), DiskFaults::default());
    store.store(&snapshot(10, b"the state".to_vec())).unwrap();
    let failed = open_with_each_failure(dir.path(), |store, after| {
        assert_eq!(store.all().len(), 1, "after {after}");
    });
    assert!(failed >= 3, "creating, listing, reading: {failed}");
    assert_eq!(open(dir.path(), DiskFaults::default()).all().len(), 1);
}

#[test]
fn an_open_that_cannot_read_the_metadata_of_a_fetch_fails_and_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let offer = offered(30, &[("a", b"first"), ("b/c", b"second")]);
    let store = open(dir.path(), DiskFaults::default());
    let partial = store.begin_fetch(&offer).unwrap();
    partial.write(0, 0, &[Bytes::from_static(b"firs")]).unwrap();
    let failed = open_with_each_failure(dir.path(), |store, after| {
        let there = match store.fetch_under_way() {
            Ok(there) => there,
            Err(error) => {
                assert!(error.is_unreadable(), "after {after}: {error}");
                store.fetch_under_way().unwrap()
            }
        };
        assert_eq!(there.as_ref(), Some(&offer), "after {after}");
    });
    assert!(failed >= 3, "creating, listing, reading: {failed}");
    let store = open(dir.path(), DiskFaults::default());
    let partial = store.begin_fetch(&offer).unwrap();
    assert_eq!(partial.held()[0], Held::Prefix(4));
}

#[test]
fn a_fetch_that_cannot_read_its_metadata_begins_again_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let offer = offered(30, &[("a", b"first"), ("b/c", b"second")]);
    let faults = DiskFaults::default();
    let store = open(dir.path(), faults.clone());
    let partial = store.begin_fetch(&offer).unwrap();
    partial.write(0, 0, &[Bytes::from_static(b"firs")]).unwrap();
    for after in 0.. {
        let before = faults.operations();
        faults.fail_once_after(after);
        if let Err(error) = store.begin_fetch(&offer) {
            assert!(error.is_unreadable(), "after {after}: {error}");
        }
        let done = faults.operations() - before;
        faults.fail_once_after(u64::MAX);
        let held = store.begin_fetch(&offer).unwrap().held();
        assert_eq!(held[0], Held::Prefix(4), "after {after}");
        if done <= after {
            break;
        }
    }
}
