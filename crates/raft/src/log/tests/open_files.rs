//! A log in a process that may open no more files for a while: nothing panics, and what was refused is written
//! afterwards.

use std::os::fd::AsRawFd as _;
use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::*;

/// The variable that marks a child process, whose limit is lowered.
const CHILD: &str = "ESKER_TEST_OPEN_FILES_CHILD";

/// Runs a test of this module in a process of its own, in which `test` runs. A limit of open files is the
/// process's, and other tests open files at the same time.
fn in_a_child(name: &str, test: fn()) {
    if std::env::var_os(CHILD).is_some() {
        return test();
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    let name = format!("log::tests::open_files::{name}");
    child
        .args(["--exact", &name, "--nocapture"])
        .env(CHILD, "1");
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{error}");
    assert!(text.contains("1 passed"), "{name} is no test: {text}");
}

/// From now on no file can be opened.
fn forbid_files() {
    let next = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
    set_limit(u64::try_from(next).unwrap());
}

fn set_limit(current: u64) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: Some(current),
        maximum,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// Whether a panic has reached the hook that the process had before the log was opened, which would have ended
/// it.
fn panics_are_noted() -> Arc<AtomicBool> {
    let seen = Arc::new(AtomicBool::new(false));
    let noted = seen.clone();
    std::panic::set_hook(Box::new(move |info| {
        eprintln!("{info}");
        noted.store(true, Ordering::SeqCst);
    }));
    seen
}

#[test]
fn a_write_for_whose_new_file_no_directory_can_be_opened_is_repeated_until_one_can() {
    in_a_child(
        "a_write_for_whose_new_file_no_directory_can_be_opened_is_repeated_until_one_can",
        repeated_write,
    );
}

fn repeated_write() {
    let limit = getrlimit(Resource::Nofile).current.unwrap();
    let panicked = panics_are_noted();
    let dir = tempfile::tempdir().unwrap();
    let faults = Faults::new();
    let open = Open::new(dir.path(), &faults);
    open.append(1, 1..=1, 1, 20 * 1024);
    // raft-engine has created the file, and does not get the directory.
    faults.after_next_create(forbid_files);
    std::thread::scope(|scope| {
        scope.spawn(|| open.append(1, 2..=2, 1, 100));
        testkit::wait::eventually("the log refuses", || open.writer.stalled());
        let cause = open.writer.stall_cause().unwrap();
        assert!(cause.contains("oo many open files"), "{cause}");
        // Further attempts do not get the new file.
        std::thread::sleep(Duration::from_millis(300));
        assert!(open.writer.stalled());
        set_limit(limit);
    });
    assert!(!open.writer.stalled());
    open.append(1, 3..=30, 1, 2000);
    let expected: BTreeMap<u64, u64> = (1..=30).map(|lsn| (lsn, 1)).collect();
    assert_eq!(open.found(1).entries, expected);
    open.close();
    let open = Open::new(dir.path(), &Faults::new());
    assert_eq!(open.found(1).entries, expected);
    open.close();
    assert!(!panicked.load(Ordering::SeqCst), "a panic reached the hook");
}

#[test]
fn a_purge_for_whose_new_file_no_directory_can_be_opened_is_an_error_and_works_later() {
    in_a_child(
        "a_purge_for_whose_new_file_no_directory_can_be_opened_is_an_error_and_works_later",
        repeated_purge,
    );
}

fn repeated_purge() {
    let limit = getrlimit(Resource::Nofile).current.unwrap();
    let panicked = panics_are_noted();
    let dir = tempfile::tempdir().unwrap();
    let faults = Faults::new();
    let open = Open::new(dir.path(), &faults);
    // Many groups with few entries each, which purges copy: more than fits into one file.
    let (mut last, mut refused) = (0, false);
    while !refused {
        last += 1;
        assert!(last < 20, "no purge began a file");
        for group in 10..60 {
            open.append(group, last..=last, 1, 1000);
        }
        faults.after_next_create(forbid_files);
        let purged = open.log.purge();
        set_limit(limit);
        faults.clear();
        if let Err(error) = purged {
            assert!(error.to_string().contains("oo many open files"), "{error}");
            assert!(error.is_unreadable() && !error.is_damage());
            refused = true;
        }
    }
    let before = open.log.file_span().0;
    open.log.purge().unwrap();
    assert!(open.log.file_span().0 > before, "nothing was deleted");
    let expected: BTreeMap<u64, u64> = (1..=last).map(|lsn| (lsn, 1)).collect();
    let complete = |open: &Open| {
        for group in 10..60 {
            assert_eq!(open.found(group).entries, expected, "group {group}");
        }
    };
    complete(&open);
    open.close();
    let open = Open::new(dir.path(), &Faults::new());
    complete(&open);
    open.close();
    assert!(!panicked.load(Ordering::SeqCst), "a panic reached the hook");
}
