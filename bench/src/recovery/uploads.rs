//! Bytes uploaded per newly written byte, over a number of snapshots, and the disk that live data takes.

use std::{
    collections::HashSet, fs, io, os::unix::fs::MetadataExt as _, path::Path, time::Duration,
};

use bench_harness::page::{Figure, Section};
use clap::ValueEnum as _;

use super::{
    Bench, Retention, largest,
    load::{RECORD_OVERHEAD, Streams},
};
use crate::client::Batches;

const STREAMS: usize = 200;
const RECORDS: usize = 8;
const BODY: usize = 1024;
/// Batches that each stream gets in one delta.
const BATCHES: usize = 15;
/// Snapshots that are counted.
const SNAPSHOTS: usize = 40;
/// The largest snapshot may be so many times its delta.
const MAX_LARGEST: f64 = 2.0;
/// The database may be so many times what is live in it.
const MAX_DISK: f64 = 1.5;

const BYTES: &str = "esker_partition_store_snapshots_upload_bytes_total";
const COUNT: &str = "esker_partition_store_snapshots_upload_total";

impl Retention {
    /// Deltas that a stream keeps; `None` if it keeps all.
    fn kept(self, stream: usize) -> Option<usize> {
        match self {
            Self::Steady => Some(20),
            Self::Growing => None,
            Self::Unlike => Some(if stream.is_multiple_of(2) { 10 } else { 30 }),
        }
    }

    /// Deltas before counting begins: as many as any stream keeps.
    fn before(self) -> usize {
        (0..STREAMS)
            .map(|stream| self.kept(stream).unwrap_or(20))
            .max()
            .unwrap_or(20)
    }

    /// Where a stream is trimmed when it is to have its last deltas of so many; `None` if nowhere.
    fn trim(self, stream: usize, deltas: usize) -> Option<u64> {
        let gone = deltas.checked_sub(self.kept(stream)?)?;
        let before = self.before();
        // Trims are records themselves. There is one after the first deltas, if anything is trimmed then, and
        // one before each further delta.
        let first = usize::from(self.kept(stream)? <= before);
        let trims = match gone.checked_sub(before) {
            Some(further) => first + further + 1,
            None => 0,
        };
        Some((gone * BATCHES * RECORDS + trims) as u64)
    }

    fn what(self) -> &'static str {
        match self {
            Self::Steady => "steady: all streams keep the last 20 deltas",
            Self::Growing => "growing: nothing is trimmed",
            Self::Unlike => "unlike: half of the streams keep the last 10 deltas, half the last 30",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Growing => "growing",
            Self::Unlike => "unlike",
        }
    }

    /// The most that may be uploaded for one byte written, on average.
    fn most(self) -> f64 {
        match self {
            Self::Steady => 1.2,
            Self::Growing => 1.1,
            Self::Unlike => 1.5,
        }
    }
}

/// What one kind of retention gave.
struct Counted {
    /// Bytes uploaded for each byte written, by snapshot.
    uploaded: Vec<f64>,
    /// Bytes of the database for each live byte, after each snapshot.
    disk: Vec<f64>,
}

pub async fn measure(bench: &Bench) -> anyhow::Result<Section> {
    let chosen = match bench.retention.as_slice() {
        [] => Retention::value_variants(),
        some => some,
    };
    let mut figures = Vec::new();
    for retention in chosen {
        let Counted { uploaded, disk } = run(bench, *retention).await?;
        let name = retention.name();
        let average = uploaded.iter().sum::<f64>() / uploaded.len() as f64;
        let most = largest(&uploaded);
        let shown: Vec<_> = uploaded.iter().map(|r| format!("{r:.1}")).collect();
        let in_disk = largest(&disk);
        figures.extend([
            Figure::plain(
                format!(
                    "{}; average of {} snapshots",
                    retention.what(),
                    uploaded.len()
                ),
                format!("{average:.2}"),
            )
            .beside("Restate: about 12")
            .target(
                format!("≤ {}", retention.most()),
                average <= retention.most(),
            ),
            Figure::plain(format!("{name}: the largest of them"), format!("{most:.2}"))
                .target(format!("≤ {MAX_LARGEST}"), most <= MAX_LARGEST),
            Figure::plain(format!("{name}: each"), shown.join(" ")),
            Figure::plain(
                format!("{name}: files of the database ÷ live data, the largest after a snapshot"),
                format!("{in_disk:.2}"),
            )
            .beside(format!(
                "the last {:.2}",
                disk.last().copied().unwrap_or_default()
            ))
            .target(format!("≤ {MAX_DISK}"), in_disk <= MAX_DISK),
        ]);
    }
    let delta = STREAMS * BATCHES * RECORDS * (BODY + RECORD_OVERHEAD) / 1024 / 1024;
    Ok(Section {
        title: "Bytes uploaded ÷ bytes newly written, and disk".to_owned(),
        how: format!(
            "One partition, {STREAMS} streams, batches of {RECORDS} records of 1 KiB that do not \
             compress; 20 or 30 deltas of {delta} MiB beforehand, then one delta and one snapshot in \
             turn, with housekeeping at rest in between. `snapshot-kind = incremental`, \
             `num-retained = 3`. *Uploaded* is \
             `esker_partition_store_snapshots_upload_bytes_total`; *written* are the metered bytes \
             of appended records, as are live ones. The files are those of `db` and \
             `checkpoints` in the data directory."
        ),
        figures,
        ..Section::default()
    })
}

