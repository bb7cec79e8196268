//! A disk that does not answer: writes neither succeed nor fail.
//!
//! A file system on a loop device is frozen (`fsfreeze`), which needs root; without root, these tests print
//! that and pass. It is thawed when its owner is dropped, and by a separate process after a minute, even if
//! the test is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngCore as _, SeedableRng as _};
use rustix::process::Signal;
use tokio::net::TcpStream;

use crate::runbook::assert_shown;
use crate::small_disk::{append, small};
use crate::support::sdk::{self, basin_name, stream_name};
use crate::support::{SOON, Server, eventually, in_time, within};

/// Time after which a file system is thawed even if the test has not ended.
const THAW_AFTER: Duration = Duration::from_secs(60);

/// A file system on a loop device; it is removed when this is dropped.
pub struct LoopDisk {
    dir: tempfile::TempDir,
}

/// Frozen until it is dropped.
pub struct Frozen {
    path: PathBuf,
    watchdog: Child,
}

fn run(command: &mut Command) -> Result<(), String> {
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        other => Err(format!("{command:?}: {other:?}")),
    }
}

impl LoopDisk {
    /// `None` without the permission to mount.
    pub fn mount(mib: u64) -> Option<LoopDisk> {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let mounted = dir.path().join("mounted");
        fs::create_dir(&mounted).unwrap();
        let file = fs::File::create(&image).unwrap();
        file.set_len(mib << 20).unwrap();
        let made = run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image));
        let made = made.and_then(|()| {
            let mut mount = Command::new("mount");
            run(mount.args(["-o", "loop"]).arg(&image).arg(&mounted))
        });
        match made {
            Ok(()) => Some(LoopDisk { dir }),
            Err(why) => {
                testkit::skipped(&format!("a loop device cannot be mounted here: {why}"));
                None
            }
        }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    pub fn freeze(&self) -> Frozen {
        let path = self.path();
        // The watchdog starts first, so that nothing stays frozen.
        let watchdog = Command::new("sh")
            .arg("-c")
            .arg("sleep \"$1\"; exec fsfreeze -u \"$2\" 2>/dev/null")
            .args(["thaw", &THAW_AFTER.as_secs().to_string()])
            .arg(&path)
            .spawn()
            .unwrap();
        let frozen = Frozen { path, watchdog };
        run(Command::new("fsfreeze").arg("-f").arg(&frozen.path)).unwrap();
        frozen
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = run(Command::new("fsfreeze").arg("-u").arg(&self.path));
        let _ = self.watchdog.kill();
        let _ = self.watchdog.wait();
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let path = self.path();
        if run(Command::new("umount").arg(&path)).is_err() {
            let _ = run(Command::new("umount").arg("-l").arg(&path));
        }
    }
}

/// Whether a process has ended, as far as possible: threads that wait for the disk cannot be ended, and until
/// the disk is thawed the system keeps an entry of the process.
fn has_ended(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return true;
    };
    let state = stat.rsplit(") ").next().unwrap();
    state.starts_with('Z') || state.starts_with('X')
}

/// What is under way when the disk begins to hang.
#[derive(Clone, Copy, Debug)]
enum Busy {
    Append,
    Upload,
}

/// Freezes the disk with something under way, and asks the server to stop. Returns how long that took.
async fn stopped_on_a_frozen_disk(
    disk: &LoopDisk,
    data_dir: &Path,
    grace: u32,
    busy: Busy,
) -> Duration {
    // An upload takes longer than the test.
    let setup = small()
        .set(&format!("shutdown-grace={grace}s"))
        .set("snapshots.upload-rate=1MiB");
    let mut server = setup.start(data_dir).await;
    let basin = server.sdk().basin(basin_name("test-basin"));
    let stream = basin.stream(stream_name("orders"));
    let mut noise = vec![0; 1_000_000];
    StdRng::seed_from_u64(1).fill_bytes(&mut noise);
    for _ in 0..20 {
        sdk::append(&stream, [&noise]).await;
    }
    let http = server.http2();
    if let Busy::Upload = busy {
        let http = server.http1();
        tokio::spawn(async move {
            let path = "/esker/v1/partitions/1/snapshots";
            let _ = http.post(path).try_send().await;
        });
        eventually("an upload is under way", async || {
            holds_records(&data_dir.join("repository")).then_some(())
        })
        .await;
    }
    let frozen = disk.freeze();
    let hanging = tokio::spawn(async move {
        if let Busy::Append = busy {
            let body = serde_json::json!({"records": [{"body": "x".repeat(500_000)}]});
            let path = "/v1/streams/orders/records";
            // The request is not answered, because the server ends.
            let _ = http
                .post(path)
                .basin("test-basin")
                .json(&body)
                .try_send()
                .await;
        }
    });
    let mut waiting = BTreeMap::new();
    eventually("a thread waits for the disk", async || {
        // Whoever waits for another disk, or for memory, goes on before.
        let is_frozen = |since: &Instant| since.elapsed() >= Duration::from_millis(500);
        waiting_since(&server, &mut waiting);
        waiting.values().any(is_frozen).then_some(())
    })
    .await;
    let asked = Instant::now();
    server.signal(Signal::TERM);
    eventually("the process has ended", async || {
        has_ended(server.pid()).then_some(())
    })
    .await;
    let took = asked.elapsed();
    assert!(
        TcpStream::connect(server.address()).await.is_err(),
        "nobody is taken in any more"
    );
    let given_up = server.log().iter().any(|line| line.contains("given up"));
    assert!(given_up, "what was given up is named");
    drop(frozen);
    let status = server.wait().await;
    assert!(status.success(), "{status}");
    hanging.abort();
    took
}

