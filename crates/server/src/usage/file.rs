//! The measurements on disk, so that they survive a restart.
//!
//! The file is replaced as a whole: 8 bytes that name the format, SHA-256 of the rest, and a protobuf
//! message. It is not synced: a crash of the machine may lose it or damage it, and then measuring begins
//! again. Nothing else depends on it.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use prost::Message as _;
use sha2::{Digest as _, Sha256};

use super::meters::{Meter, Meters};
use super::series::{Interval, Series};
use super::state::{MAX_BASINS, MAX_STREAMS, Measured, State};

/// What the file begins with; the last byte is the version.
const FORMAT: [u8; 8] = *b"ESKUSAG\x01";
/// Bytes of the checksum.
const CHECKSUM: usize = 32;
/// Longest file that is read: as many points as there may be, with room for what a point takes at most.
const MAX_BYTES: u64 = 64 << 20;
/// Its name in the data directory.
const NAME: &str = "usage.bin";

#[derive(Clone, PartialEq, prost::Message)]
struct StoredUsage {
    #[prost(message, required, tag = "1")]
    account: StoredMeters,
    #[prost(message, repeated, tag = "2")]
    basins: Vec<StoredMeters>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredMeters {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, tag = "2")]
    last_used: u32,
    #[prost(message, repeated, tag = "3")]
    series: Vec<StoredSeries>,
    /// Of a basin.
    #[prost(message, repeated, tag = "4")]
    streams: Vec<StoredMeters>,
}

/// The buckets of one length.
#[derive(Clone, PartialEq, prost::Message)]
struct StoredSeries {
    #[prost(uint32, tag = "1")]
    meter: u32,
    /// Seconds of a bucket.
    #[prost(uint32, tag = "2")]
    seconds: u32,
    /// Numbers of buckets since the one before.
    #[prost(uint32, repeated, tag = "3")]
    steps: Vec<u32>,
    #[prost(uint64, repeated, tag = "4")]
    values: Vec<u64>,
}

/// Why no measurements were read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("there is no {0}")]
    Absent(PathBuf),
    #[error("cannot read {0} now: {1}")]
    Unreadable(PathBuf, io::Error),
    #[error("{0} is damaged: {1}")]
    Damaged(PathBuf, String),
}

/// The path of the file.
pub(crate) fn path(data_dir: &Path) -> PathBuf {
    data_dir.join(NAME)
}

/// Replaces the file.
pub(crate) fn save(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // On a full disk it would take space. If this fails too, the next save replaces it.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Reads the file.
pub(crate) fn load(path: &Path) -> Result<State, LoadError> {
    let unreadable = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => LoadError::Absent(path.to_owned()),
        _ => LoadError::Unreadable(path.to_owned(), e),
    };
    let file = fs::File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    let read = file.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(unreadable)?;
    decode(&bytes).map_err(|why| LoadError::Damaged(path.to_owned(), why))
}

/// The contents of the file.
pub(crate) fn encode(state: &State) -> Vec<u8> {
    let basins = state.basins.iter().map(|(name, basin)| {
        let streams = basin.streams.iter();
        StoredMeters {
            streams: streams.map(|(name, of)| stored(name, of)).collect(),
            ..stored(name, &basin.measured)
        }
    });
    let body = StoredUsage {
        account: stored("", &state.account),
        basins: basins.collect(),
    }
    .encode_to_vec();
    let mut bytes = FORMAT.to_vec();
    bytes.extend_from_slice(&Sha256::digest(&body));
    bytes.extend_from_slice(&body);
    bytes
}

