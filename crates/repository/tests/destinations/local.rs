//! Tests that are specific to a directory: processes, links, foreign files, crashes, full disks.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path as FsPath;
use std::process::Command;
use std::time::{Duration, SystemTime};

use esker_repository::destination::local::TAGGED;
use esker_repository::destination::{
    Destination, DestinationError, DestinationOptions, LocalStore, ProbeError, probe,
};
use esker_repository::env::System;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{Error, ObjectStore as _, ObjectStoreExt as _, PutMode, PutPayload};

use crate::suite::{increment, text};

/// The variable that names the directory of a test that runs itself in another process.
const DIR: &str = "ESKER_TEST_DIRECTORY";

fn open(dir: &FsPath) -> LocalStore {
    LocalStore::open(dir, true).unwrap()
}

async fn keys(store: &LocalStore) -> Vec<String> {
    let listed = store.list(None).map_ok(|meta| meta.location.to_string());
    listed.try_collect().await.unwrap()
}

/// Runs an ignored test in a process of its own.
fn run_self(test: &str, dir: &FsPath) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]);
    command.env(DIR, dir);
    command
}

#[tokio::test]
async fn no_update_is_lost_among_processes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let key = Path::from("7/number");
    store.put(&key, text("00000000")).await.unwrap();
    // The processes are started at the same time, not one after the other.
    let others = (0..4).map(|_| {
        let mut process = run_self("local::a_process_increments", dir.path());
        tokio::task::spawn_blocking(move || process.output().unwrap())
    });
    let outputs = futures::future::try_join_all(others).await.unwrap();
    for output in outputs {
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
    let number = store.get(&key).await.unwrap().bytes().await.unwrap();
    assert_eq!(number, "00000100", "four processes add 25 each");
}

#[tokio::test]
#[ignore = "part of no_update_is_lost_among_processes"]
async fn a_process_increments() {
    let store = open(FsPath::new(&std::env::var(DIR).unwrap()));
    for _ in 0..25 {
        increment(&store, &Path::from("7/number")).await;
    }
}

#[tokio::test]
async fn a_full_disk_is_named_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let test = run_self("local::a_disk_is_full", dir.path());
    // The file system has one megabyte, and only this process sees it.
    let script = format!("mount -t tmpfs -o size=1m none \"${DIR}\" && exec \"$0\" \"$@\"");
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]);
    unshare.arg(test.get_program()).args(test.get_args());
    unshare.env(DIR, dir.path());
    let can = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "true"])
        .status();
    if !can.is_ok_and(|status| status.success()) {
        println!("Skipped: this machine does not let a test mount a file system of its own");
        return;
    }
    let output = unshare.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[tokio::test]
#[ignore = "part of a_full_disk_is_named_and_leaves_nothing"]
async fn a_disk_is_full() {
    let dir = std::env::var(DIR).unwrap();
    let store = open(FsPath::new(&dir));
    store.put(&Path::from("small"), text("x")).await.unwrap();
    let large = PutPayload::from(vec![7; 2 * 1024 * 1024]);
    let error = store
        .put(&Path::from("large"), large.clone())
        .await
        .unwrap_err();
    assert!(is_full(&error), "{error:?}");
    let mut upload = store.put_multipart(&Path::from("parts")).await.unwrap();
    let error = upload.put_part(large).await.unwrap_err();
    assert!(is_full(&error), "{error:?}");
    assert!(upload.complete().await.is_err(), "a lost part is noticed");
    assert_eq!(keys(&store).await, ["small"]);
    let half = PutPayload::from(vec![7; 512 * 1024]);
    store
        .put(&Path::from("half"), half)
        .await
        .expect("the space is free again");
}

fn is_full(error: &Error) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| io.kind() == std::io::ErrorKind::StorageFull) {
            return true;
        }
        next = error.source();
    }
    false
}

