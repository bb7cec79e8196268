//! What is promised of snapshots on disk, crashes between any two operations included.

mod known;
mod retries;
mod syncing;
mod unfinished;
mod unreadable;

use std::fs;

use super::*;
use crate::engine::Membership;
use crate::ids::{ClusterId, GroupId, Incarnation, Lineage, Lsn, Term};
use crate::transfer::{FileEntry, Held};

fn identity() -> Identity {
    Identity {
        cluster: ClusterId([1; 16]),
        group: GroupId(7),
        lineage: Lineage([2; 16]),
        node: NodeId(3),
        incarnation: Incarnation(1),
    }
}

fn open(dir: &Path, faults: DiskFaults) -> Arc<SnapshotStore> {
    Arc::new(SnapshotStore::open(&dir.join("group"), identity(), faults).unwrap())
}

fn snapshot(lsn: u64, data: impl Into<SnapshotData>) -> StoredSnapshot {
    StoredSnapshot {
        last_included_index: Lsn(lsn),
        term: Term(2),
        peers: Membership {
            voters: vec![NodeId(1), NodeId(3)],
            ..Membership::default()
        },
        data: data.into(),
    }
}

/// A host's directory with these files.
fn files(dir: &Path, files: &[(&str, &[u8])]) -> SnapshotData {
    for (name, bytes) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    SnapshotData::Files(SnapshotDir {
        path: dir.to_owned(),
    })
}

fn bytes_of(snapshot: &StoredSnapshot) -> Vec<u8> {
    match &snapshot.data {
        SnapshotData::Bytes(bytes) => bytes.clone(),
        SnapshotData::Files(dir) => panic!("files in {}", dir.path.display()),
    }
}

/// A manifest of a peer's, with its files.
fn offered(lsn: u64, contents: &[(&str, &[u8])]) -> Manifest {
    let entry = |(name, bytes): &(&str, &[u8])| FileEntry {
        name: (*name).to_owned(),
        size: bytes.len() as u64,
        checksum: Checksum::of(bytes),
    };
    let of = snapshot(lsn, Vec::new());
    Manifest {
        format: OFFER_FORMAT,
        checkpoint: CheckpointId([lsn as u8; 16]),
        source: NodeId(1),
        last_included_index: of.last_included_index,
        term: of.term,
        peers: of.peers,
        content: Content::Files(contents.iter().map(entry).collect()),
    }
}

#[test]
fn what_was_stored_is_there_after_a_restart_with_position_and_membership() {
    let dir = tempfile::tempdir().unwrap();
    let stored = snapshot(10, b"the state".to_vec());
    open(dir.path(), DiskFaults::default())
        .store(&stored)
        .unwrap();
    let store = open(dir.path(), DiskFaults::default());
    let newest = store.newest().unwrap();
    assert!(!newest.fetched);
    assert_eq!(store.load(&newest).unwrap(), stored);
    let chunk = store
        .read_chunk(newest.manifest.checkpoint, 0, 4, 5)
        .unwrap();
    assert_eq!(&chunk[..], b"state");
}

#[test]
fn a_hosts_files_are_not_needed_once_they_are_stored() {
    let (dir, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let given = host.path().join("export");
    let data = files(
        &given,
        &[("a.sst", b"aaa"), ("sub/b.sst", b"bbbb"), ("empty", b"")],
    );
    let store = open(dir.path(), DiskFaults::default());
    let stored = store.store(&snapshot(10, data)).unwrap();
    fs::remove_dir_all(&given).unwrap();
    assert_eq!(stored.manifest.total_bytes(), 7);
    let SnapshotData::Files(kept) = store.load(&stored).unwrap().data else {
        panic!("they were files");
    };
    assert_eq!(fs::read(kept.path.join("sub/b.sst")).unwrap(), b"bbbb");
    assert_eq!(fs::read(kept.path.join("empty")).unwrap(), b"");
}

#[test]
fn a_crash_between_any_two_operations_leaves_the_old_snapshot_or_the_new_one_whole() {
    let (old, new) = (b"the old state".to_vec(), b"a newer state".to_vec());
    let mut outcomes = std::collections::BTreeSet::new();
    for after in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let faults = DiskFaults::default();
        let store = open(dir.path(), faults.clone());
        let first = store.store(&snapshot(10, old.clone())).unwrap();
        faults.die_after(after);
        let stored = store.store(&snapshot(20, new.clone()));
        let done = stored.is_ok() && store.remove(first.manifest.checkpoint).is_ok();
        drop(store);

        let store = open(dir.path(), DiskFaults::default());
        let newest = store.newest().expect("one of them");
        let lsn = newest.manifest.last_included_index.0;
        let expected = if lsn == 10 { &old } else { &new };
        assert_eq!(
            &bytes_of(&store.load(&newest).unwrap()),
            expected,
            "after {after}"
        );
        assert!(
            stored.is_err() || lsn == 20,
            "what was stored is there: after {after}"
        );
        let left = fs::read_dir(dir.path().join("group")).unwrap().count();
        assert_eq!(
            left,
            store.all().len(),
            "nothing half-way is left: after {after}"
        );
        outcomes.insert(lsn);
        if done {
            break;
        }
    }
    assert_eq!(outcomes.into_iter().collect::<Vec<_>>(), [10, 20]);
}

