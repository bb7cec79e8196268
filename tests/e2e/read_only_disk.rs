//! A file system that becomes read-only under a running server (`EROFS`), or is so at a start.
//!
//! The server runs in a mount namespace of its own, in which a directory is mounted once more above itself, read-only:
//! a file system with files that are open for writing cannot be made read-only as a whole, and the kernel does that
//! only after errors of the device. What is open goes on, nothing new can be created, and nothing outside the
//! namespace changes. It needs root or user namespaces; without them, that is printed, and the tests pass.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::process::program;

use crate::lost_disk::{goes_on, is_live_and_not_ready, run, with_a_stream};
use crate::small_disk::{Filled, fill, small};
use crate::support::{Server, Setup};

/// Starts the program in a mount namespace, where the data directory is read-only if a file of the test is there.
const SCRIPT: &str = r#"#!/bin/sh
exec unshare $TEST_UNSHARE sh -c '
  if [ -e "$TEST_READ_ONLY" ]; then
    mount --bind "$TEST_DATA" "$TEST_DATA" && mount -o remount,bind,ro "$TEST_DATA" || exit 99
  fi
  exec "$TEST_PROGRAM" "$@"
' sh "$@"
"#;
/// Options of `unshare` for a namespace in which one may mount, and those of `nsenter` to enter it.
const WAYS: [(&str, &[&str]); 2] = [
    ("--mount", &["--mount"]),
    (
        "--user --map-root-user --mount",
        &["--user", "--preserve-credentials", "--mount"],
    ),
];
/// What the system calls it.
const READ_ONLY: &str = "ead-only file system";

/// How servers are started here.
struct Namespaces {
    dir: tempfile::TempDir,
    unshare: &'static str,
    nsenter: &'static [&'static str],
}

impl Namespaces {
    /// `None` if none can be made in which one may mount.
    fn new() -> Option<Namespaces> {
        let dir = tempfile::tempdir().unwrap();
        let may_mount = |unshare: &str| {
            let mut command = Command::new("unshare");
            command.args(unshare.split(' '));
            command.args(["sh", "-c", r#"mount --bind "$1" "$1""#, "sh"]);
            let done = command.arg(dir.path()).output();
            done.is_ok_and(|output| output.status.success())
        };
        let Some((unshare, nsenter)) = WAYS.into_iter().find(|(unshare, _)| may_mount(unshare))
        else {
            testkit::skipped("no mount namespace can be made here: read-only file systems");
            return None;
        };
        let script = dir.path().join("start");
        std::fs::write(&script, SCRIPT).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o700)).unwrap();
        Some(Namespaces {
            dir,
            unshare,
            nsenter,
        })
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The file by which a start finds the data directory read-only.
    fn mark(&self) -> PathBuf {
        self.dir.path().join("read-only")
    }

    fn setup(&self) -> Setup {
        let path = |path: PathBuf| path.to_str().unwrap().to_owned();
        small()
            .program(&self.dir.path().join("start"))
            .variable("TEST_UNSHARE", self.unshare)
            .variable("TEST_READ_ONLY", &path(self.mark()))
            .variable("TEST_DATA", &path(self.data()))
            .variable("TEST_PROGRAM", program().to_str().unwrap())
    }

    /// Runs a line of the shell, with `$1`, where the server sees its files.
    fn run_in(&self, server: &Server, line: &str, directory: &Path) -> Result<(), String> {
        let process = server.pid().to_string();
        let target = ["--target", process.as_str()];
        let shell = ["sh", "-c", line, "sh"];
        let arguments = target.iter().chain(self.nsenter).chain(&shell);
        let arguments: Vec<_> = arguments.map(Path::new).chain([directory]).collect();
        run("nsenter", &arguments)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_becomes_read_only_stops_appends_with_the_cause_until_it_can_be_written() {
    let Some(namespaces) = Namespaces::new() else {
        return;
    };
    let data_dir = namespaces.data();
    for directory in ["db", "log"] {
        let setup = namespaces.setup();
        let mut server = with_a_stream(&setup, &data_dir).await;
        let at = data_dir.join(directory);
        let line = r#"mount --bind "$1" "$1" && mount -o remount,bind,ro "$1""#;
        namespaces.run_in(&server, line, &at).unwrap();
        let filled = fill(&server.http2()).await;
        assert!(filled.health.contains(READ_ONLY), "{}", filled.health);
        is_live_and_not_ready(&server).await;
        // What was acknowledged is read meanwhile.
        let (number, seq_num) = *filled.acked.last().unwrap();
        let path = format!("/v1/streams/orders/records?seq_num={seq_num}&count=1");
        let read = server.http2().get(&path).basin("test-basin").send().await;
        let read = read.expect(200).text();
        assert!(read.contains(&format!("\"{number} ")), "{number}: {read}");
        namespaces
            .run_in(&server, r#"umount --lazy "$1""#, &at)
            .unwrap();
        goes_on(&mut server, &setup, filled).await;
        server.stop().await;
        std::fs::remove_dir_all(&data_dir).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_on_a_read_only_file_system_is_refused_with_the_cause_and_changes_nothing() {
    let Some(namespaces) = Namespaces::new() else {
        return;
    };
    let (setup, data_dir) = (namespaces.setup(), namespaces.data());
    let mut server = with_a_stream(&setup, &data_dir).await;
    let mut filled = Filled::default();
    let http = server.http2();
    for number in 0..20 {
        let answer = crate::small_disk::append(&http, number, 100_000, crate::support::SOON).await;
        let answer = answer.unwrap().expect(200).json();
        let seq_num = answer["start"]["seq_num"].as_u64().unwrap();
        filled.acked.push((number, seq_num));
    }
    server.kill();
    std::fs::write(namespaces.mark(), "").unwrap();
    let (code, log) = setup.start_refused(&data_dir).await;
    assert!(code != 0 && code != 99, "{code}: {log}");
    assert!(log.contains(READ_ONLY), "{log}");
    std::fs::remove_file(namespaces.mark()).unwrap();
    server.restart(&setup).await;
    goes_on(&mut server, &setup, filled).await;
}
