//! What failed half-way, in a process that goes on, and is tried again.

use super::*;

const NEVER: u64 = u64::MAX;

/// A snapshot that is fetched, and not kept yet.
fn fetched(dir: &Path, faults: &DiskFaults) -> (Arc<SnapshotStore>, Manifest) {
    let store = open(dir, faults.clone());
    let offer = offered(30, &[("a", b"first"), ("b/c", b"second")]);
    fetch(&store, &offer);
    (store, offer)
}

fn fetch(store: &Arc<SnapshotStore>, offer: &Manifest) {
    let partial = store.begin_fetch(offer).unwrap();
    for (file, bytes) in [(0, &b"first"[..]), (1, b"second")] {
        partial
            .write(file, 0, &[Bytes::from_static(bytes)])
            .unwrap();
        assert!(partial.verify(file, Checksum::of(bytes)).unwrap());
    }
}

#[test]
fn an_install_that_failed_at_any_operation_is_kept_at_the_next_try() {
    let mut failed = 0;
    for after in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let faults = DiskFaults::default();
        let (store, offer) = fetched(dir.path(), &faults);
        faults.die_after(after);
        let first = store.keep_fetched(offer.checkpoint);
        faults.die_after(NEVER);
        if first.is_ok() {
            break;
        }
        failed += 1;
        let kept = store.keep_fetched(offer.checkpoint).unwrap();
        store.load(&kept).unwrap();
        assert_eq!(store.all().len(), 1, "after {after}");
        assert_eq!(store.fetch_under_way().unwrap(), None);
        assert_eq!(
            open(dir.path(), DiskFaults::default()).all().len(),
            1,
            "after {after}"
        );
    }
    assert!(failed > 2, "{failed}");
}

#[test]
fn a_snapshot_that_was_damaged_and_fetched_again_makes_way_for_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let (store, offer) = fetched(dir.path(), &DiskFaults::default());
    let damaged = store.keep_fetched(offer.checkpoint).unwrap();
    fs::write(damaged.path.join(FILES).join("a"), b"FIRST").unwrap();
    fetch(&store, &offer);
    let kept = store.keep_fetched(offer.checkpoint).unwrap();
    store.load(&kept).unwrap();
    assert_eq!(store.all().len(), 1);
}

#[test]
fn a_snapshot_that_could_not_be_stored_leaves_nothing_behind() {
    for after in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let faults = DiskFaults::default();
        let store = open(dir.path(), faults.clone());
        // One operation fails, and those after it do not.
        faults.fail_once_after(after);
        if store.store(&snapshot(10, b"the state".to_vec())).is_ok() {
            break;
        }
        let left = fs::read_dir(dir.path().join("group")).unwrap().count();
        assert_eq!(left, 0, "after {after}");
    }
}