async fn run(bench: &Bench, retention: Retention) -> anyhow::Result<Counted> {
    let name = retention.name();
    let (setup, store) = bench.place(&format!("uploads-{name}")).await?;
    let in_delta = STREAMS * BATCHES;
    let before = retention.before();
    // A little less than a delta: its last entries may be those of the creation of streams.
    let due = in_delta * 99 / 100;
    let setup = setup.with([
        "partitions=1".to_owned(),
        "snapshots.snapshot-kind=incremental".to_owned(),
        "snapshots.num-retained=3".to_owned(),
        "snapshots.snapshot-interval=".to_owned(),
        format!("snapshots.snapshot-interval-num-records={due}"),
        "snapshots.recovery-budget=".to_owned(),
    ]);
    let base = setup.with([format!(
        "snapshots.snapshot-interval-num-records={}",
        in_delta * before * 2
    )]);
    let (server, _) = base.start(&[]).await?;
    let batches = Batches::new(RECORDS, BODY, 11)?;
    let streams = Streams::create(&server.url(), STREAMS).await?;
    streams.append(&batches, 0..in_delta * before).await?;
    streams
        .trim(|stream| retention.trim(stream, before))
        .await?;
    server.settle(Duration::from_secs(30)).await;
    server.kill();

    let (server, _) = setup.start(&[]).await?;
    server.settle(Duration::from_secs(20)).await;
    let streams = Streams::open(&server.url(), STREAMS).await?;
    // The base is due at once, and is not counted.
    let snapshot = async |before: f64| {
        server
            .wait(COUNT, Duration::from_secs(60), |now| now > before)
            .await?;
        server.settle(Duration::from_secs(20)).await;
        server.metric(COUNT).await
    };
    // A new repository has no snapshot yet, or that of a new partition.
    let mut count = snapshot(0.0).await?;
    let mut bytes = server.metric(BYTES).await?;
    let snapshots = if bench.run.quick { 3 } else { SNAPSHOTS };
    let written = (in_delta * RECORDS * (BODY + RECORD_OVERHEAD)) as f64;
    let mut counted = Counted {
        uploaded: Vec::new(),
        disk: Vec::new(),
    };
    for number in 0..snapshots {
        let begin = (before + number) * in_delta;
        streams
            .trim(|stream| retention.trim(stream, before + number + 1))
            .await?;
        streams.append(&batches, begin..begin + in_delta).await?;
        count = snapshot(count).await?;
        let now = server.metric(BYTES).await?;
        counted.uploaded.push((now - bytes) / written);
        bytes = now;
        let kept = |stream| retention.kept(stream).unwrap_or(before + number + 1);
        let deltas: usize = (0..STREAMS).map(kept).sum();
        let live = deltas as f64 * written / STREAMS as f64;
        counted.disk.push(disk_bytes(&setup.data)? as f64 / live);
        bench.run.note(format!(
            "{name} snapshot {}: {:.2} uploaded for 1 written, {:.2} on disk for 1 live; the store has {:?}",
            number + 1,
            counted.uploaded[number],
            counted.disk[number],
            store.size()
        ));
    }
    Ok(counted)
}

/// Bytes of the database and its local snapshots; a file with several links counts once.
fn disk_bytes(data: &Path) -> anyhow::Result<u64> {
    fn add(directory: &Path, seen: &mut HashSet<u64>) -> io::Result<u64> {
        let mut sum = 0;
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                // It was removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if meta.is_dir() {
                sum += add(&entry.path(), seen)?;
            } else if seen.insert(meta.ino()) {
                sum += meta.len();
            }
        }
        Ok(sum)
    }
    let mut seen = HashSet::new();
    let mut sum = 0;
    for part in ["db", "checkpoints"] {
        let directory = data.join(part);
        if directory.is_dir() {
            sum += add(&directory, &mut seen)?;
        }
    }
    Ok(sum)
}