#[tokio::test]
async fn symlinks_and_special_files_are_no_objects_and_lead_nowhere() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.put(&Path::from("real"), text("x")).await.unwrap();
    symlink(outside.path(), dir.path().join("dir")).unwrap();
    symlink(outside.path().join("secret"), dir.path().join("file")).unwrap();
    let made = Command::new("mkfifo")
        .arg(dir.path().join("pipe"))
        .status()
        .unwrap();
    assert!(made.success());

    assert_eq!(keys(&store).await, ["real"]);
    let level = store.list_with_delimiter(None).await.unwrap();
    assert_eq!((level.objects.len(), level.common_prefixes.len()), (1, 0));
    for key in ["dir/secret", "file", "pipe", "dir"] {
        let key = Path::from(key);
        let got = store.get(&key).await;
        assert!(
            matches!(got, Err(Error::NotFound { .. })),
            "{key} is not read: {got:?}"
        );
        let put = store.put(&key, text("replaced")).await;
        assert!(put.is_err(), "{key} is not replaced");
        let put = store
            .put_opts(&key, text("replaced"), PutMode::Create.into())
            .await;
        assert!(put.is_err(), "{key} is not made");
        store.delete(&key).await.unwrap();
    }
    assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"secret");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    assert!(
        dir.path().join("pipe").symlink_metadata().is_ok(),
        "what is foreign is not deleted"
    );
}

#[tokio::test]
async fn no_key_leads_out_of_the_directory_or_to_what_is_beside_the_objects() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("root"));
    for key in [Path::from("../x"), Path::from("a/../../x")] {
        store.put(&key, text("x")).await.unwrap();
    }
    let beside: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(beside.len(), 1, "{beside:?}");
    for key in [Path::from(".tmp/lock-00"), Path::from(".tmp"), Path::ROOT] {
        let put = store.put(&key, text("x")).await;
        assert!(
            matches!(put, Err(Error::NotSupported { .. })),
            "{key:?}: {put:?}"
        );
        assert!(store.get(&key).await.is_err());
        assert!(store.delete(&key).await.is_err());
    }
    assert!(store.list(Some(&Path::from(".tmp"))).next().await.is_none());
}

#[tokio::test]
async fn emptied_directories_go_and_the_root_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for key in ["7/a/b/c", "7/d"] {
        store.put(&Path::from(key), text("x")).await.unwrap();
    }
    store.delete(&Path::from("7/a/b/c")).await.unwrap();
    assert!(!dir.path().join("7/a").exists());
    assert!(dir.path().join("7/d").exists());
    store.delete(&Path::from("7/d")).await.unwrap();
    assert!(!dir.path().join("7").exists());
    assert!(dir.path().exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_succeeds_while_deletes_empty_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = (0..4).map(|task| {
        let store = open(dir.path());
        tokio::spawn(async move {
            for round in 0..30 {
                let key = Path::from(format!("7/deep/{task}"));
                let content = format!("{round}");
                store.put(&key, text(&content)).await.unwrap();
                let got = store.get(&key).await.unwrap().bytes().await.unwrap();
                assert_eq!(got, content);
                store.delete(&key).await.unwrap();
            }
        })
    });
    for done in futures::future::join_all(tasks).await {
        done.unwrap();
    }
}

#[tokio::test]
async fn a_link_is_the_file_itself_and_replaces_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("000007.sst");
    fs::write(&source, "content").unwrap();
    let store = open(&dir.path().join("repository"));
    let key = Path::from("7/ssts/x.sst");
    assert!(store.link(&key, &source).await.unwrap());
    let linked = dir.path().join("repository/7/ssts/x.sst");
    assert_eq!(
        linked.metadata().unwrap().ino(),
        source.metadata().unwrap().ino()
    );
    assert!(
        store.link(&key, &source).await.unwrap(),
        "again is no error"
    );

    let other = dir.path().join("000008.sst");
    fs::write(&other, "another").unwrap();
    let error = store.link(&key, &other).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(
        store.get(&key).await.unwrap().bytes().await.unwrap(),
        "content"
    );

    store.delete(&key).await.unwrap();
    assert!(source.exists(), "deleting the object leaves the file");
    let missing = store
        .link(&key, &dir.path().join("missing"))
        .await
        .unwrap_err();
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
}

#[tokio::test]
async fn where_no_link_is_possible_or_wanted_the_caller_copies() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("000007.sst");
    fs::write(&source, "content").unwrap();
    let key = Path::from("x");
    let off = LocalStore::open(&dir.path().join("a"), false).unwrap();
    assert!(!off.link(&key, &source).await.unwrap());
    let on = open(&dir.path().join("b"));
    symlink(&source, dir.path().join("symlink")).unwrap();
    assert!(!on.link(&key, &dir.path().join("symlink")).await.unwrap());
    let elsewhere = FsPath::new("/dev/shm");
    if elsewhere
        .metadata()
        .is_ok_and(|m| m.dev() != dir.path().metadata().unwrap().dev())
    {
        let other = tempfile::tempdir_in(elsewhere).unwrap();
        assert!(!open(other.path()).link(&key, &source).await.unwrap());
    }
    assert!(keys(&on).await.is_empty());
}

