//! One polite client, which appends a small record and waits for the answer, alone and while others [flood](super::flood).
//!
//! The polite client has a thread and a connection of its own, so that it does not wait behind the flooders
//! in the queue of this program's runtime. It may share the processors with them, which a client elsewhere does not,
//! so its thread has a short time slice: once it is answered, it does not wait for theirs. Two more such clients
//! show what the machine itself costs, which no server can avoid: one sends a request that appends nothing
//! ([`Probe::Tail`]), and one wakes a thread of this program through a socket ([`Probe::Wake`]).

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bench_harness::stats::{Latencies, SortedLatencies};
use esker_raft::priority::shorten_time_slice;

use super::flood::{FLOODERS, Flood, Flooders};
use super::{BASIN, Outcome, connect, serve};
use crate::client::{Batches, Connection, Kind};
use crate::recovery::subject::Setup;

/// The stream of the polite client.
const POLITE: &str = "polite";
/// The target: p99 during the flood over p99 alone.
const MAX_RATIO: f64 = 5.0;
/// Time of the flood before the polite client begins.
const WARM_UP: Duration = Duration::from_secs(3);

/// Measures once for each kind of flooders, each time with a server and a directory of its own: what one flood
/// leaves behind, its memtables and files, does not count against the next.
pub(super) async fn measure(
    setup: &Setup,
    kinds: &[Flooders],
    seconds: u64,
) -> anyhow::Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for kind in kinds {
        outcomes.extend(measure_one(setup, *kind, seconds).await?);
        // Half a minute of a flood is gigabytes.
        fs::remove_dir_all(&setup.data)
            .with_context(|| format!("cannot remove {}", setup.data.display()))?;
    }
    Ok(outcomes)
}

async fn measure_one(setup: &Setup, kind: Flooders, seconds: u64) -> anyhow::Result<Vec<Outcome>> {
    let server = serve(setup).await?;
    let duration = Duration::from_secs(seconds);
    connect(&server).await?.create_stream(POLITE).await?;
    let url = server.url();
    probe(&url, Probe::Append, WARM_UP).await?;
    let alone = probe(&url, Probe::Append, duration).await?;

    let flood = Flood::start(kind, &url).await?;
    tokio::time::sleep(WARM_UP).await;
    let (before, begun) = (flood.appended().await?, Instant::now());
    let during = probe(&url, Probe::Append, duration).await?;
    let flooded = flood.appended().await? - before;
    let rate = flooded as f64 / begun.elapsed().as_secs_f64() / f64::from(1 << 20);
    let tail = probe(&url, Probe::Tail, duration / 2).await?;
    let wake = probe(&url, Probe::Wake, duration / 2).await?;
    flood.end().await?;
    server.kill();

    let p50 = |latencies: &SortedLatencies| latencies.percentile_ms(50.0);
    let p99 = |latencies: &SortedLatencies| latencies.percentile_ms(99.0);
    let ratio = p99(&during) / p99(&alone);
    let others = kind.name();
    let row = |what: &str, latencies: &SortedLatencies| {
        let (p50, p99) = (p50(latencies), p99(latencies));
        Outcome::plain(format!("{what}: p50 {p50:.1} ms, p99 {p99:.1} ms"))
    };
    Ok(vec![
        row("polite client alone", &alone),
        row(
            &format!("while {FLOODERS} {others} flood at {rate:.0} MiB/s"),
            &during,
        ),
        row("meanwhile, a request that appends nothing", &tail),
        row("meanwhile, a thread that another one wakes", &wake),
        Outcome {
            what: format!("p99 while {FLOODERS} {others} flood over p99 alone: {ratio:.2}"),
            target: format!("at most {MAX_RATIO}"),
            met: ratio <= MAX_RATIO,
        },
    ])
}

/// What a client does again and again, on a thread of its own.
#[derive(Clone, Copy, Debug)]
enum Probe {
    /// Appends a small record.
    Append,
    /// Asks for the tail of a stream: as much work for HTTP as an append, and nothing to write or to wait for.
    Tail,
    /// Sends a byte to another thread and gets it back.
    Wake,
}

async fn probe(url: &str, probe: Probe, duration: Duration) -> anyhow::Result<SortedLatencies> {
    let url = url.to_owned();
    let runs = move || -> anyhow::Result<SortedLatencies> {
        shorten_time_slice();
        let latencies = match probe {
            Probe::Wake => wake_for(duration)?,
            Probe::Append | Probe::Tail => {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = runtime.enable_all().build()?;
                runtime.block_on(request_for(&url, probe, duration))?
            }
        };
        latencies.sorted().context("nothing was measured")
    };
    tokio::task::spawn_blocking(runs).await?
}

/// Sends requests one after the other for some time.
async fn request_for(url: &str, probe: Probe, duration: Duration) -> anyhow::Result<Latencies> {
    let connection = Connection::open(Kind::Wire, url, BASIN).await?;
    let stream = connection.stream(POLITE)?;
    let small = Batches::new(1, 100, 1)?;
    let mut latencies = Latencies::default();
    let deadline = Instant::now() + duration;
    while Instant::now() < deadline {
        let before = Instant::now();
        match probe {
            Probe::Append => {
                stream.append(small.at(latencies.len())).await?;
            }
            Probe::Tail | Probe::Wake => {
                stream.tail().await?;
            }
        }
        latencies.push(before.elapsed());
    }
    Ok(latencies)
}

/// Wakes another thread, and is woken by it, for some time; as often as a client that is answered within a
/// millisecond.
fn wake_for(duration: Duration) -> anyhow::Result<Latencies> {
    let (mut here, mut there) = UnixStream::pair()?;
    let echo = std::thread::spawn(move || -> std::io::Result<()> {
        let mut byte = [0];
        while there.read(&mut byte)? > 0 {
            there.write_all(&byte)?;
        }
        Ok(())
    });
    let mut latencies = Latencies::default();
    let deadline = Instant::now() + duration;
    while Instant::now() < deadline {
        let before = Instant::now();
        here.write_all(&[1])?;
        here.read_exact(&mut [0])?;
        latencies.push(before.elapsed());
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(here);
    echo.join()
        .ok()
        .context("the other thread has panicked")??;
    Ok(latencies)
}
