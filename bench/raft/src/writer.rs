//! A continuous writer, large snapshots one after the other, and one slow follower, which is killed during a
//! transfer: it catches up, and nothing is fetched twice.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::wire::{ADD_LEARNER, Client, PROPOSE, SNAPSHOT};
use bench_harness::Run;
use bench_harness::page::{Figure, Section};

use crate::{host, payload, wait_for};

const WRITERS: u64 = 8;
/// The member that writes, and the slow one.
const LEADER: u64 = 1;
const SLOW: u64 = 2;
/// Time limit of the whole part.
const WAIT_TIMEOUT: Duration = Duration::from_secs(100);
/// Bytes that a receiver requests ahead by default.
const WINDOW: u64 = 16 << 20;

fn write(address: &str, number: u64, over: &AtomicBool, written: &AtomicU64) {
    let Ok(mut client) = Client::connect(address) else {
        return;
    };
    let mut n = number;
    while !over.load(Ordering::Relaxed) {
        match client.ask(PROPOSE, &host::command(n % 10_000, &[b'v'; 256])) {
            Ok(_) => drop(written.fetch_add(1, Ordering::Relaxed)),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
        n += WRITERS;
    }
}

/// Takes a snapshot every second, or as fast as they can be written.
fn snapshots(address: &str, over: &AtomicBool, longest: &AtomicU64) {
    let Ok(mut client) = Client::connect(address) else {
        return;
    };
    while !over.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let _ = client.ask(SNAPSHOT, &[]);
        longest.fetch_max(asked.elapsed().as_millis() as u64, Ordering::Relaxed);
        std::thread::sleep(Duration::from_secs(1).saturating_sub(asked.elapsed()));
    }
}

/// Bytes of all files below a directory.
fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => bytes_below(&entry.path()),
        Ok(data) => data.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

struct Followed {
    seconds: f64,
    installed: u64,
    /// Bytes that were fetched when the follower was killed.
    kept: u64,
    sent: u64,
    needed: u64,
    written: u64,
}

fn follow(
    bench: &Run,
    dir: &Path,
    cluster: &mut Cluster,
    rate: u64,
    written: &AtomicU64,
) -> anyhow::Result<Followed> {
    let rate = rate.to_string();
    let snapshots = dir.join(SLOW.to_string()).join("raft").join("group-1");
    let mut leader = cluster.client(LEADER)?;
    let before = leader.status()?.bytes_sent;
    let (began, wrote) = (Instant::now(), written.load(Ordering::Relaxed));
    cluster.start(SLOW, &["--slow", &rate])?;
    cluster
        .client(LEADER)?
        .ask(ADD_LEARNER, &SLOW.to_le_bytes())?;
    let half = payload(bench) / 2;
    wait_for("half of the transfer", WAIT_TIMEOUT, || {
        Ok((leader.status()?.bytes_sent - before >= half).then_some(()))
    })?;
    cluster.kill(SLOW)?;
    let kept = bytes_below(&snapshots);
    bench.note(format!(
        "killed after {:.1} s",
        began.elapsed().as_secs_f64()
    ));
    cluster.start(SLOW, &["--slow", &rate])?;
    let mut follower = cluster.client(SLOW)?;
    let mut last = u64::MAX;
    let status = wait_for("the follower catches up", WAIT_TIMEOUT, || {
        let status = follower.status()?;
        let caught_up = status.snapshots_received > 0 && status.applied >= last;
        last = leader.status()?.last;
        std::thread::sleep(Duration::from_millis(100));
        Ok(caught_up.then_some(status))
    })?;
    let done = Followed {
        seconds: began.elapsed().as_secs_f64(),
        installed: status.snapshots_received,
        kept,
        sent: leader.status()?.bytes_sent - before,
        needed: match status.snapshots_received {
            1 => bytes_below(&snapshots),
            _ => kept + status.bytes_fetched,
        },
        written: written.load(Ordering::Relaxed) - wrote,
    };
    bench.note(format!(
        "caught up after {:.1} s; {} bytes sent, {} needed, {} resumed",
        done.seconds, done.sent, done.needed, status.fetches_resumed
    ));
    Ok(done)
}

pub fn measure(bench: &Run) -> anyhow::Result<Section> {
    let dir = bench.dir("writer")?;
    let (payload, bytes) = (dir.join("payload"), payload(bench));
    // Some 25 s for the whole snapshot.
    let rate = bytes / if bench.quick { 4 } else { 25 };
    host::make_payload(&payload, bytes)?;
    let mut cluster = Cluster::new(&dir, 2)?;
    let path = payload.to_string_lossy().into_owned();
    cluster.start(LEADER, &["--founders", "1", "--payload", &path, "--churn"])?;
    cluster.leader()?;
    let mut leader = cluster.client(LEADER)?;
    leader.ask(PROPOSE, &host::command(0, b"first"))?;
    // The first snapshot is hashed completely, the others share its files.
    leader.ask(SNAPSHOT, &[])?;
    let address = cluster.address(LEADER).to_owned();
    let (over, written, longest) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let taken = leader.status()?.snapshots_taken;
    let done = std::thread::scope(|scope| {
        let (address, over, written, longest) = (&address, &over, &written, &longest);
        for number in 0..WRITERS {
            scope.spawn(move || write(address, number, over, written));
        }
        scope.spawn(move || snapshots(address, over, longest));
        std::thread::sleep(Duration::from_secs(1));
        let done = follow(bench, &dir, &mut cluster, rate, written);
        over.store(true, Ordering::Relaxed);
        done
    })?;
    let taken = leader.status()?.snapshots_taken - taken;
    drop(cluster);
    std::fs::remove_dir_all(dir)?;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let twice = done.sent.saturating_sub(done.needed);
    Ok(Section {
        title: "An endless writer and a slow follower".into(),
        how: format!(
            "{WRITERS} writers that never pause; a snapshot is asked for every second, {:.0} MiB in files of \
             16 MiB, one of which is new in each. A member that has nothing is added; its link takes \
             {:.0} MiB/s of snapshots. When half is sent it is killed, and started again. It has caught \
             up once it has applied what was the leader's last entry 0.1 s before, with the writers \
             going on. Sent is what its only source hands to its transport, for both of its processes; needed \
             are the bytes that arrived and were written, each once. In flight at the break are a window \
             (16 MiB) to the process that was killed, and one that the new process asks for before the \
             source's broken link to it is open again.",
            mib(bytes),
            mib(rate)
        ),
        figures: vec![
            Figure::plain("caught up after", format!("{:.1} s", done.seconds))
                .target("it does", true),
            Figure::plain("entries written meanwhile", done.written.to_string()),
            Figure::plain("snapshots taken meanwhile", taken.to_string()),
            Figure::plain(
                "longest of them",
                format!("{:.1} s", longest.into_inner() as f64 / 1e3),
            ),
            Figure::plain(
                "snapshots that the follower installed",
                done.installed.to_string(),
            ),
            Figure::plain(
                "there when it was killed",
                format!("{:.0} MiB", mib(done.kept)),
            ),
            Figure::plain(
                "sent beyond what was needed",
                format!("{:.1} MiB", mib(twice)),
            )
            .beside(format!("{:.0} MiB sent", mib(done.sent)))
            .target(
                format!("≤ {:.0} MiB, in flight at the break", mib(2 * WINDOW)),
                twice <= 2 * WINDOW,
            ),
        ],
        ..Section::default()
    })
}