#[tokio::test]
async fn what_a_crash_left_is_removed_after_a_day_and_what_lives_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut alive = store.put_multipart(&Path::from("alive")).await.unwrap();
    alive.put_part(text("x")).await.unwrap();
    let scratch = dir.path().join(".tmp");
    let unfinished = || {
        let names = fs::read_dir(&scratch)
            .unwrap()
            .map(|e| e.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.retain(|name| name.starts_with("put-"));
        names.sort();
        names
    };
    let living = unfinished();
    assert_eq!(living.len(), 1);
    let yesterday = SystemTime::now() - Duration::from_secs(25 * 3600);
    for (name, age) in [("put-1-old", Some(yesterday)), ("put-1-young", None)] {
        let file = fs::File::create(scratch.join(name)).unwrap();
        if let Some(time) = age {
            file.set_modified(time).unwrap();
        }
    }
    fs::File::open(scratch.join(&living[0]))
        .unwrap()
        .set_modified(yesterday)
        .unwrap();

    open(dir.path());
    let mut wanted = [living[0].clone(), "put-1-young".to_owned()];
    wanted.sort();
    assert_eq!(unfinished(), wanted);
    assert!(
        keys(&store).await.is_empty(),
        "nor is any of them an object"
    );
    alive.complete().await.expect("a paused upload goes on");
    assert_eq!(keys(&store).await, ["alive"]);
    let again = store.put_multipart(&Path::from("dropped")).await.unwrap();
    drop(again);
    assert_eq!(
        unfinished(),
        ["put-1-young"],
        "a dropped upload removes its file"
    );
}

#[tokio::test]
async fn a_large_object_has_no_etag_and_is_not_updated() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let key = Path::from("large.sst");
    let content = vec![1_u8; usize::try_from(TAGGED).unwrap() + 1];
    let put = store.put(&key, content.clone().into()).await.unwrap();
    assert_eq!(put.e_tag, None);
    assert_eq!(store.head(&key).await.unwrap().e_tag, None);
    assert!(store.get(&key).await.unwrap().bytes().await.unwrap() == content);
    let mode = PutMode::Update(put.into());
    let put = store.put_opts(&key, text("x"), mode.into()).await;
    assert!(matches!(put, Err(Error::NotSupported { .. })), "{put:?}");
}

#[tokio::test]
async fn a_directory_that_may_only_be_read_is_read() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path())
        .put(&Path::from("7/root"), text("x"))
        .await
        .unwrap();
    let url = dir.path().to_str().unwrap().to_owned();
    let set_mode = |mode| {
        for path in [
            dir.path().join(".tmp"),
            dir.path().join("7"),
            dir.path().to_owned(),
        ] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    set_mode(0o555);
    let destination = Destination::open(&url, &DestinationOptions::default()).unwrap();
    let got = destination
        .store()
        .get(&Path::from("7/root"))
        .await
        .unwrap();
    assert_eq!(got.bytes().await.unwrap(), "x");
    assert_eq!(keys(destination.local().unwrap()).await, ["7/root"]);
    // Permissions do not restrict root, so root uses a place that is read-only for another reason.
    let superuser = fs::File::create(dir.path().join("x")).is_ok();
    let probed = if superuser { "/sys".to_owned() } else { url };
    let destination = Destination::open(&probed, &DestinationOptions::default()).unwrap();
    let outcome = probe(&destination, &System).await;
    set_mode(0o755);
    assert!(
        matches!(outcome, Err(ProbeError::ReadOnly { .. })),
        "{outcome:?}"
    );
}

#[test]
fn opening_makes_nothing_and_a_file_is_no_directory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("typo");
    let options = DestinationOptions::default();
    let destination = Destination::open(path.to_str().unwrap(), &options).unwrap();
    assert_eq!(
        destination.display_url(),
        format!("file://{}", path.display())
    );
    assert!(!path.exists());
    fs::write(&path, "x").unwrap();
    let error = Destination::open(path.to_str().unwrap(), &options).unwrap_err();
    assert!(matches!(error, DestinationError::Io { .. }), "{error}");
}
