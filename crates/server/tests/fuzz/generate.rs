//! Good input, and input that is just beyond what is allowed.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rand::Rng;
use rand::seq::IndexedRandom as _;

use crate::model::{BATCH_BYTES, BATCH_RECORDS, Batch, Record, Stream, TOKEN_BYTES, Timestamping};

/// Names and values of headers.
type OddHeaders<'a> = &'a [(&'a [u8], &'a [u8])];

/// Milliseconds since the epoch.
pub fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

/// Once in so many times.
pub fn once_in(rng: &mut impl Rng, times: u32) -> bool {
    rng.random_ratio(1, times)
}

/// Any bytes, of up to so many.
pub fn bytes(rng: &mut impl Rng, most: usize) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(0..=most)];
    rng.fill(&mut bytes[..]);
    bytes
}

/// Any text, of up to so many bytes, with what text has in store.
pub fn text(rng: &mut impl Rng, most: usize) -> String {
    const ODD: &[char] = &[
        '\u{1}',
        '\t',
        '\n',
        '\r',
        '"',
        '\\',
        '/',
        '%',
        '?',
        '#',
        '&',
        '+',
        ' ',
        '.',
        ',',
        'é',
        'ß',
        '名',
        '\u{fffd}',
        '\u{feff}',
        '\u{2028}',
        '\u{202e}',
        '😀',
        '\u{10ffff}',
        '\u{7f}',
    ];
    let length = rng.random_range(0..=most);
    let mut text = String::new();
    loop {
        let next = match once_in(rng, 4) {
            true => *ODD.choose(rng).unwrap(),
            false => char::from(rng.random_range(b'a'..=b'z')),
        };
        if text.len() + next.len_utf8() > length {
            return text;
        }
        text.push(next);
    }
}

/// A number where numbers are interesting: small, close to `near`, or close to what fits.
pub fn number(rng: &mut impl Rng, near: u64) -> u64 {
    match rng.random_range(0..8) {
        0 => rng.random_range(0..3),
        1..=3 => near.saturating_sub(rng.random_range(0..6)),
        4 => near.saturating_add(rng.random_range(0..6)),
        5 => rng.random_range(0..=near),
        6 => u64::MAX - rng.random_range(0..3),
        _ => 1u64 << rng.random_range(0..64),
    }
}

/// How the records of a batch look.
#[derive(Clone, Copy)]
struct Look {
    /// Only text, which every form can carry.
    text: bool,
    /// Whether each has a timestamp.
    timestamps: bool,
}

fn content(rng: &mut impl Rng, look: Look, most: usize) -> Bytes {
    match look.text {
        true => text(rng, most).into(),
        false => bytes(rng, most).into(),
    }
}

fn timestamp(rng: &mut impl Rng) -> u64 {
    let now = now_ms();
    match rng.random_range(0..10) {
        0 => 0,
        1 => rng.random_range(0..1_000_000),
        2 => now + rng.random_range(0..100_000),
        // Everything after such a one has it too, where the future is allowed.
        3 if once_in(rng, 20) => number(rng, now),
        _ => now - rng.random_range(0..100_000),
    }
}

fn record(rng: &mut impl Rng, look: Look, stream: &Stream) -> Record {
    let timestamp = (look.timestamps || once_in(rng, 10)).then(|| timestamp(rng));
    if once_in(rng, 30) {
        return command(rng, look, stream, timestamp);
    }
    let headers = match rng.random_range(0..10) {
        0..=4 => 0,
        5..=8 => rng.random_range(1..4),
        _ => rng.random_range(0..60),
    };
    let headers = (0..headers).map(|_| {
        let mut name = content(rng, look, 20);
        if name.is_empty() {
            name = Bytes::from_static(b"n");
        }
        (name, content(rng, look, 30))
    });
    let headers = headers.collect();
    let most = match rng.random_range(0..100) {
        0..=9 => 0,
        10..=89 => 120,
        90..=98 => 5_000,
        _ => 70_000,
    };
    Record {
        timestamp,
        headers,
        body: content(rng, look, most),
    }
}

fn command(rng: &mut impl Rng, look: Look, stream: &Stream, timestamp: Option<u64>) -> Record {
    let (name, body): (&'static [u8], Bytes) = match rng.random() {
        true => (b"fence", text(rng, TOKEN_BYTES).into()),
        false => {
            let mut point = number(rng, stream.tail() / 2).to_be_bytes();
            if look.text {
                point[..6].fill(0);
                point[6..].iter_mut().for_each(|b| *b &= 0x7f);
            }
            (b"trim", Bytes::copy_from_slice(&point))
        }
    };
    Record {
        timestamp,
        headers: vec![(Bytes::new(), Bytes::from_static(name))],
        body,
    }
}