#[test]
fn a_crash_between_any_two_operations_of_an_install_leaves_the_fetch_or_the_snapshot() {
    let contents: [(&str, &[u8]); 2] = [("a", b"first"), ("b/c", b"second")];
    for after in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let faults = DiskFaults::default();
        let store = open(dir.path(), faults.clone());
        let offer = offered(30, &contents);
        faults.die_after(after);
        let install = || -> Result<(), StoreError> {
            let partial = store.begin_fetch(&offer)?;
            for (file, (_, bytes)) in contents.iter().enumerate() {
                partial.write(file as u32, 0, &[Bytes::from_static(bytes)])?;
                assert!(partial.verify(file as u32, Checksum::of(bytes))?);
            }
            store.keep_fetched(offer.checkpoint)?;
            Ok(())
        };
        let done = install().is_ok();
        drop(store);

        let store = open(dir.path(), DiskFaults::default());
        match (store.newest(), store.fetch_under_way().unwrap()) {
            (Some(kept), None) => {
                assert!(kept.fetched);
                store.load(&kept).unwrap();
            }
            (None, Some(under_way)) => assert_eq!(under_way, offer),
            (None, None) => assert!(!done),
            both => panic!("after {after}: {both:?}"),
        }
        if done {
            assert!(store.newest().is_some());
            break;
        }
    }
}

#[test]
fn damaged_data_is_never_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), DiskFaults::default());
    let stored = store.store(&snapshot(10, b"the state".to_vec())).unwrap();
    fs::write(stored.path.join(DATA), b"the stage").unwrap();
    assert!(matches!(
        store.load(&stored),
        Err(StoreError::Damaged { .. })
    ));

    let host = tempfile::tempdir().unwrap();
    let stored = store.store(&snapshot(11, files(host.path(), &[("a", b"aa")])));
    let stored = stored.unwrap();
    fs::write(stored.path.join(FILES).join("a"), b"ab").unwrap();
    assert!(matches!(
        store.load(&stored),
        Err(StoreError::Damaged { .. })
    ));
}

#[test]
fn a_snapshot_of_another_group_or_with_damaged_metadata_is_not_listed() {
    let dir = tempfile::tempdir().unwrap();
    let stored = open(dir.path(), DiskFaults::default());
    let stored = stored.store(&snapshot(10, b"x".to_vec())).unwrap();
    let other = Identity {
        group: GroupId(8),
        ..identity()
    };
    let at = dir.path().join("group");
    let opened = SnapshotStore::open(&at, other, DiskFaults::default()).unwrap();
    assert!(opened.newest().is_none());

    let metadata = stored.path.join(METADATA);
    let mut bytes = fs::read(&metadata).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&metadata, bytes).unwrap();
    assert!(open(dir.path(), DiskFaults::default()).newest().is_none());
}

