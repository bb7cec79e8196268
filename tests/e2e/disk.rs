//! The disk: what happens when it is full, and that space comes back.
//!
//! A full disk needs a file system of a known size: a small `tmpfs`, which takes root. Without it
//! these tests say so and pass.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use s2_sdk::S2Stream;
use s2_sdk::types::{
    AppendInput, AppendRecord, AppendRecordBatch, CommandRecord, DeleteBasinInput,
    DeleteStreamInput, ReconfigureStreamInput, RetentionPolicy, StreamReconfiguration,
};
use serde_json::json;

use crate::recovery::runbook::stands;
use crate::support::http::Answer;
use crate::support::sdk::{self, basin_name, stream_name};
use crate::support::{Http, SOON, Server, Setup, eventually, in_time};

const MIB: u64 = 1024 * 1024;
const RECORDS: &str = "/v1/streams/orders/records";

/// A file system of a known size; goes with its owner.
pub struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    /// `None` if that is not allowed here.
    pub fn mount(mib: u64) -> Option<SmallDisk> {
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

    pub fn resize(&self, mib: u64) {
        let output = Command::new("mount")
            .args(["-o", &format!("remount,size={mib}m")])
            .arg(self.dir.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.dir.path()).output();
        if !unmounted.is_ok_and(|output| output.status.success()) {
            // Whatever still has it open goes soon.
            let _ = Command::new("umount")
                .arg("-l")
                .arg(self.dir.path())
                .output();
        }
    }
}

/// Small files, so that a disk of some MiB is filled at a byte's distance and not a segment's.
pub fn small() -> Setup {
    Setup::default()
        .partitions(1)
        .set("log.segment-size=1MiB")
        .set("log.purge-threshold=4MiB")
        .set("log.flush-after=1MiB")
        .set("store.write-buffer=1MiB")
        .set("store.write-buffers-total=2MiB")
}

pub async fn append(
    http: &Http,
    number: usize,
    bytes: usize,
    patience: Duration,
) -> Option<Answer> {
    let body = format!("{number} {}", "x".repeat(bytes));
    let sent = http
        .post(RECORDS)
        .basin("test-basin")
        .json(&json!({"records": [{"body": body}]}))
        .try_send();
    // One that waits is given up: its outcome is unknown.
    let answer = tokio::time::timeout(patience, sent).await.ok()?;
    Some(answer.unwrap())
}

/// What was appended until nothing more was taken.
#[derive(Default)]
pub struct Filled {
    /// Numbers that were acknowledged, with their places.
    pub acked: Vec<(usize, u64)>,
    /// Numbers whose outcome is unknown.
    pub unknown: Vec<usize>,
    next: usize,
    /// What the last append was refused with.
    pub refusal: String,
    /// What `/health` said then.
    pub health: String,
}

