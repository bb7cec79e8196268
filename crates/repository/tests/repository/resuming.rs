//! Restores that continue an interrupted one, and the files that they do not touch.

use std::path::PathBuf;
use std::process::Command;

use esker_repository::{Error, Options, Progress, Which};
use testkit_s3::{Fault, Matching, Operation};

use crate::fixture::{Files, Place, bytes, options, read_dir, some, until};

on_both!(
    a_target_that_holds_something_is_left_alone,
    a_partial_directory_that_no_restore_left_is_left_alone,
    a_partial_directory_is_gone_on_with,
    one_that_ends_anywhere_near_its_end_is_gone_on_with,
    a_partial_directory_of_another_snapshot_is_started_over,
    a_directory_that_exists_stays_and_is_restored_inside,
    one_that_ends_anywhere_inside_a_directory_is_gone_on_with,
    what_is_put_into_a_directory_during_a_restore_is_left_alone,
);

async fn a_target_that_holds_something_is_left_alone(place: Place) {
    place.put(1, &some(&[1])).await;
    let repository = place.repository();
    let target = place.target();
    std::fs::create_dir(&target).unwrap();
    std::fs::write(target.join("mine"), "mine").unwrap();
    let restored = repository
        .restore(&Which::Newest, &target, &Progress::new())
        .await;
    let error = restored.unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error:?}");
    assert!(error.to_string().contains("not empty"), "{error}");
    assert_eq!(read_dir(&target).len(), 1);
    // A file is no directory.
    let file = target.join("mine");
    let restored = repository
        .restore(&Which::Newest, &file, &Progress::new())
        .await;
    assert!(restored.is_err());
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    // An empty directory is accepted like one that does not exist.
    std::fs::remove_file(&file).unwrap();
    repository
        .restore(&Which::Newest, &target, &Progress::new())
        .await
        .unwrap();
    assert_eq!(read_dir(&target), some(&[1]));
}

fn partial_of(target: &std::path::Path) -> PathBuf {
    target.with_file_name("restored.partial")
}

async fn a_partial_directory_that_no_restore_left_is_left_alone(place: Place) {
    place.put(1, &some(&[1])).await;
    let target = place.target();
    let partial = partial_of(&target);
    std::fs::create_dir(&partial).unwrap();
    std::fs::write(partial.join("mine"), "mine").unwrap();
    let repository = place.repository();
    let restored = repository
        .restore(&Which::Newest, &target, &Progress::new())
        .await;
    let error = restored.unwrap_err().to_string();
    assert!(error.contains("restored.partial"), "{error}");
    assert_eq!(read_dir(&partial).len(), 1);
    assert_eq!(place.json("latest.json").get("pins"), None);
}

/// Leaves a partial directory: the second file is missing when it is fetched.
pub async fn broken_off(place: &Place, target: &std::path::Path) -> (Files, Vec<String>) {
    let files = some(&[1, 2, 3, 4]);
    let put = place.put(1, &files).await;
    let keys = place.files_of(&put.snapshot);
    let missing = std::fs::read(place.path(&keys[1])).unwrap();
    place.remove(&keys[1]);
    let one_by_one = Options {
        parallel_files: 1,
        ..options()
    };
    let repository = place.with(one_by_one);
    let restored = repository
        .restore(&Which::Newest, target, &Progress::new())
        .await;
    assert!(restored.is_err());
    place.write(&keys[1], missing);
    assert!(partial_of(target).join("000001.sst").exists());
    (files, keys)
}

async fn a_partial_directory_is_gone_on_with(place: Place) {
    let target = place.target();
    let (files, keys) = broken_off(&place, &target).await;
    let partial = partial_of(&target);
    // One file has the right size and another content; another one does not belong to the snapshot.
    std::fs::write(partial.join("000003.sst"), bytes(77, 503)).unwrap();
    std::fs::write(partial.join("leftover"), "x").unwrap();
    if place.is_s3() {
        place.server().forget();
    }
    let progress = Progress::new();
    let restored = place
        .repository()
        .restore(&Which::Newest, &target, &progress)
        .await
        .unwrap();
    assert_eq!(restored.resumed(), 1);
    assert_eq!(read_dir(&target), files);
    assert!(!partial.exists());
    assert_eq!((progress.files_done(), progress.bytes_done()), (4, 2010));
    if place.is_s3() {
        let fetched: Vec<_> = place
            .server()
            .log()
            .into_iter()
            .filter(|r| r.operation == Operation::Get && r.key.contains("/ssts/"))
            .map(|r| r.key)
            .collect();
        assert_eq!(fetched.len(), 3, "what was whole is not fetched again");
        assert!(!fetched.iter().any(|key| key.ends_with(&keys[0])));
    }
}