#[test]
fn a_fetch_goes_on_where_it_was_with_its_manifest_first() {
    let dir = tempfile::tempdir().unwrap();
    let offer = offered(30, &[("a", b"0123456789"), ("b", b"abc")]);
    let partial = open(dir.path(), DiskFaults::default());
    let partial = partial.begin_fetch(&offer).unwrap();
    partial
        .write(0, 0, &[Bytes::from_static(b"01234")])
        .unwrap();
    partial.write(0, 5, &[Bytes::from_static(b"xy")]).unwrap();
    // A write at an offset cuts what was behind it.
    partial.write(0, 5, &[Bytes::from_static(b"5")]).unwrap();

    let store = open(dir.path(), DiskFaults::default());
    assert_eq!(store.fetch_under_way().unwrap(), Some(offer.clone()));
    let partial = store.begin_fetch(&offer).unwrap();
    assert_eq!(partial.held(), [Held::Prefix(6), Held::Prefix(0)]);
}

#[test]
fn a_full_disk_leaves_the_prefix_that_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let faults = DiskFaults::default();
    let store = open(dir.path(), faults.clone());
    let partial = store
        .begin_fetch(&offered(30, &[("a", b"0123456789")]))
        .unwrap();
    partial.write(0, 0, &[Bytes::from_static(b"0123")]).unwrap();
    faults.full_after(2);
    let error = partial
        .write(0, 4, &[Bytes::from_static(b"456789")])
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(partial.held(), [Held::Prefix(4)]);
    faults.space_returned();
    partial
        .write(0, 4, &[Bytes::from_static(b"456789")])
        .unwrap();
    assert!(partial.verify(0, Checksum::of(b"0123456789")).unwrap());
}

#[test]
fn files_that_are_there_by_hash_are_linked_and_a_bad_one_is_replaced_not_changed() {
    let (dir, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(dir.path(), DiskFaults::default());
    let own = files(host.path(), &[("mine", b"shared bytes")]);
    let stored = store.store(&snapshot(10, own)).unwrap();
    let offer = offered(30, &[("theirs", b"shared bytes"), ("new", b"other")]);
    let partial = store.begin_fetch(&offer).unwrap();
    assert_eq!(partial.held(), [Held::Prefix(12), Held::Prefix(0)]);

    // Fetched anew, it is another file: the stored snapshot stays what it is.
    partial
        .write(0, 0, &[Bytes::from_static(b"SHARED")])
        .unwrap();
    store.load(&stored).unwrap();

    // The next fetch takes over what the one before had.
    let partial = store.begin_fetch(&offer).unwrap();
    partial
        .write(1, 0, &[Bytes::from_static(b"other")])
        .unwrap();
    let next = offered(40, &[("n", b"other"), ("m", b"shared bytes")]);
    let partial = store.begin_fetch(&next).unwrap();
    assert_eq!(partial.held(), [Held::Prefix(5), Held::Prefix(12)]);
    assert_eq!(store.fetch_under_way().unwrap(), Some(next));
}

#[test]
fn a_fetched_snapshot_is_offered_under_a_name_of_this_nodes_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), DiskFaults::default());
    let offer = offered(30, &[("a", b"x")]);
    let partial = store.begin_fetch(&offer).unwrap();
    partial.write(0, 0, &[Bytes::from_static(b"x")]).unwrap();
    let kept = store.keep_fetched(offer.checkpoint).unwrap();
    assert_eq!(kept.manifest.source, NodeId(3));
    assert_ne!(kept.manifest.checkpoint, offer.checkpoint);
    let again = open(dir.path(), DiskFaults::default()).newest().unwrap();
    assert_eq!(again.manifest, kept.manifest);
}

#[test]
fn a_snapshot_of_a_newer_format_stays_in_place_and_is_reported_as_such() {
    let newer = crate::message::NewerOffer {
        checkpoint: CheckpointId([7; 16]),
        format: OFFER_FORMAT + 1,
    };
    let offer = identity().seal(NodeId(3), crate::message::Payload::NewerOffer(newer));
    let offer = offer.encode();
    let mut bytes = b"ESKRSNP1".to_vec();
    bytes.extend(Checksum::of(&offer).0.to_be_bytes());
    bytes.extend(offer);
    let why = metadata::decode(identity(), &bytes).unwrap_err();
    assert!(
        why.contains("format 2, this version knows up to 1"),
        "{why}"
    );

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("group/snap-00000000000000000009-newer");
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join(METADATA), bytes).unwrap();
    assert!(open(dir.path(), DiskFaults::default()).newest().is_none());
    assert!(path.join(METADATA).exists());
}