impl Filled {
    /// Appends until that is refused again and again, and `/health` is not OK: files that are merged or
    /// deleted meanwhile may give a little space back.
    pub async fn fill(&mut self, http: &Http) {
        let mut refused = 0;
        let deadline = Instant::now() + SOON;
        while self.next < 5000 && Instant::now() < deadline {
            let number = self.next;
            self.next += 1;
            match append(http, number, 100_000, Duration::from_secs(2)).await {
                Some(answer) if answer.status == 200 => {
                    let at = answer.json()["start"]["seq_num"].as_u64().unwrap();
                    self.acked.push((number, at));
                    refused = 0;
                }
                Some(answer) => {
                    self.refusal = answer.text();
                    // A refusal promises that nothing happened.
                    answer.refused(429, "rate_limited");
                    refused += 1;
                }
                None => self.unknown.push(number),
            }
            if refused >= 5 {
                let health = http.get("/health").send().await;
                if health.status == 503 {
                    self.health = health.text();
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        panic!("the disk was never full");
    }
}

/// A server to which nothing more can be appended.
pub async fn fill(http: &Http) -> Filled {
    let mut filled = Filled::default();
    filled.fill(http).await;
    filled
}

/// Appends as soon as that is possible; where.
pub async fn append_at_last(http: &Http, number: usize) -> u64 {
    eventually("appends are taken again", async || {
        let answer = append(http, number, 100_000, SOON).await.unwrap();
        if answer.status != 200 {
            // Nothing happened.
            answer.refused(429, "rate_limited");
            return None;
        }
        answer.json()["start"]["seq_num"].as_u64()
    })
    .await
}

/// Everything acknowledged is there, what is unknown is there at most once, what was refused not.
pub async fn complete(stream: &S2Stream, acked: &[(usize, u64)], unknown: &[usize]) {
    let records = sdk::read_all(stream).await;
    let numbers: Vec<usize> = records
        .iter()
        .map(|record| {
            let text = std::str::from_utf8(&record.body).unwrap();
            text.split(' ').next().unwrap().parse().unwrap()
        })
        .collect();
    for (number, at) in acked {
        assert_eq!(numbers[usize::try_from(*at).unwrap()], *number);
    }
    for number in &numbers {
        let times = numbers.iter().filter(|n| *n == number).count();
        assert_eq!(times, 1, "{number}");
        let known = acked.iter().any(|(n, _)| n == number) || unknown.contains(number);
        assert!(known, "{number} was refused, and is there");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_appends_and_nothing_else_and_service_resumes_by_itself() {
    let Some(disk) = SmallDisk::mount(40) else {
        return;
    };
    // Once by a larger disk, once by giving space back.
    for (round, ballast) in [false, true].into_iter().enumerate() {
        let data_dir = disk.path(&format!("data-{round}"));
        let ballast_file = disk.path("ballast");
        if ballast {
            disk.resize(80);
            fs::write(&ballast_file, vec![1; 30 << 20]).unwrap();
        }
        let mut server = small().start(&data_dir).await;
        let basin = sdk::basin(&server.sdk(), "test-basin").await;
        let stream = sdk::stream(&basin, "orders").await;
        let http = server.http2();
        let mut filled = fill(&http).await;
        assert!(filled.acked.len() > 20, "{}", filled.acked.len());

        // Reads go on, and health says what is the matter.
        let last = filled.acked.last().unwrap().1;
        let read = stream.read(sdk::from_seq(last, 1)).await.unwrap();
        assert_eq!(read.records[0].seq_num, last);
        assert!(stream.check_tail().await.unwrap().seq_num > last);
        assert!(filled.health.contains("disk"), "{}", filled.health);
        basin
            .get_stream_config(stream_name("orders"))
            .await
            .unwrap();
        let mut refused = false;
        for attempt in 0..20 {
            let path = format!("/v1/streams/another-{attempt}");
            let answer = http.put(&path).basin("test-basin").send().await;
            if answer.status == 201 {
                // There was a little space again.
                filled.fill(&http).await;
                continue;
            }
            answer.refused(429, "rate_limited");
            refused = true;
            break;
        }
        assert!(refused, "streams are created on a full disk");
        let Filled {
            mut acked, unknown, ..
        } = filled;

        if ballast {
            fs::remove_file(&ballast_file).unwrap();
        } else {
            disk.resize(80);
        }
        eventually("health is back", async || {
            let health = http.get("/health").send().await;
            (health.status == 200).then_some(())
        })
        .await;
        acked.push((100_000, append_at_last(&http, 100_000).await));
        complete(&stream, &acked, &unknown).await;
        // Snapshots of these servers are on the same disk, and one is kept.
        let advice = ["one_snapshot_retained", "repository_on_this_disk"];
        stands(&server, &advice, "space again").await;

        server.kill();
        server.restart(&small()).await;
        let stream = server
            .sdk()
            .basin(basin_name("test-basin"))
            .stream(stream_name("orders"));
        complete(&stream, &acked, &unknown).await;
        stands(&server, &advice, "started again").await;
        server.stop().await;
        fs::remove_dir_all(&data_dir).unwrap();
        disk.resize(40);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_on_a_full_disk_has_everything_when_there_is_space_again() {
    let Some(disk) = SmallDisk::mount(32) else {
        return;
    };
    let data_dir = disk.path("data");
    let mut server = small().start(&data_dir).await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream(&basin, "orders").await;
    let Filled { acked, unknown, .. } = fill(&server.http2()).await;
    server.kill();
    // On the full disk it may serve or refuse to start, but it must not lose anything.
    small()
        .start_and_kill(&data_dir, Duration::from_millis(700))
        .await;
    disk.resize(96);
    server.restart(&small()).await;
    let stream = server
        .sdk()
        .basin(basin_name("test-basin"))
        .stream(stream_name("orders"));
    complete(&stream, &acked, &unknown).await;
    sdk::append(&stream, [format!("{} x", 100_000)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_a_stop_gives_up_on_a_full_disk_is_not_called_harmless() {
    // Whether an append is under way when the disk turns out to be full is chance, and likely.
    in_time("an append under way on a full disk", async |_| {
        let Some(disk) = SmallDisk::mount(32) else {
            return Ok(());
        };
        match given_up_by_a_stop(&disk).await {
            0 => Err("nothing was under way".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
}

/// How many appends a stop left without knowing what became of them.
async fn given_up_by_a_stop(disk: &SmallDisk) -> usize {
    let setup = small().set("shutdown-grace=1s");
    let data_dir = disk.path("data");
    let mut server = setup.start(&data_dir).await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream(&basin, "orders").await;
    let http = server.http2();
    let http = &http;
    let taken = &AtomicU64::new(0);
    // Several at once: those that are under way when the disk turns out to be full wait. It becomes full
    // at once, and not by what they append: that would be refused before.
    let appends = (0..6).map(|client| async move {
        let mut last = None;
        for i in 0..1000 {
            let body = format!("{} {}", client * 1000 + i, "x".repeat(100_000));
            let answer = http
                .post(RECORDS)
                .basin("test-basin")
                .json(&json!({"records": [{"body": body}]}))
                .try_send()
                .await;
            match answer {
                Ok(answer) if answer.status == 200 => {
                    taken.fetch_add(1, Ordering::Relaxed);
                }
                Ok(answer) if answer.status == 429 => {
                    // The others wait, then.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                other => {
                    last = Some(other);
                    break;
                }
            }
        }
        last
    });
    let stop = async {
        eventually("appends are under way", async || {
            (taken.load(Ordering::Relaxed) >= 6).then_some(())
        })
        .await;
        // It finds the disk full, and does not see it become so.
        server.signal(Signal::STOP);
        let mut ballast = fs::File::create(disk.path("ballast")).unwrap();
        while std::io::Write::write_all(&mut ballast, &[1; 16 * 1024]).is_ok() {}
        server.signal(Signal::CONT);
        eventually("the disk is full", async || {
            let health = server.http1().get("/health").send().await;
            (health.status == 503).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.stop().await;
    };
    let (ends, ()) = tokio::join!(futures::future::join_all(appends), stop);
    let mut unknown = 0;
    for end in ends.into_iter().flatten() {
        match end {
            // It was refused because the server stops: nothing of it was under way.
            Ok(answer) if answer.status == 503 => {
                assert_eq!(answer.code(), "server_draining");
            }
            Ok(answer) => {
                answer.refused(500, "other");
                unknown += 1;
            }
            // No answer is no promise either.
            Err(_) => unknown += 1,
        }
    }
    unknown
}

/// Bytes of all files below a directory. A file that snapshots link to takes its space once.
fn size(dir: &Path) -> u64 {
    let mut seen = HashSet::new();
    size_of_unseen(dir, &mut seen)
}

fn size_of_unseen(dir: &Path, seen: &mut HashSet<u64>) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    let mut bytes = 0;
    for entry in entries.filter_map(Result::ok) {
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes += size_of_unseen(&entry.path(), seen),
            Ok(meta) if seen.insert(meta.ino()) => bytes += meta.len(),
            // Seen, or deleted in between.
            _ => {}
        }
    }
    bytes
}

async fn shrinks(server: &Server, below: u64, what: &str) {
    let (db, log) = (server.data_dir().join("db"), server.data_dir().join("log"));
    // Files go when they are compacted and purged; on a busy machine that takes its time.
    let deadline = Instant::now() + Duration::from_secs(300);
    loop {
        let now = (size(&db), size(&log));
        if now.0 + now.1 < below {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{what}: db/ has {} MiB and log/ {} MiB, not below {} MiB",
            now.0 / MIB,
            now.1 / MIB,
            below / MIB
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn space_of_what_was_trimmed_expired_and_deleted_returns_to_the_disk() {
    let setup = Setup::default()
        .partitions(1)
        .set("log.segment-size=2MiB")
        .set("log.purge-threshold=8MiB")
        .set("snapshots.max-log-bytes=8MiB")
        .set("log.flush-after=4MiB");
    let mut server = setup.start_fresh().await;
    let s2 = server.sdk();
    let basin = sdk::basin(&s2, "test-basin").await;
    let doomed = sdk::basin(&s2, "doomed-basin").await;
    let kept = sdk::stream(&basin, "kept").await;
    let trimmed = sdk::stream(&basin, "trimmed").await;
    let expired = sdk::stream(&basin, "expired").await;
    let deleted = sdk::stream(&basin, "deleted").await;
    let dropped = sdk::stream(&doomed, "dropped").await;
    // 40 MiB each, interleaved, of bytes that do not compress.
    let noise: Vec<u8> = {
        use rand::RngCore as _;
        let mut noise = vec![0; 2_000_000];
        rand::rng().fill_bytes(&mut noise);
        noise
    };
    for i in 0..42 {
        let body = &noise[i * 1000..i * 1000 + 1_000_000];
        for stream in [&trimmed, &expired, &deleted, &dropped] {
            sdk::append(stream, [body]).await;
        }
        sdk::append(&kept, [format!("{i}")]).await;
    }
    let full = size(server.data_dir());
    assert!(full > 150 * MIB, "{} MiB", full / MIB);

    let trim: AppendRecord = CommandRecord::trim(42).into();
    let batch = AppendRecordBatch::try_from_iter([trim]).unwrap();
    trimmed.append(AppendInput::new(batch)).await.unwrap();
    let age = StreamReconfiguration::new().with_retention_policy(RetentionPolicy::Age(1));
    basin
        .reconfigure_stream(ReconfigureStreamInput::new(stream_name("expired"), age))
        .await
        .unwrap();
    basin
        .delete_stream(DeleteStreamInput::new(stream_name("deleted")))
        .await
        .unwrap();
    s2.delete_basin(DeleteBasinInput::new(basin_name("doomed-basin")))
        .await
        .unwrap();
    shrinks(&server, 30 * MIB, "after trim, expiry and deletion").await;

    // What stays is there, also after a restart.
    for round in 0..2 {
        let basin = server.sdk().basin(basin_name("test-basin"));
        let kept = basin.stream(stream_name("kept"));
        let expected: Vec<String> = (0..42).map(|i| i.to_string()).collect();
        assert_eq!(sdk::bodies(&sdk::read_all(&kept).await), expected);
        let trimmed = basin.stream(stream_name("trimmed"));
        let left = sdk::read_all(&trimmed).await;
        assert_eq!(sdk::seq_nums(&left), [42], "the command itself");
        let expired = basin.stream(stream_name("expired"));
        assert_eq!(expired.check_tail().await.unwrap().seq_num, 42);
        assert!(sdk::read_all(&expired).await.is_empty());
        if round == 0 {
            server.kill();
            server.restart(&setup).await;
        }
    }
}

/// What a stream may take that is trimmed as it grows, in MiB, however fast that goes: ARCHITECTURE.md
/// has the formula.
#[derive(Clone, Copy)]
struct SpaceBound {
    /// What readers see.
    live: u64,
    write_buffer: u64,
    write_buffers_total: u64,
    segment: u64,
    /// The larger of `log.purge-threshold` and `snapshots.max-log-bytes`.
    log: u64,
    /// What is appended at a time.
    inflight: u64,
}

impl SpaceBound {
    /// The database: what is live and its copy while files are rewritten; what is deleted and not
    /// rewritten yet, and what is written beside the rewriting; what is in memory.
    fn database(self) -> u64 {
        let set = 2 * self.write_buffer;
        let larger = set.max(self.live);
        2 * self.live + larger + set / 2 + larger + self.write_buffers_total
    }

    fn log(self) -> u64 {
        (self.log + 2 * self.segment) * 5 / 4 + self.log / 2 + self.inflight
    }

    /// The database, and snapshots of it as it was: the local one and the one that it replaces, and the
    /// one that the repository retains beside the one that is put; and the reserve.
    fn all(self) -> u64 {
        4 * self.database() + self.log() + 2 * self.write_buffer
    }
}

/// Longest that an append waits for space.
const SPACE_TIMEOUT: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_trimmed_as_it_grows_keeps_the_disk_small() {
    let bound = SpaceBound {
        live: 2,
        write_buffer: 2,
        write_buffers_total: 8,
        segment: 2,
        log: 8,
        inflight: 2,
    };
    let setup = Setup::default()
        .partitions(1)
        .set("store.write-buffer=2MiB")
        .set("store.write-buffers-total=8MiB")
        .set("log.segment-size=2MiB")
        .set("log.purge-threshold=8MiB")
        .set("snapshots.max-log-bytes=8MiB")
        .set("log.flush-after=4MiB");
    let server = setup.start_fresh().await;
    // An append that waits for space in vain is refused, and comes again.
    let basin = sdk::basin(&server.persistent_sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    let mut largest = [0; 3];
    let mut late = 0;
    for i in 0..600u64 {
        let body = vec![(i % 251) as u8; 1_000_000];
        let records = [
            AppendRecord::new(body).unwrap(),
            CommandRecord::trim(i * 2).into(),
        ];
        let batch = AppendRecordBatch::try_from_iter(records).unwrap();
        let asked = Instant::now();
        stream.append(AppendInput::new(batch)).await.unwrap();
        late += u64::from(asked.elapsed() >= SPACE_TIMEOUT);
        if i % 5 == 0 {
            let parts = ["", "db", "log"].map(|part| size(&server.data_dir().join(part)));
            for (largest, now) in largest.iter_mut().zip(parts) {
                *largest = now.max(*largest);
            }
        }
    }
    // 600 MB went through.
    let [all, database, log] = largest.map(|bytes| bytes / MIB);
    let found = format!("{all} MiB in all, {database} in db/, {log} in log/");
    // One that has waited for the rewriting of files for so long goes on without it.
    let beyond = 2 * late;
    let most = bound.database() + beyond;
    assert!(database <= most, "{found}, not {most}");
    assert!(log <= bound.log(), "{found}, not {}", bound.log());
    let most = bound.all() + 4 * beyond;
    assert!(all <= most, "{found}, not {most}");
    let left = sdk::read_all(&stream).await;
    assert_eq!(sdk::seq_nums(&left), [1198, 1199]);
    let at_rest = bound.database() + bound.log();
    shrinks(&server, at_rest * MIB, "at rest").await;
}

pub fn durable(status: &serde_json::Value, partition: usize) -> (u64, u64) {
    let one = &status["partitions"][partition];
    let number = |name: &str| one[name].as_u64().unwrap();
    (number("durable"), number("applied"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_database_is_flushed_also_while_appends_wait_for_a_log_that_cannot_be_trimmed() {
    let setup = Setup::default()
        .partitions(1)
        .set("log.segment-size=1MiB")
        .set("log.purge-threshold=4MiB")
        .set("snapshots.max-log-bytes=4MiB")
        .set("log.flush-after=1MiB");
    let server = setup.start_fresh().await;
    // No local snapshot can be taken, so the log is needed.
    let checkpoints = server.data_dir().join("checkpoints");
    eventually(
        "one that is under way has its directory no more",
        async || {
            let _ = fs::remove_dir_all(&checkpoints);
            fs::write(&checkpoints, "not a directory").ok()
        },
    )
    .await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream(&basin, "orders").await;
    let http = server.http2();
    let mut refused = 0;
    for number in 0..500 {
        let answer = append(&http, number, 100_000, SOON).await.unwrap();
        refused = refused * usize::from(answer.status != 200) + usize::from(answer.status != 200);
        if refused == 2 {
            break;
        }
    }
    assert_eq!(refused, 2, "the log was never full");
    eventually("what is applied is in files", async || {
        let status = http.get("/esker/v1/status").send().await.expect(200).json();
        let (durable, applied) = durable(&status, 1);
        (applied > 20 && durable == applied).then_some(())
    })
    .await;
}

/// Fills a disk but for `left` bytes, if more than `reserve` are free.
fn leave(disk: &SmallDisk, left: u64, reserve: u64) {
    let stats = rustix::fs::statvfs(disk.dir.path()).unwrap();
    let free = stats.f_bavail * stats.f_frsize;
    if free > reserve {
        let ballast = vec![1; usize::try_from(free - left).unwrap()];
        let mut options = fs::File::options();
        let mut file = options
            .create(true)
            .append(true)
            .open(disk.path("ballast"))
            .unwrap();
        // Whatever takes space meanwhile gives it back.
        let _ = std::io::Write::write_all(&mut file, &ballast);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_on_a_nearly_full_disk_can_be_trimmed_and_appends_are_taken_again() {
    let Some(disk) = SmallDisk::mount(128) else {
        return;
    };
    let data_dir = disk.path("data");
    // Fewer files than are merged, and a reserve of 4 MiB.
    let setup = small().set("snapshots.snapshot-interval=1h");
    let server = setup.start(&data_dir).await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    let http = server.http2();
    for number in 0..200 {
        let answer = append(&http, number, 100_000, SOON).await.unwrap();
        answer.expect(200);
    }
    eventually("what is applied is in files", async || {
        let status = http.get("/esker/v1/status").send().await.expect(200).json();
        let (durable, applied) = durable(&status, 1);
        (durable == applied).then_some(())
    })
    .await;
    eventually("appends are refused", async || {
        // Files that were being merged give space back.
        leave(&disk, 5 * MIB / 2, 4 * MIB);
        let answer = append(&http, 1000, 10, SOON).await.unwrap();
        (answer.status == 429 && answer.text().contains("bytes free")).then_some(())
    })
    .await;

    let tail = stream.check_tail().await.unwrap().seq_num;
    let trim: AppendRecord = CommandRecord::trim(tail).into();
    let batch = AppendRecordBatch::try_from_iter([trim]).unwrap();
    stream.append(AppendInput::new(batch)).await.unwrap();
    eventually("appends are taken again", async || {
        let answer = append(&http, 100_000, 100_000, SOON).await.unwrap();
        (answer.status == 200).then_some(())
    })
    .await;
}
