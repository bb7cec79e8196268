//! Followers of one stream in great number: readers of server-sent events, each on a connection of HTTP/1.1 of
//! its own. Client and server share the machine, so all followers read what comes, and every fiftieth looks
//! at the times that records carry.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bench_harness::stats::Latencies;
use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{BASIN, Outcome, connect, serve};
use crate::recovery::subject::{Setup, Subject};

/// Records a second.
const RATE: u64 = 100;
/// One of so many followers measures.
const MEASURING: u32 = 50;
/// The targets.
const MAX_P99_MS: f64 = 250.0;
const MAX_BYTES: f64 = 32.0 * 1024.0;
/// Time limit for what a follower waits for at its beginning.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
/// What precedes the time of its submission in the body of a record, in microseconds.
const MARK: &[u8] = b"sent-at-";
const DIGITS: usize = 12;

pub(super) async fn measure(
    setup: &Setup,
    followers: u32,
    seconds: u64,
) -> anyhow::Result<Vec<Outcome>> {
    allow_files()?;
    let server = serve(setup).await?;
    let connection = connect(&server).await?;
    connection.create_stream("followed").await?;
    let origin = Instant::now();
    let latencies = Arc::new(Mutex::new(Latencies::default()));
    let appender = Appender::open(&server).await?;
    let mut readers = JoinSet::new();
    // What followers need in any case.
    readers.spawn(read(open(&server).await?, origin, None));
    appender.append(origin).await?;
    let (before, _) = server.resident_mib()?;
    for number in 0..followers {
        let measures = number % MEASURING == 0;
        let measured = measures.then(|| latencies.clone());
        readers.spawn(read(open(&server).await?, origin, measured));
    }
    let mut tick = tokio::time::interval(Duration::from_nanos(1_000_000_000 / RATE));
    let appender = Arc::new(appender);
    let mut appends = JoinSet::new();
    for _ in 0..RATE * seconds {
        tick.tick().await;
        let appender = appender.clone();
        appends.spawn(async move { appender.append(origin).await });
    }
    while let Some(append) = appends.join_next().await {
        append??;
    }
    let (after, _) = server.resident_mib()?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(readers.try_join_next().is_none(), "a follower has ended");
    readers.abort_all();
    let latencies = std::mem::take(&mut *latencies.lock());
    let expected = (RATE * seconds) as usize * (followers.div_ceil(MEASURING) as usize);
    let seen = latencies.len();
    let sorted = latencies.sorted().context("nothing was delivered")?;
    let each = (after - before) * f64::from(1 << 20) / f64::from(followers);
    let p99 = sorted.percentile_ms(99.0);
    Ok(vec![
        Outcome {
            what: format!("{followers} followers: {seen} of {expected} deliveries were measured"),
            target: "every one".to_owned(),
            met: seen >= expected,
        },
        Outcome {
            what: format!(
                "delivery: p50 {:.0} ms, p99 {p99:.0} ms",
                sorted.percentile_ms(50.0)
            ),
            target: format!("p99 below {MAX_P99_MS} ms"),
            met: p99 < MAX_P99_MS,
        },
        Outcome {
            what: format!("memory of a follower: {:.1} KiB", each / 1024.0),
            target: format!("at most {:.0} KiB", MAX_BYTES / 1024.0),
            met: each <= MAX_BYTES,
        },
    ])
}

/// Raises the limit of open files of this process, which has one for each follower.
fn allow_files() -> anyhow::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, all).context("the limit of open files")
}

fn authority(server: &Subject) -> String {
    server.url().trim_start_matches("http://").to_owned()
}

/// Opens a follower; returns when its session has begun.
async fn open(server: &Subject) -> anyhow::Result<TcpStream> {
    let authority = authority(server);
    let mut connection = TcpStream::connect(&authority).await?;
    let head = format!(
        "GET /v1/streams/followed/records?tail_offset=0 HTTP/1.1\r\nhost: {authority}\r\ns2-basin: {BASIN}\r\naccept: text/event-stream\r\n\r\n"
    );
    connection.write_all(head.as_bytes()).await?;
    let mut buffer = [0; 1024];
    let begun = connection.read(&mut buffer);
    let got = tokio::time::timeout(OPEN_TIMEOUT, begun).await??;
    ensure!(
        buffer[..got].starts_with(b"HTTP/1.1 200"),
        "a follower was refused: {}",
        String::from_utf8_lossy(&buffer[..got])
    );
    Ok(connection)
}

/// Reads until the connection ends.
async fn read(
    mut connection: TcpStream,
    origin: Instant,
    measured: Option<Arc<Mutex<Latencies>>>,
) -> anyhow::Result<()> {
    let mut rest = Vec::new();
    let mut buffer = vec![0; 4096];
    loop {
        let got = connection.read(&mut buffer).await?;
        if got == 0 {
            return Ok(());
        }
        let Some(measured) = &measured else {
            continue;
        };
        let now = origin.elapsed();
        rest.extend_from_slice(&buffer[..got]);
        let mut from = 0;
        while let Some(at) = find(&rest[from..], MARK) {
            let begin = from + at + MARK.len();
            let Some(digits) = rest.get(begin..begin + DIGITS) else {
                break;
            };
            let sent: u64 = std::str::from_utf8(digits)?.parse()?;
            let took = now.saturating_sub(Duration::from_micros(sent));
            measured.lock().push(took);
            from = begin + DIGITS;
        }
        // What may be the beginning of a mark stays.
        let keep = (MARK.len() + DIGITS).min(rest.len() - from);
        rest.drain(..rest.len() - keep);
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|part| part == what)
}

/// Appends records that carry the time, in the JSON format that followers read.
struct Appender {
    sender: hyper::client::conn::http2::SendRequest<http_body_util::Full<bytes::Bytes>>,
    authority: String,
}

impl Appender {
    async fn open(server: &Subject) -> anyhow::Result<Appender> {
        let authority = authority(server);
        let tcp = TcpStream::connect(&authority).await?;
        tcp.set_nodelay(true)?;
        let io = hyper_util::rt::TokioIo::new(tcp);
        let executor = hyper_util::rt::TokioExecutor::new();
        let (sender, connection) = hyper::client::conn::http2::handshake(executor, io).await?;
        tokio::spawn(connection);
        Ok(Appender { sender, authority })
    }

    async fn append(&self, origin: Instant) -> anyhow::Result<()> {
        let micros = origin.elapsed().as_micros();
        let body = format!(
            r#"{{"records":[{{"body":"sent-at-{micros:012} {}"}}]}}"#,
            "x".repeat(80)
        );
        let request = http::Request::post(format!(
            "http://{}/v1/streams/followed/records",
            self.authority
        ))
        .header("s2-basin", BASIN)
        .header("content-type", "application/json")
        .body(http_body_util::Full::new(bytes::Bytes::from(body)))?;
        let answer = self.sender.clone().send_request(request).await?;
        ensure!(answer.status() == 200, "an append: {}", answer.status());
        Ok(())
    }
}