async fn one_that_ends_anywhere_near_its_end_is_gone_on_with(place: Place) {
    const MARKER: &str = ".esker-restore.json";
    let target = place.target();
    let partial = partial_of(&target);
    let (files, _) = broken_off(&place, &target).await;
    let marker = std::fs::read(partial.join(MARKER)).unwrap();
    let again = async || {
        let restore = place.repository();
        let progress = Progress::new();
        let restored = restore.restore(&Which::Newest, &target, &progress).await;
        let restored = restored.unwrap();
        assert_eq!(read_dir(&target), files);
        assert!(!partial.exists());
        restored.resumed()
    };
    again().await;
    // The directory is in its place, and the marker is not removed yet.
    std::fs::write(target.join(MARKER), &marker).unwrap();
    assert_eq!(again().await, files.len() as u64);
    // The directory is not in its place yet.
    std::fs::write(target.join(MARKER), &marker).unwrap();
    std::fs::rename(&target, &partial).unwrap();
    assert_eq!(again().await, files.len() as u64);
    // The restore has just begun, and the marker is half written.
    std::fs::remove_dir_all(&target).unwrap();
    std::fs::create_dir(&partial).unwrap();
    std::fs::write(partial.join(".esker-restore.json.new"), "{").unwrap();
    assert_eq!(again().await, 0);
}

async fn a_partial_directory_of_another_snapshot_is_started_over(place: Place) {
    let target = place.target();
    broken_off(&place, &target).await;
    let newer = some(&[1, 7]);
    place.put(2, &newer).await;
    let restored = place
        .repository()
        .restore(&Which::Newest, &target, &Progress::new())
        .await
        .unwrap();
    assert_eq!(restored.resumed(), 0);
    assert_eq!(read_dir(&target), newer);
}

async fn a_directory_that_exists_stays_and_is_restored_inside(place: Place) {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let mut files = some(&[1, 2]);
    files.insert("sub/dir/000009.sst".to_owned(), bytes(9, 3));
    place.put(1, &files).await;
    let target = place.target();
    std::fs::create_dir(&target).unwrap();
    std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o710)).unwrap();
    // The directory that a new file system has at its top.
    std::fs::create_dir(target.join("lost+found")).unwrap();
    let identity = |path: &std::path::Path| {
        let found = std::fs::metadata(path).unwrap();
        (found.ino(), found.mode() & 0o7777)
    };
    let before = identity(&target);
    let link = target.with_file_name("link");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let restored = place
        .repository()
        .restore(&Which::Newest, &link, &Progress::new())
        .await
        .unwrap();
    assert_eq!(restored.dir(), link);
    assert_eq!(identity(&target), before);
    assert_eq!(read_dir(&target), files);
    assert!(!partial_of(&target).exists());
    assert!(!link.with_file_name("link.partial").exists());
    let nowhere = target.with_file_name("nowhere");
    std::os::unix::fs::symlink("not-there", &nowhere).unwrap();
    let refused = place
        .repository()
        .restore(&Which::Newest, &nowhere, &Progress::new())
        .await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("target is missing"), "{refused}");
    assert!(refused.contains("/nowhere"), "{refused}");
}

async fn one_that_ends_anywhere_inside_a_directory_is_gone_on_with(place: Place) {
    let target = place.target();
    let partial = target.join(".esker-restore.partial");
    let mut files = some(&[1, 2, 3]);
    files.insert("sub/000009.sst".to_owned(), bytes(9, 3));
    let put = place.put(1, &files).await;
    let restore = async || {
        let repository = place.repository();
        let progress = Progress::new();
        let restored = repository.restore(&Which::Newest, &target, &progress).await;
        restored.map(|restored| restored.resumed())
    };
    // Files are being fetched.
    std::fs::create_dir(&target).unwrap();
    let key = &place.files_of(&put.snapshot)[1];
    let missing = std::fs::read(place.path(key)).unwrap();
    place.remove(key);
    assert!(restore().await.is_err());
    assert!(partial.exists());
    place.write(key, missing);
    let resumed = restore().await.unwrap();
    assert!(resumed < files.len() as u64);
    assert_eq!(read_dir(&target), files);
    // All, some or none of the names were moved into the directory.
    let marker = |placing: &str| format!("{{\"snapshot\":\"{}\"{placing}}}", put.snapshot);
    for in_place in 0..=4 {
        std::fs::create_dir(&partial).unwrap();
        std::fs::write(
            partial.join(".esker-restore.json"),
            marker(",\"placing\":true"),
        )
        .unwrap();
        let names = ["000001.sst", "000002.sst", "000003.sst", "sub"];
        for name in &names[in_place..] {
            std::fs::rename(target.join(name), partial.join(name)).unwrap();
        }
        assert_eq!(restore().await.unwrap(), 4, "{in_place} in place");
        assert_eq!(read_dir(&target), files, "{in_place} in place");
    }
    // The marker is removed last.
    std::fs::create_dir(&partial).unwrap();
    assert!(restore().await.is_err(), "it is restored, and is not empty");
}

