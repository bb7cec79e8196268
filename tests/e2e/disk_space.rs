//! The space of trimmed, expired and deleted records is returned to the disk.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use s2_sdk::types::{
    AppendInput, AppendRecord, AppendRecordBatch, CommandRecord, DeleteBasinInput,
    DeleteStreamInput, ReconfigureStreamInput, RetentionPolicy, StreamReconfiguration,
};

use crate::support::sdk::{self, basin_name, stream_name};
use crate::support::{Server, Setup};

const MIB: u64 = 1024 * 1024;

/// Bytes of all files below a directory. A file with several hard links counts once.
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
            // Already counted, or deleted meanwhile.
            _ => {}
        }
    }
    bytes
}

async fn shrinks(server: &Server, below: u64, what: &str) {
    let (db, log) = (server.data_dir().join("db"), server.data_dir().join("log"));
    // Files are deleted when they are compacted and purged, which takes a while on a busy machine.
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
    // An append that waits too long for space is refused, and retried.
    let s2 = server.persistent_sdk();
    let basin = sdk::basin(&s2, "test-basin").await;
    let doomed = sdk::basin(&s2, "doomed-basin").await;
    let kept = sdk::stream(&basin, "kept").await;
    let trimmed = sdk::stream(&basin, "trimmed").await;
    let expired = sdk::stream(&basin, "expired").await;
    let deleted = sdk::stream(&basin, "deleted").await;
    let dropped = sdk::stream(&doomed, "dropped").await;
    // 40 MiB each, interleaved, of bytes that do not compress.
    let noise: Vec<u8> = {
        use rand::{RngCore as _, SeedableRng as _};
        let mut noise = vec![0; 2_000_000];
        rand::rngs::StdRng::seed_from_u64(1).fill_bytes(&mut noise);
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

    // The remaining records are there, also after a restart.
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

/// Bounds of the space of a stream that is trimmed as it grows, however fast that is, in MiB. ARCHITECTURE.md
/// has the formula.
#[derive(Clone, Copy)]
struct SpaceBound {
    /// Bytes that readers can see.
    live: u64,
    write_buffer: u64,
    write_buffers_total: u64,
    segment: u64,
    /// The larger of `log.purge-threshold` and `snapshots.max-log-bytes`.
    log: u64,
    /// Bytes of appends in flight.
    inflight: u64,
}

impl SpaceBound {
    /// The database: live data and its copy while files are rewritten; deleted data that is not rewritten
    /// yet, and data that is written during the rewriting; and memtables.
    fn database(self) -> u64 {
        let set = 2 * self.write_buffer;
        let larger = set.max(self.live);
        2 * self.live + larger + set / 2 + larger + self.write_buffers_total
    }

    fn log(self) -> u64 {
        (self.log + 2 * self.segment) * 5 / 4 + self.log / 2 + self.inflight
    }

    /// The database, and earlier states of it in snapshots: the local snapshot and the one that it replaces,
    /// and the one that the repository retains beside the one that is put; and the reserve.
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
    // An append that waits too long for space is refused, and retried.
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
    // An append that has waited for the rewriting of files for this long continues without it.
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
