//! A large snapshot of files to an empty follower, beside a plain copy of the same bytes.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::cluster::{Cluster, Memory, free_addresses};
use bench_harness::Run;
use bench_harness::page::{Figure, Section};
use bench_harness::stats::median_or_zero as median;

use crate::{host, payload, wait_for};

/// Bytes that the plain copy reads and writes at once.
const PIECE: usize = 1 << 20;

/// What the receiving end of a plain copy is told.
#[derive(Clone, Debug, clap::Args)]
pub struct TakeArgs {
    #[arg(long)]
    listen: SocketAddr,
    /// Where what comes is written.
    #[arg(long)]
    file: PathBuf,
}

/// Accepts one connection, writes what arrives, syncs it, and answers.
pub fn take(args: TakeArgs) -> anyhow::Result<()> {
    let (mut stream, _) = TcpListener::bind(args.listen)?.accept()?;
    let mut file = File::create(&args.file)?;
    let mut piece = vec![0; PIECE];
    loop {
        match stream.read(&mut piece)? {
            0 => break,
            n => file.write_all(&piece[..n])?,
        }
    }
    file.sync_all()?;
    Ok(stream.write_all(b"+")?)
}

/// Seconds for a plain copy of all files of a directory.
fn copy(bench: &Run, from: &Path) -> anyhow::Result<f64> {
    let address = free_addresses(1)?.concat();
    let target = bench.scratch.join("copied");
    let mut receiver = Command::new(std::env::current_exe()?)
        .args(["take", "--listen", &address, "--file"])
        .arg(&target)
        .stdout(Stdio::null())
        .spawn()?;
    let mut stream = wait_for("the copy's receiver", Duration::from_secs(10), || {
        Ok(TcpStream::connect(&address).ok())
    })?;
    let began = Instant::now();
    let mut piece = vec![0; PIECE];
    let mut names: Vec<_> = std::fs::read_dir(from)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    names.sort();
    for name in names {
        let mut file = File::open(name)?;
        loop {
            match file.read(&mut piece)? {
                0 => break,
                n => stream.write_all(&piece[..n])?,
            }
        }
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut done = [0];
    stream.read_exact(&mut done).context("the copy")?;
    let took = began.elapsed().as_secs_f64();
    receiver.wait()?;
    std::fs::remove_file(target)?;
    Ok(took)
}

struct Transfer {
    seconds: f64,
    sender: f64,
    receiver: f64,
    bytes: u64,
}

/// Transfers a snapshot: member 1 has one and no log before it; `id` joins with nothing.
fn transfer(bench: &Run, cluster: &mut Cluster, id: u64) -> anyhow::Result<Transfer> {
    let before = cluster.status(1)?;
    cluster.start(id, &[])?;
    std::thread::sleep(Duration::from_millis(300));
    let (sender, receiver) = (
        Memory::begin(cluster.pid(1))?,
        Memory::begin(cluster.pid(id))?,
    );
    cluster
        .client(1)?
        .ask(crate::wire::ADD_LEARNER, &id.to_le_bytes())?;
    let mut follower = cluster.client(id)?;
    wait_for(
        "the snapshot is installed",
        Duration::from_secs(110),
        || {
            let status = follower.status()?;
            Ok((status.snapshots_received > 0 && status.applied >= before.floor).then_some(()))
        },
    )?;
    let seconds = receiver.began.elapsed().as_secs_f64();
    let done = Transfer {
        seconds,
        sender: sender.extra()?,
        receiver: receiver.extra()?,
        bytes: cluster.status(1)?.bytes_sent - before.bytes_sent,
    };
    bench.note(format!(
        "transfer: {seconds:.2} s, {} bytes sent, {:.0} and {:.0} MiB more memory",
        done.bytes, done.sender, done.receiver
    ));
    Ok(done)
}

pub fn measure(bench: &Run) -> anyhow::Result<Section> {
    let dir = bench.dir("transfer")?;
    let (payload, bytes) = (dir.join("payload"), payload(bench));
    host::make_payload(&payload, bytes)?;
    let mut cluster = Cluster::new(&dir, 1 + bench.runs as u64)?;
    let path = payload.to_string_lossy().into_owned();
    cluster.start(1, &["--founders", "1", "--payload", &path])?;
    cluster.leader()?;
    let mut leader = cluster.client(1)?;
    for n in 0..100 {
        leader.ask(crate::wire::PROPOSE, &host::command(n, &[b'v'; 256]))?;
    }
    // The snapshot is written, hashed and synced before anything is measured.
    leader.ask(crate::wire::SNAPSHOT, &[])?;
    wait_for("the log is compacted", Duration::from_secs(30), || {
        let status = leader.status()?;
        Ok((status.log_start >= 100).then_some(()))
    })?;
    let (mut copies, mut transfers) = (Vec::new(), Vec::new());
    for run in 0..bench.runs as u64 {
        copies.push(copy(bench, &payload)?);
        bench.note(format!("plain copy: {:.2} s", copies[run as usize]));
        transfers.push(transfer(bench, &mut cluster, 2 + run)?);
        cluster.kill(2 + run)?;
        std::fs::remove_dir_all(dir.join((2 + run).to_string()))?;
    }
    let most = |of: fn(&Transfer) -> f64| transfers.iter().map(of).fold(0.0, f64::max);
    let (sender, receiver) = (most(|t| t.sender), most(|t| t.receiver));
    let (ours, plain) = (
        median(&transfers.iter().map(|t| t.seconds).collect::<Vec<_>>()),
        median(&copies),
    );
    let mib = bytes as f64 / f64::from(1 << 20);
    drop(cluster);
    std::fs::remove_dir_all(dir)?;
    let ratio = plain / ours;
    Ok(Section {
        title: "A snapshot to an empty follower".into(),
        how: format!(
            "{mib:.0} MiB in files of 16 MiB, in the sender's page cache. A member that has nothing is \
             added as a learner; the time is from that word until its state machine is restored: \
             every chunk and every file hashed on both sides, every file synced, read back and verified. \
             Beside it: the same files written to a socket in pieces of 1 MiB, into one file at the \
             other end, and one fsync. Medians of {} runs, one after the other in turn; memory is \
             VmHWM during the transfer less VmRSS before, the largest of all runs.",
            bench.runs
        ),
        figures: vec![
            Figure::plain("snapshot", format!("{:.0} MiB/s", mib / ours))
                .beside(format!("{:.0} MiB/s", mib / plain))
                .target("≥ 0.6×", ratio >= 0.6),
            Figure::plain("that is", format!("{ratio:.2}×")),
            Figure::plain("memory, sender", format!("+{sender:.0} MiB"))
                .target("≤ 64 MiB", sender <= 64.0),
            Figure::plain("memory, receiver", format!("+{receiver:.0} MiB"))
                .target("≤ 64 MiB", receiver <= 64.0),
        ],
        ..Section::default()
    })
}
