//! Resident memory while readers hardly read: for each of them the server holds what it has read ahead.
//!
//! Each reader has a connection of HTTP/1.1 of its own, opens a read session of a stream with batches of some
//! 900 KiB, takes a little of it now and then, and gives up after a while for the next one, so that buffers are
//! allocated and freed all the time. What the server holds is the sum of its gauges
//! `esker_read_sessions_bytes` and `esker_answers_held_bytes`; memory is its resident set beyond that before
//! the first reader. Both are looked at four times a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bench_harness::stats::median;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{BASIN, Outcome, connect, serve};
use crate::client::Batches;
use crate::recovery::subject::{Setup, Subject};

/// Readers, each of a stream of its own.
const READERS: usize = 48;
/// Batches of each stream, and their shape.
const BATCHES: usize = 8;
const RECORDS: usize = 900;
const BODY: usize = 1000;
/// What a reader takes at once, and the pause after it.
const TAKES: usize = 64 * 1024;
const PAUSE: Duration = Duration::from_millis(250);
/// How often a reader takes something before it gives up.
const TURNS: usize = 12;
/// Bytes of memory for each byte that is held.
const MAX_RATIO: f64 = 1.3;

pub(super) async fn measure(setup: &Setup, seconds: u64) -> anyhow::Result<Vec<Outcome>> {
    let server = Arc::new(serve(setup).await?);
    let connection = connect(&server).await?;
    let batches = Batches::new(RECORDS, BODY, 5)?;
    for reader in 0..READERS {
        let name = name(reader);
        connection.create_stream(&name).await?;
        let stream = connection.stream(&name)?;
        for turn in 0..BATCHES {
            stream.append(batches.at(reader + turn)).await?;
        }
    }
    server.settle(Duration::from_secs(20)).await;
    let (before, _) = server.resident_mib()?;
    let ends = Arc::new(AtomicBool::new(false));
    let mut readers = JoinSet::new();
    for reader in 0..READERS {
        readers.spawn(read(server.clone(), reader, ends.clone()));
    }
    let began = Instant::now();
    let (mut held, mut resident) = (Vec::new(), Vec::new());
    while began.elapsed() < Duration::from_secs(seconds) {
        tokio::time::sleep(Duration::from_millis(250)).await;
        if let Some(ended) = readers.try_join_next() {
            ended??;
        }
        // The first readers open their sessions.
        if began.elapsed() < Duration::from_secs(2) {
            continue;
        }
        let metrics = server.metrics().await?;
        let gauges = ["esker_read_sessions_bytes", "esker_answers_held_bytes"];
        let bytes: f64 = gauges.iter().filter_map(|name| metrics.get(*name)).sum();
        held.push(bytes / f64::from(1 << 20));
        resident.push(server.resident_mib()?.0 - before);
    }
    ends.store(true, Ordering::Relaxed);
    while let Some(ended) = readers.join_next().await {
        ended??;
    }
    let of = |samples: &[f64]| median(samples).context("no sample was taken");
    let (held, resident) = (of(&held)?, of(&resident)?);
    let ratio = resident / held;
    Ok(vec![Outcome {
        what: format!(
            "{READERS} slow readers: {held:.0} MiB are held for them, {resident:.0} MiB of memory more than \
             before ({before:.0} MiB), {ratio:.2}x"
        ),
        target: format!("at most {MAX_RATIO}x"),
        met: ratio <= MAX_RATIO,
    }])
}

fn name(reader: usize) -> String {
    format!("slow-{reader}")
}

/// Opens one session after the other, and takes a little of each.
async fn read(server: Arc<Subject>, reader: usize, ends: Arc<AtomicBool>) -> anyhow::Result<()> {
    let authority = server.url().trim_start_matches("http://").to_owned();
    let head = format!(
        "GET /v1/streams/{}/records?seq_num=0 HTTP/1.1\r\nhost: {authority}\r\ns2-basin: {BASIN}\r\ncontent-type: s2s/proto\r\n\r\n",
        name(reader)
    );
    let mut buffer = vec![0; TAKES];
    while !ends.load(Ordering::Relaxed) {
        let mut connection = TcpStream::connect(&authority).await?;
        connection.write_all(head.as_bytes()).await?;
        for turn in 0..TURNS {
            let got = connection.read(&mut buffer).await?;
            ensure!(
                turn > 0 || buffer[..got].starts_with(b"HTTP/1.1 200"),
                "a reader was refused: {}",
                String::from_utf8_lossy(&buffer[..got])
            );
            tokio::time::sleep(PAUSE).await;
            if ends.load(Ordering::Relaxed) {
                break;
            }
        }
    }
    Ok(())
}
