//! A file system of a known size ([`SmallDisk`]), and what fills it.

use std::fs;
use std::time::{Duration, Instant};

use s2_sdk::S2Stream;
use serde_json::json;

use crate::support::http::Answer;
pub use crate::support::small_disk::SmallDisk;
use crate::support::small_disk::with_small_files;
use crate::support::{Http, SOON, Setup, eventually, sdk};

const RECORDS: &str = "/v1/streams/orders/records";

/// Servers with small files, so that a disk of some MiB is filled to the byte and not to a segment.
pub fn small() -> Setup {
    with_small_files(Setup::default().partitions(1))
}

/// The same without snapshots by time, and with every append of 100,000 bytes flushed within a moment: the rest below
/// `log.flush-after` would be flushed a minute after the last append.
pub fn small_prompt() -> Setup {
    small()
        .set("snapshots.snapshot-interval=1h")
        .set("log.flush-after=64KiB")
}

/// Text that does not compress; the same for the same seed.
pub fn noise(seed: u64, bytes: usize) -> String {
    const SYMBOLS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(SYMBOLS[(state >> 32) as usize % SYMBOLS.len()])
    };
    (0..bytes).map(|_| next()).collect()
}

pub async fn append(http: &Http, number: usize, bytes: usize, limit: Duration) -> Option<Answer> {
    let body = format!("{number} {}", noise(number as u64, bytes));
    let sent = http
        .post(RECORDS)
        .basin("test-basin")
        .json(&json!({"records": [{"body": body}]}))
        .try_send();
    // An append that waits is given up: its outcome is unknown.
    let answer = tokio::time::timeout(limit, sent).await.ok()?;
    Some(answer.unwrap())
}

/// The appends until the server accepted no more.
#[derive(Default)]
pub struct Filled {
    /// Acknowledged numbers, with their sequence numbers.
    pub acked: Vec<(usize, u64)>,
    /// Numbers whose outcome is unknown.
    pub unknown: Vec<usize>,
    next: usize,
    /// The refusal of the last append.
    pub refusal: String,
    /// The answer of `/health` at that time.
    pub health: String,
}

impl Filled {
    /// Appends until this is refused repeatedly, and `/health` is not OK: files that are merged or deleted
    /// meanwhile may free a little space.
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
                // It was in the log's queue when writes began to fail, and may still be written.
                Some(answer) if answer.status == 500 => {
                    assert_eq!(answer.code(), "other", "{}", answer.text());
                    assert!(answer.text().contains("not known to have happened"));
                    self.unknown.push(number);
                }
                Some(answer) => {
                    self.refusal = answer.text();
                    // A refused append had no effect.
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

/// Fills the disk of a server until nothing more can be appended.
pub async fn fill(http: &Http) -> Filled {
    let mut filled = Filled::default();
    filled.fill(http).await;
    filled
}

/// Appends as soon as that is possible. Returns the sequence number.
pub async fn append_at_last(http: &Http, number: usize) -> u64 {
    eventually("appends are taken again", async || {
        let answer = append(http, number, 100_000, SOON).await.unwrap();
        if answer.status != 200 {
            // The refused append had no effect.
            answer.refused(429, "rate_limited");
            return None;
        }
        answer.json()["start"]["seq_num"].as_u64()
    })
    .await
}

/// Checks that acknowledged records are there, unknown ones at most once, and refused ones not.
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

pub fn durable(status: &serde_json::Value, partition: usize) -> (u64, u64) {
    let one = &status["partitions"][partition];
    let number = |name: &str| one[name].as_u64().unwrap();
    (number("durable"), number("applied"))
}

/// Fills a disk except for `left` bytes, if more than `reserve` are free.
pub fn leave(disk: &SmallDisk, left: u64, reserve: u64) {
    let free = disk.free();
    if free > reserve {
        let ballast = vec![1; usize::try_from(free - left).unwrap()];
        let mut options = fs::File::options();
        let mut file = options
            .create(true)
            .append(true)
            .open(disk.path("ballast"))
            .unwrap();
        // Space that others take meanwhile is freed later.
        let _ = std::io::Write::write_all(&mut file, &ballast);
    }
}
