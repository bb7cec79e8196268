//! One measured operation, in its own process, so that its memory and its CPU time can be measured.

use std::io::{self, Read, Write};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use esker_follow::folds::Latest;
use esker_follow::{ApplyError, Encoding, External, Fold, Follower, S2Endpoint, SequencedRecord};
use esker_repository::Destination;
use esker_repository::destination::DestinationOptions;
use futures::StreamExt as _;
use s2_sdk::append_session::AppendSessionConfig;
use s2_sdk::types::{
    AppendInput, AppendRecord, AppendRecordBatch, ReadFrom, ReadInput, ReadSessionConfig, ReadStart,
};
use serde_json::json;

use super::{BASIN, config};

/// Bytes of a record of the plain stream with which a framed snapshot is compared.
const RECORD: usize = (1 << 20) - 2048;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Operation {
    /// Opening a follower until it is caught up: the last record of each key.
    Follow,
    /// The same without anything to fold.
    Read,
    /// A snapshot in the stream, of so many bytes.
    Snapshot,
    /// Restoring it.
    Restore,
    /// So many bytes as plain records.
    PlainAppend,
    /// Reading them.
    PlainRead,
}

/// A hidden subcommand: the operation, and where.
#[derive(clap::Args, Clone, Debug)]
pub struct Step {
    #[arg(long)]
    pub operation: Operation,
    #[arg(long)]
    pub url: String,
    #[arg(long)]
    pub stream: String,
    #[arg(long, default_value_t = 0)]
    pub bytes: u64,
    /// A directory with snapshots.
    #[arg(long)]
    pub external: Option<String>,
}

/// The result of an operation.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Done {
    pub seconds: f64,
    pub records: u64,
    pub bytes: u64,
    pub cpu_seconds: f64,
    /// Most resident memory beyond what the process had when it began.
    pub extra_mib: f64,
}

impl Step {
    /// Runs the operation in a new process.
    pub async fn run(&self) -> anyhow::Result<Done> {
        let mut command = tokio::process::Command::from(Command::new(std::env::current_exe()?));
        let operation = self.operation.to_possible_value().context("a name")?;
        command
            .args(["follow-step", "--operation", operation.get_name()])
            .args(["--url", &self.url, "--stream", &self.stream])
            .args(["--bytes", &self.bytes.to_string()])
            .kill_on_drop(true);
        if let Some(external) = &self.external {
            command.args(["--external", external]);
        }
        let output = command.output().await?;
        ensure!(
            output.status.success(),
            "{operation:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// A state of a given size that no record changes.
#[derive(Clone, Debug)]
struct Filler {
    bytes: u64,
}

impl Fold for Filler {
    fn name(&self) -> &str {
        "filler"
    }

    fn apply(&mut self, _: &SequencedRecord) -> Result<(), ApplyError> {
        Ok(())
    }

    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut block = vec![0_u8; 64 << 10];
        let mut left = self.bytes;
        let mut word = 0x9E37_79B9_7F4A_7C15_u64;
        while left > 0 {
            for eight in block.chunks_exact_mut(8) {
                word ^= word << 13;
                word ^= word >> 7;
                word ^= word << 17;
                eight.copy_from_slice(&word.to_le_bytes());
            }
            let some = block.len().min(left as usize);
            out.write_all(&block[..some])?;
            left -= some as u64;
        }
        Ok(())
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        self.bytes = io::copy(from, &mut io::sink())?;
        Ok(())
    }
}

/// Runs the operation in this process.
pub async fn run(step: Step) -> anyhow::Result<ExitCode> {
    let (_, before) = memory();
    let begun = Instant::now();
    let (records, bytes) = perform(&step).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let (most, _) = memory();
    let done = Done {
        seconds,
        records,
        bytes,
        cpu_seconds: bench_harness::machine::cpu_ticks(std::process::id())? as f64 / 100.0,
        extra_mib: most - before,
    };
    println!("{}", json!(done));
    Ok(ExitCode::SUCCESS)
}

async fn perform(step: &Step) -> anyhow::Result<(u64, u64)> {
    let endpoint = S2Endpoint::new(config(&step.url)?, BASIN.parse()?, step.stream.parse()?)?;
    match step.operation {
        Operation::Follow => {
            let builder = Follower::builder(endpoint, Latest::by("/id")?);
            let builder = match &step.external {
                Some(dir) => {
                    let place = Destination::open(dir, &DestinationOptions::default())?;
                    builder.external(External::new(place.store().clone(), place.prefix().clone()))
                }
                None => builder,
            };
            let follower = builder.open().await?;
            follower.caught_up().await?;
            let status = follower.status();
            let restored = follower.restored().map_or(0, |snapshot| snapshot.bytes);
            Ok((status.applied, status.bytes + restored))
        }
        Operation::Read | Operation::PlainRead => read(step).await,
        Operation::Snapshot => {
            let fold = Filler { bytes: step.bytes };
            let follower = Follower::builder(endpoint, fold)
                .in_stream()
                .encoding(Encoding::None)
                .open()
                .await?;
            follower.caught_up().await?;
            let taken = follower.snapshot().await?;
            Ok((1, taken.bytes))
        }
        Operation::Restore => {
            let follower = Follower::builder(endpoint, Filler { bytes: 0 })
                .open()
                .await?;
            follower.caught_up().await?;
            let view = follower.view().await?;
            Ok((1, view.state.bytes))
        }
        Operation::PlainAppend => {
            let stream = stream(step)?;
            let config = AppendSessionConfig::new().with_max_unacked_bytes(8 << 20)?;
            let session = stream.append_session(config);
            // The state does not compress, and no two are the same.
            let mut state = Vec::new();
            Filler {
                bytes: 32 * RECORD as u64,
            }
            .snapshot(&mut state)?;
            let state = bytes::Bytes::from(state);
            let records = step.bytes.div_ceil(RECORD as u64);
            for n in 0..records as usize {
                let at = n % 32 * RECORD;
                let record = AppendRecord::new(state.slice(at..at + RECORD))?;
                let batch = AppendRecordBatch::try_from_iter([record])?;
                session.submit(AppendInput::new(batch)).await?;
            }
            session.close().await?;
            Ok((records, records * RECORD as u64))
        }
    }
}

fn stream(step: &Step) -> anyhow::Result<s2_sdk::S2Stream> {
    let s2 = s2_sdk::S2::new(config(&step.url)?)?;
    Ok(s2.basin(BASIN.parse()?).stream(step.stream.parse()?))
}

/// Reads a stream from its head to its tail with the official client, and does nothing else.
async fn read(step: &Step) -> anyhow::Result<(u64, u64)> {
    let stream = stream(step)?;
    let tail = stream.check_tail().await?.seq_num;
    let start = ReadStart::new().with_from(ReadFrom::SeqNum(0));
    let input = ReadInput::new().with_start(start);
    let mut session = stream.read_session(input, ReadSessionConfig::new()).await?;
    let (mut records, mut bytes, mut next) = (0, 0, 0);
    while next < tail {
        let Some(batch) = session.next().await else {
            break;
        };
        for record in batch?.records {
            records += 1;
            bytes += record.body.len() as u64;
            next = record.seq_num + 1;
        }
    }
    Ok((records, bytes))
}

/// Most and present resident memory of this process, in MiB.
fn memory() -> (f64, f64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0)
    };
    (kib("VmHWM:") / 1024.0, kib("VmRSS:") / 1024.0)
}
