//! A disk that takes no more files, or disappears and comes back: a directory of it that is immutable, and a
//! mount that is taken away. Both need root; without it these tests print that and pass.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::small_disk::{Filled, append, append_at_last, complete, fill, small};
use crate::support::{SOON, Server, Setup, eventually, sdk};

pub fn run(program: &str, arguments: &[&Path]) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(arguments);
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        other => Err(format!("{command:?}: {other:?}")),
    }
}

/// A directory in which nothing can be created or removed, until this is dropped.
struct Immutable(PathBuf);

impl Immutable {
    fn set(directory: PathBuf) -> Option<Immutable> {
        match run("chattr", &[Path::new("+i"), &directory]) {
            Ok(()) => Some(Immutable(directory)),
            Err(why) => {
                testkit::skipped(&format!("no directory can be made immutable here: {why}"));
                None
            }
        }
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        let _ = run("chattr", &[Path::new("-i"), &self.0]);
    }
}

/// A directory that is mounted at another place, until this is dropped.
struct Mount {
    source: tempfile::TempDir,
    target: tempfile::TempDir,
}

impl Mount {
    /// `None` without the permission to mount.
    fn new() -> Option<Mount> {
        let mount = Mount {
            source: tempfile::tempdir().unwrap(),
            target: tempfile::tempdir().unwrap(),
        };
        match mount.attach() {
            Ok(()) => Some(mount),
            Err(why) => {
                testkit::skipped(&format!("nothing can be mounted here: {why}"));
                None
            }
        }
    }

    fn attach(&self) -> Result<(), String> {
        let bind = Path::new("--bind");
        run("mount", &[bind, self.source.path(), self.target.path()])
    }

    fn detach(&self) {
        run("umount", &[Path::new("-l"), self.target.path()]).unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = run("umount", &[Path::new("-l"), self.target.path()]);
    }
}

/// The server has been refusing appends, and the cause is gone.
pub async fn goes_on(server: &mut Server, setup: &Setup, filled: Filled) {
    let http = server.http2();
    eventually("it is ready again", async || {
        let ready = http.get("/health/ready").send().await;
        (ready.status == 200).then_some(())
    })
    .await;
    let Filled {
        mut acked, unknown, ..
    } = filled;
    acked.push((100_001, append_at_last(&http, 100_001).await));
    let damaged = server.data_dir().join("damaged");
    assert!(!damaged.exists(), "{damaged:?}");
    server.kill();
    server.restart(setup).await;
    let stream = server.sdk().basin(sdk::basin_name("test-basin"));
    let stream = stream.stream(sdk::stream_name("orders"));
    complete(&stream, &acked, &unknown).await;
}

pub async fn with_a_stream(setup: &Setup, data_dir: &Path) -> Server {
    let server = setup.start(data_dir).await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream(&basin, "orders").await;
    server
}

pub async fn is_live_and_not_ready(server: &Server) {
    let http = server.http1();
    // A flush or an upload that fails in between may be named first for a moment.
    eventually("it is not ready, because of its disk", async || {
        let ready = http.get("/health/ready").send().await.expect(503).json();
        (ready["reasons"][0]["code"] == "writes_refused").then_some(())
    })
    .await;
    http.get("/health/live").send().await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_takes_no_more_files_stops_appends_with_the_cause_until_it_takes_some() {
    for directory in ["db", "log"] {
        let parent = tempfile::tempdir().unwrap();
        let data_dir = parent.path().join("data");
        let setup = small();
        let mut server = with_a_stream(&setup, &data_dir).await;
        let Some(immutable) = Immutable::set(data_dir.join(directory)) else {
            return;
        };
        let filled = fill(&server.http2()).await;
        assert!(
            filled.health.contains("ermitted") || filled.health.contains("enied"),
            "{}",
            filled.health
        );
        is_live_and_not_ready(&server).await;
        drop(immutable);
        goes_on(&mut server, &setup, filled).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_disappears_stops_appends_with_the_cause_until_it_is_back() {
    let Some(mount) = Mount::new() else {
        return;
    };
    let data_dir = mount.target.path().join("data");
    let setup = small();
    let mut server = with_a_stream(&setup, &data_dir).await;
    append(&server.http2(), 100_000, 100, SOON)
        .await
        .unwrap()
        .expect(200);
    mount.detach();
    let mut filled = fill(&server.http2()).await;
    filled.acked.push((100_000, 0));
    assert!(filled.health.contains("o such file"), "{}", filled.health);
    is_live_and_not_ready(&server).await;
    // Nothing was begun where the disk was.
    let begun = fs::read_dir(mount.target.path()).unwrap();
    let begun: Vec<_> = begun.map(|entry| entry.unwrap().path()).collect();
    let inside = || -> std::io::Result<Vec<_>> {
        let entries = fs::read_dir(&data_dir)?;
        entries.map(|entry| Ok(entry?.file_name())).collect()
    };
    assert!(begun.is_empty(), "{begun:?}: {:?}", inside());
    mount.attach().unwrap();
    goes_on(&mut server, &setup, filled).await;
}
