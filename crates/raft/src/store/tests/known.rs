//! Checksums that are known of files which a snapshot before this one has too.

use std::time::{Duration, SystemTime};

use super::*;

/// Longer than the clock of any file system stands still that tests run on.
const MOMENT: Duration = Duration::from_millis(30);

struct Host {
    _dir: tempfile::TempDir,
    export: PathBuf,
    faults: DiskFaults,
    store: Arc<SnapshotStore>,
    lsn: u64,
}

impl Host {
    fn new() -> Host {
        let (dir, faults) = (tempfile::tempdir().unwrap(), DiskFaults::default());
        let export = dir.path().join("export");
        files(&export, &[("a", b"what was written")]);
        std::thread::sleep(MOMENT);
        Host {
            store: open(dir.path(), faults.clone()),
            _dir: dir,
            export,
            faults,
            lsn: 0,
        }
    }

    fn snapshot(&mut self) -> Result<Arc<Stored>, StoreError> {
        self.lsn += 10;
        let path = self.export.clone();
        let taken = snapshot(self.lsn, SnapshotData::Files(SnapshotDir { path }));
        let stored = self.store.store(&taken);
        std::thread::sleep(MOMENT);
        stored
    }

    /// How many operations the next snapshot takes.
    fn cost(&mut self) -> u64 {
        let before = self.faults.operations();
        self.snapshot().unwrap();
        self.faults.operations() - before
    }

    /// Other bytes in the same file; `at` is its time of modification.
    fn overwrite(&self, bytes: &[u8], at: SystemTime) {
        let file = fs::File::options();
        let mut file = { file }.write(true).open(self.export.join("a")).unwrap();
        io::Write::write_all(&mut file, bytes).unwrap();
        file.set_modified(at).unwrap();
    }

    fn written_at(&self) -> SystemTime {
        let file = fs::metadata(self.export.join("a")).unwrap();
        file.modified().unwrap()
    }
}

fn checksum(stored: &Stored) -> Checksum {
    stored.manifest.file_checksum(0).unwrap()
}

#[test]
fn a_file_that_did_not_change_is_not_read_again() {
    let mut host = Host::new();
    let first = host.cost();
    assert_eq!(host.cost(), first - 1, "one read less");
}

#[test]
fn a_file_that_was_written_to_in_place_is_read_again() {
    let mut host = Host::new();
    host.snapshot().unwrap();
    host.overwrite(b"what is now in it", SystemTime::now());
    let stored = host.snapshot().unwrap();
    assert_eq!(checksum(&stored), Checksum::of(b"what is now in it"));

    // Of the same length, and in another second.
    host.overwrite(b"what was later in", SystemTime::now());
    let stored = host.snapshot().unwrap();
    assert_eq!(checksum(&stored), Checksum::of(b"what was later in"));
    host.store.load(&stored).unwrap();
}

#[test]
fn a_file_whose_snapshot_arrived_corrupt_is_read_again_and_reused_if_it_is_intact() {
    let mut host = Host::new();
    let first = host.snapshot().unwrap();
    let undoubted = host.cost();
    host.store.doubt(first.manifest.checkpoint);
    assert_eq!(host.cost(), undoubted + 1, "one read more");
    let newest = host.store.newest().unwrap();
    assert_eq!(checksum(&newest), Checksum::of(b"what was written"));
}

#[test]
fn a_file_that_rots_gets_into_no_snapshot_once_a_peer_has_noticed() {
    let mut host = Host::new();
    let first = host.snapshot().unwrap();
    host.snapshot().unwrap();
    // By its time of modification, it was not written to.
    host.overwrite(b"what was wrltten", host.written_at());
    host.store.doubt(first.manifest.checkpoint);
    let refused = host.snapshot().unwrap_err().to_string();
    assert!(refused.contains("export/a is damaged"), "{refused}");
    assert_eq!(host.store.all().len(), 2);
}