/// Whether a file with a stream's records is below a directory.
fn holds_records(dir: &Path) -> bool {
    let mut entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.any(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => holds_records(&entry.path()),
        Ok(meta) => meta.len() > 100_000,
        // Deleted meanwhile.
        Err(_) => false,
    })
}

/// Notes since when threads of the server have been in an uninterruptible wait.
fn waiting_since(server: &Server, waiting: &mut BTreeMap<OsString, Instant>) {
    let tasks = fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    let waits = |task: &fs::DirEntry| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|s| s.starts_with('D'))
    };
    let now: BTreeSet<OsString> = tasks
        .flatten()
        .filter(waits)
        .map(|it| it.file_name())
        .collect();
    waiting.retain(|thread, _| now.contains(thread));
    for thread in now {
        waiting.entry(thread).or_insert_with(Instant::now);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_disk_that_hangs_a_stop_ends_within_the_grace_and_nothing_acknowledged_is_lost() {
    let Some(disk) = LoopDisk::mount(1024) else {
        return;
    };
    let data_dir = disk.path().join("data");
    let mut server = small().start(&data_dir).await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    sdk::append(&stream, ["acknowledged"]).await;
    server.stop().await;

    let grace = 2;
    // The grace period, and 5 s to close the database and the log; the rest is for a slow machine.
    let most = Duration::from_secs(u64::from(grace) + 5 + 3);
    for busy in [Busy::Append, Busy::Upload] {
        in_time("a stop on a disk that hangs", async |_| {
            let took = stopped_on_a_frozen_disk(&disk, &data_dir, grace, busy).await;
            within(took, most)
        })
        .await;
    }

    let server = small().start(&data_dir).await;
    let basin = server.sdk().basin(basin_name("test-basin"));
    let records = sdk::read_all(&basin.stream(stream_name("orders"))).await;
    assert_eq!(&records[0].body[..], b"acknowledged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_hangs_makes_the_server_unhealthy_and_appends_go_on_when_it_answers() {
    let Some(disk) = LoopDisk::mount(256) else {
        return;
    };
    let data_dir = disk.path().join("data");
    let server = small().start(&data_dir).await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream(&basin, "orders").await;
    let http = server.http2();
    let frozen = disk.freeze();
    let (answer, health) = tokio::join!(append(&http, 1, 100, 2 * SOON), async {
        eventually("health names the disk", async || {
            let health = http.get("/health").send().await;
            let text = health.text();
            (health.status == 503 && text.contains("has not answered")).then_some(text)
        })
        .await
    });
    assert_shown(&health, &data_dir);
    let ready = http.get("/health/ready").send().await.expect(503).json();
    assert_eq!(ready["reasons"][0]["code"], "disk_hangs", "{ready}");
    http.get("/health/live").send().await.expect(200);
    // The client gets an answer before it gives up: the append may still happen.
    let answer = answer.expect("an answer").refused(500, "other");
    assert!(
        answer.text().contains("has not answered"),
        "{}",
        answer.text()
    );
    drop(frozen);
    eventually("health is back", async || {
        let health = http.get("/health").send().await;
        (health.status == 200).then_some(())
    })
    .await;
    let answer = append(&http, 2, 100, SOON).await.expect("an answer");
    let start = answer.expect(200).json()["start"]["seq_num"].as_u64();
    assert_eq!(start, Some(1), "the first is there");
}