async fn what_is_put_into_a_directory_during_a_restore_is_left_alone(place: Place) {
    let files = some(&[1, 2]);
    let put = place.put(1, &files).await;
    let target = place.target();
    let partial = target.join(".esker-restore.partial");
    let repository = place.repository();
    let restore = async || {
        let progress = Progress::new();
        repository.restore(&Which::Newest, &target, &progress).await
    };
    for placing in ["", ",\"placing\":true"] {
        std::fs::create_dir_all(&partial).unwrap();
        let marker = format!("{{\"snapshot\":\"{}\"{placing}}}", put.snapshot);
        std::fs::write(partial.join(".esker-restore.json"), marker).unwrap();
        std::fs::write(target.join("mine"), "mine").unwrap();
        let error = restore().await.unwrap_err().to_string();
        assert!(error.contains("mine"), "{error}");
        assert_eq!(std::fs::read(target.join("mine")).unwrap(), b"mine");
        std::fs::remove_file(target.join("mine")).unwrap();
        // A file with the name of one of the snapshot's is not taken as the snapshot's.
        if placing.is_empty() {
            std::fs::write(target.join("000001.sst"), "mine").unwrap();
            assert!(restore().await.is_err());
            assert_eq!(std::fs::read(target.join("000001.sst")).unwrap(), b"mine");
            std::fs::remove_file(target.join("000001.sst")).unwrap();
        }
        restore().await.unwrap();
        assert_eq!(read_dir(&target), files);
        std::fs::remove_dir_all(&target).unwrap();
    }
}

/// A file system of a known size, unmounted when it is dropped.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    /// `None` if mounting is not permitted.
    fn mount(mib: u64) -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "esker-test"])
            .arg(dir.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(SmallDisk { dir }),
            other => {
                eprintln!("SKIPPED: a small tmpfs cannot be mounted here: {other:?}");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.dir.path())
            .output();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_a_restore_before_it_begins_or_cleanly_and_it_goes_on_later() {
    let Some(disk) = SmallDisk::mount(8) else {
        return;
    };
    let place = Place::on_s3().await;
    let files: Files = (0..4_u32)
        .map(|i| (format!("{i:06}.sst"), bytes(u64::from(i) + 1, 1 << 20)))
        .collect();
    place.put(1, &files).await;
    let repository = place.with(Options {
        parallel_files: 1,
        ..options()
    });
    let target = disk.dir.path().join("restored");
    let ballast = disk.dir.path().join("ballast");

    std::fs::write(&ballast, vec![1; 6 << 20]).unwrap();
    let restored = repository
        .restore(&Which::Newest, &target, &Progress::new())
        .await;
    let Err(Error::NoSpace { needed, free, .. }) = restored else {
        panic!("{restored:?}");
    };
    assert!(needed == 4 << 20 && free < needed, "{needed} {free}");
    assert_eq!(place.json("latest.json").get("pins"), None);

    // The disk has enough space when the restore begins, and too little afterwards.
    std::fs::write(&ballast, vec![1; 3 << 20]).unwrap();
    let faults = place.server().faults();
    let second = Matching::operation(Operation::Get).key("/ssts/");
    faults.after(1, 1, second, Fault::Held);
    let progress = Progress::new();
    let restore = repository.restore(&Which::Newest, &target, &progress);
    let fill = async {
        until("the second file is asked for", || faults.held() == 1).await;
        let first = std::fs::metadata(partial_of(&target).join("000000.sst")).unwrap();
        assert_eq!(first.len(), 1 << 20, "the first one is whole");
        let _ = std::fs::write(&ballast, vec![1; 7 << 20]);
        faults.release();
    };
    let (restored, ()) = futures::future::join(restore, fill).await;
    let Err(Error::Io { path, source, .. }) = restored else {
        panic!("{restored:?}");
    };
    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
    assert!(path.starts_with(partial_of(&target)), "{path:?}");
    assert!(!target.exists() && partial_of(&target).exists());

    std::fs::remove_file(&ballast).unwrap();
    let restored = repository
        .restore(&Which::Newest, &target, &Progress::new())
        .await
        .unwrap();
    assert!(restored.resumed() >= 1, "what was whole is kept");
    assert!(read_dir(&target) == files);
}
