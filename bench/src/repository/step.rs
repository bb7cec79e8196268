//! One measured operation, in its own process.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::ValueEnum;
use esker_repository::checkpoint::Source;
use esker_repository::destination::DestinationOptions;
use esker_repository::layout::shared_file;
use esker_repository::{
    Checkpoint, Cluster, Destination, Digest, Digests, Generation, Kind, Lsn, Options, PartitionId,
    Progress, Repository, Which,
};
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt as _};
use serde_json::json;

use super::counting::Counting;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Operation {
    PutFull,
    PutIncremental,
    Restore,
    Verify,
    Sweep,
}

/// A hidden subcommand: the operation, and where.
#[derive(clap::Args, Clone, Debug)]
pub struct Step {
    #[arg(long)]
    pub operation: Operation,
    #[arg(long)]
    pub repository: PathBuf,
    #[arg(long)]
    pub directory: Option<PathBuf>,
    #[arg(long)]
    pub digests: Option<PathBuf>,
    #[arg(long, default_value_t = 0)]
    pub lsn: u64,
    #[arg(long, default_value_t = 0)]
    pub objects: usize,
}

/// The result of an operation.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Done {
    pub seconds: f64,
    pub extra_mib: f64,
    pub requests: u64,
    pub allowed_requests: u64,
    pub bytes: u64,
}

impl Step {
    /// Runs the operation in a new process.
    pub fn run(&self) -> anyhow::Result<Done> {
        let operation = self.operation.to_possible_value();
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("repository-step")
            .arg("--operation")
            .arg(operation.as_ref().map_or("", |v| v.get_name()))
            .arg("--repository")
            .arg(&self.repository)
            .args(["--lsn", &self.lsn.to_string()])
            .args(["--objects", &self.objects.to_string()]);
        if let Some(directory) = &self.directory {
            command.arg("--directory").arg(directory);
        }
        if let Some(digests) = &self.digests {
            command.arg("--digests").arg(digests);
        }
        let output = command.stderr(std::process::Stdio::inherit()).output()?;
        ensure!(output.status.success(), "{:?} failed", self.operation);
        serde_json::from_slice(&output.stdout).context("a step's answer")
    }
}

/// The peak of this process's resident set so far, and what it is now, in MiB.
fn memory() -> (f64, f64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix("kB"))
            .and_then(|n| n.trim().parse::<f64>().ok())
            .unwrap_or_default()
    };
    (kib("VmHWM:") / 1024.0, kib("VmRSS:") / 1024.0)
}

/// Runs the operation in this process.
pub async fn run(step: Step) -> anyhow::Result<ExitCode> {
    let done = perform(&step).await?;
    println!("{}", json!(done));
    Ok(ExitCode::SUCCESS)
}

fn options(kind: Kind) -> Options {
    Options {
        cluster: Some(Cluster {
            name: "bench".to_owned(),
            fingerprint: None,
            node_name: "bench".to_owned(),
        }),
        kind,
        // Retention is measured separately; no snapshot is released here.
        num_retained: std::num::NonZeroU32::new(100),
        orphan_min_age: Duration::ZERO,
        ..Options::default()
    }
}

async fn perform(step: &Step) -> anyhow::Result<Done> {
    if step.operation == Operation::Sweep {
        return sweep(step.objects).await;
    }
    let settings = DestinationOptions {
        hard_links: false,
        ..DestinationOptions::default()
    };
    let url = step.repository.display().to_string();
    let local = Destination::open(&url, &settings)?;
    let counting = Arc::new(Counting::new(local.store().clone()));
    let store: Arc<dyn ObjectStore> = counting.clone();
    let destination = Destination::of_store(store, local.prefix().clone(), url);
    let kind = match step.operation {
        Operation::PutIncremental => Kind::Incremental,
        _ => Kind::Full,
    };
    let repository = Repository::new(&destination, PartitionId(0), options(kind));
    let progress = Progress::new();
    let directory = step.directory.clone().unwrap_or_default();
    let (_, before) = memory();
    let started = Instant::now();
    let mut done = Done {
        seconds: 0.0,
        extra_mib: 0.0,
        requests: 0,
        allowed_requests: 0,
        bytes: 0,
    };
    match step.operation {
        Operation::PutFull | Operation::PutIncremental => {
            let digests = match &step.digests {
                Some(path) => Digests::load(path),
                None => Digests::new(),
            };
            let checkpoint = Checkpoint::scan(&directory, Lsn(step.lsn), digests.clone())?;
            let put = repository.put(&checkpoint, &progress).await?;
            if let Some(path) = &step.digests {
                digests.save(path)?;
            }
            done.bytes = put.bytes_uploaded;
            done.allowed_requests = 6 + counting.parts() + 2 * counting.multipart_uploads();
        }
        Operation::Restore => {
            repository
                .restore(&Which::Newest, &directory, &progress)
                .await?;
        }
        Operation::Verify => {
            let found = repository.verify(true, &progress).await?;
            ensure!(found.is_sound(), "{:?}", found.damaged);
        }
        Operation::Sweep => {}
    }
    done.seconds = started.elapsed().as_secs_f64();
    done.requests = counting.requests();
    done.extra_mib = memory().0 - before;
    Ok(done)
}

#[derive(Debug)]
struct One;

#[async_trait::async_trait]
impl Source for One {
    async fn read_at(&self, _name: &str, _offset: u64, len: usize) -> std::io::Result<Bytes> {
        Ok(Bytes::from(vec![7; len]))
    }
}

/// Measures a sweep of one snapshot and orphans.
async fn sweep(objects: usize) -> anyhow::Result<Done> {
    let memory_store = InMemory::new();
    for i in 0..objects {
        let name = shared_file(Digest::of(&i.to_le_bytes()), Generation(1));
        memory_store
            .put(&format!("0/{name}").into(), Bytes::from_static(b"x").into())
            .await?;
    }
    let counting = Arc::new(Counting::new(Arc::new(memory_store)));
    let store: Arc<dyn ObjectStore> = counting.clone();
    let destination = Destination::of_store(store, Default::default(), "memory://".to_owned());
    let repository = Repository::new(&destination, PartitionId(0), options(Kind::Incremental));
    let files = vec![esker_repository::metadata::FileMetadata::plain(
        "/000001.sst".to_owned(),
        100,
    )];
    let checkpoint = Checkpoint::new(Arc::new(One), files, Lsn(1));
    // A root beside existing objects: it is created below another prefix and copied.
    let seed: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let elsewhere = Destination::of_store(seed.clone(), Default::default(), "memory://".to_owned());
    Repository::new(&elsewhere, PartitionId(0), options(Kind::Incremental))
        .put(&checkpoint, &Progress::new())
        .await?;
    let mut listed = seed.list(None);
    while let Some(meta) = futures::StreamExt::next(&mut listed).await {
        let location = meta?.location;
        let bytes = seed.get(&location).await?.bytes().await?;
        counting.inner().put(&location, bytes.into()).await?;
    }
    let (_, before) = memory();
    let started = Instant::now();
    let swept = repository.sweep().await?;
    let seconds = started.elapsed().as_secs_f64();
    ensure!(swept.deleted == objects as u64, "{swept:?}");
    let pages = (objects as u64 + 3).div_ceil(1000);
    Ok(Done {
        seconds,
        extra_mib: memory().0 - before,
        requests: counting.requests(),
        // Pages, the root, one description, bulk deletes.
        allowed_requests: pages + 1 + 1 + (objects as u64).div_ceil(1000),
        bytes: swept.bytes,
    })
}