/// A batch that may be appended, if its conditions hold: they mostly do on `stream`.
pub fn batch(rng: &mut impl Rng, stream: &Stream) -> Batch {
    let require = stream.timestamping == Timestamping::ClientRequire;
    let look = Look {
        text: rng.random(),
        timestamps: match require {
            true => !once_in(rng, 12),
            false => rng.random(),
        },
    };
    let count = match rng.random_range(0..100) {
        0..=49 => 1,
        50..=94 => rng.random_range(1..8),
        95..=98 => rng.random_range(8..100),
        _ => rng.random_range(900..=BATCH_RECORDS),
    };
    let mut records: Vec<Record> = (0..count).map(|_| record(rng, look, stream)).collect();
    while records.iter().map(Record::metered).sum::<usize>() > BATCH_BYTES {
        records.pop();
    }
    let match_seq_num = match rng.random_range(0..20) {
        0..=3 => Some(stream.tail()),
        4 => Some(number(rng, stream.tail())),
        _ => None,
    };
    let fencing_token = match rng.random_range(0..20) {
        0..=2 => Some(stream.fencing_token.clone()),
        3 => Some(text(rng, TOKEN_BYTES)),
        _ => None,
    };
    Batch {
        records,
        match_seq_num,
        fencing_token,
    }
}

/// A batch at the edge of what is allowed, or just beyond.
pub fn odd_batch(rng: &mut impl Rng, stream: &Stream) -> Batch {
    let mut batch = batch(rng, stream);
    let stamp = Some(now_ms());
    match rng.random_range(0..12) {
        0 => batch.records.clear(),
        1 => batch.records = vec![small(stamp); BATCH_RECORDS],
        2 => batch.records = vec![small(stamp); BATCH_RECORDS + 1],
        // Exactly the limit in bytes, or one more.
        3 | 4 => {
            let beyond = usize::from(rng.random::<bool>());
            batch.records.truncate(3);
            let left = (BATCH_BYTES + beyond).saturating_sub(batch.metered());
            batch.records.push(Record {
                timestamp: stamp,
                headers: Vec::new(),
                body: vec![b'x'; left.saturating_sub(8)].into(),
            });
        }
        5 => batch.fencing_token = Some("t".repeat(TOKEN_BYTES + 1)),
        6 => batch.match_seq_num = Some(number(rng, stream.tail())),
        odd => {
            let at = rng.random_range(0..=batch.records.len());
            let (headers, body): (OddHeaders<'_>, &[u8]) = match odd {
                7 => (&[(b"", b"fence")], &[b'f'; TOKEN_BYTES + 1]),
                8 => (&[(b"", b"fence")], b"\xff\xfe"),
                9 => (&[(b"", b"trim")], b"1234567"),
                10 => (&[(b"", b"unknown")], b""),
                _ => (&[(b"n", b"v"), (b"", b"fence")], b""),
            };
            let bytes = Bytes::from_static;
            let headers = headers.iter().map(|(n, v)| (bytes(n), bytes(v)));
            batch.records.insert(
                at,
                Record {
                    timestamp: stamp,
                    headers: headers.collect(),
                    body: bytes(body),
                },
            );
        }
    }
    batch
}

fn small(timestamp: Option<u64>) -> Record {
    Record {
        timestamp,
        headers: Vec::new(),
        body: Bytes::from_static(b"s"),
    }
}

/// Batches one after the other, as if each had been appended when the next is made.
pub fn batches(rng: &mut impl Rng, stream: &Stream, most: usize) -> Vec<Batch> {
    let mut stream = Stream {
        // Its records are not looked at, but their number is.
        kept: stream.kept.clone(),
        ..stream.clone()
    };
    let mut batches = Vec::new();
    for _ in 0..rng.random_range(0..=most) {
        let batch = match once_in(rng, 15) {
            true => odd_batch(rng, &stream),
            false => self::batch(rng, &stream),
        };
        if batch.is_valid() {
            // A refused one changes nothing.
            let now = now_ms();
            let _ = stream.append(&batch, crate::model::Between(now, now));
        }
        batches.push(batch);
    }
    batches
}