fn stored(name: &str, measured: &Measured) -> StoredMeters {
    let mut series = Vec::new();
    for (meter, of) in measured.meters.iter() {
        for interval in Interval::ALL {
            let mut before = 0;
            let (mut steps, mut values) = (Vec::new(), Vec::new());
            for (at, value) in of.all(interval) {
                let number = at / interval.seconds();
                steps.push(number - before);
                values.push(value);
                before = number;
            }
            if !steps.is_empty() {
                series.push(StoredSeries {
                    meter: meter.number(),
                    seconds: interval.seconds(),
                    steps,
                    values,
                });
            }
        }
    }
    StoredMeters {
        name: name.to_owned(),
        last_used: measured.last_used,
        series,
        streams: Vec::new(),
    }
}

pub(crate) fn decode(bytes: &[u8]) -> Result<State, String> {
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("it has more than {MAX_BYTES} bytes"));
    }
    let rest = bytes.strip_prefix(&FORMAT);
    let rest = rest.ok_or("it does not begin as such a file does")?;
    let (checksum, body) = rest.split_at_checked(CHECKSUM).ok_or("it is cut off")?;
    if Sha256::digest(body).as_slice() != checksum {
        return Err("its checksum is not that of its contents".to_owned());
    }
    let stored = StoredUsage::decode(body).map_err(|e| e.to_string())?;
    let mut state = State::default();
    state.account = read(&stored.account);
    let mut streams = 0;
    for basin in stored.basins.iter().take(MAX_BASINS) {
        let into = state.basins.entry(basin.name.clone()).or_default();
        into.measured = read(basin);
        for stream in &basin.streams {
            if streams < MAX_STREAMS {
                streams += 1;
                into.streams.insert(stream.name.clone(), read(stream));
            }
        }
    }
    Ok(state)
}

fn read(stored: &StoredMeters) -> Measured {
    let mut meters = Meters::default();
    for one in &stored.series {
        let interval = Interval::ALL
            .into_iter()
            .find(|i| i.seconds() == one.seconds);
        let Some((meter, interval)) = Meter::of_number(one.meter).zip(interval) else {
            continue;
        };
        let series: &mut Series = meters.series(meter);
        let mut number = 0u32;
        for (step, value) in one.steps.iter().zip(&one.values) {
            number = number.saturating_add(*step);
            series.set(interval, number.saturating_mul(one.seconds), *value);
        }
    }
    Measured {
        meters,
        last_used: stored.last_used,
        ..Measured::default()
    }
}

#[cfg(test)]
mod tests {
    use s2_common::access::Operation;

    use super::*;

    const NOW: u32 = 1_800_000_000;

    fn some_usage() -> State {
        let mut state = State::default();
        state.requested(Operation::CreateBasin, None, NOW);
        for minute in [0, 3, 700] {
            state.requested(Operation::CheckTail, Some("basin"), NOW + minute * 60);
            state.appended_to("basin", "stream", NOW + minute * 60);
        }
        let streams = &mut state.used("basin", NOW).streams;
        let meters = &mut streams.get_mut("stream").unwrap().meters;
        meters
            .series(Meter::StoredBytes)
            .set(Interval::Minute, NOW, u64::MAX);
        state
    }

    #[test]
    fn what_is_saved_is_read_again_and_any_damage_is_noticed() {
        let state = some_usage();
        let bytes = encode(&state);
        let read = decode(&bytes).unwrap();
        assert_eq!((read.account, read.basins), (state.account, state.basins));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(decode(&damaged).is_err(), "byte {at}");
            assert!(decode(&bytes[..at]).is_err(), "{at} bytes");
        }
    }

    #[test]
    fn a_file_that_is_absent_or_damaged_is_no_state() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path());
        assert!(matches!(load(&path), Err(LoadError::Absent(_))));
        save(&path, &encode(&some_usage())).unwrap();
        assert_eq!(load(&path).unwrap().basins, some_usage().basins);
        std::fs::write(&path, "else").unwrap();
        assert!(matches!(load(&path), Err(LoadError::Damaged(..))));
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(load(&path), Err(LoadError::Unreadable(..))));
        assert!(save(&path, b"").is_err());
        assert!(!path.with_extension("tmp").exists());
    }
}
