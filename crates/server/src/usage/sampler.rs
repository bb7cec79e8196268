//! What is measured from time to time: sizes of streams and basins. It also forgets old measurements, and
//! saves them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use esker_node::{Error, Node};
use tokio_util::sync::CancellationToken;

use super::meters::Meter;
use super::series::{Interval, Series};
use super::state::{BasinUsage, Extent, MAX_BASINS, Measured};
use super::{Usage, now};

/// How often it looks. Streams that were appended to have a reading a minute, basins one an hour.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(60);
/// How often the measurements are saved: at most 40 MiB are written each time.
const SAVE_INTERVAL: Duration = Duration::from_secs(300);
/// Bytes of records that are read in a minute for the sizes of streams. Beyond them, the streams whose
/// readings are oldest come first the next time.
const MAX_STREAM_READS: u64 = 64 << 20;
/// Bytes of records that are read in an hour for the sizes of all basins. The rest of a basin's streams
/// count as large as those that were read.
const MAX_BASIN_READS: u64 = 256 << 20;
/// Most streams of which a request for a basin's metrics has the sizes read.
const MAX_REFRESHED: usize = 100;
/// How old a basin's size is before a request has it read again, in seconds.
const REFRESH_AGE: u32 = 60;
/// Streams that are listed at a time.
const PAGE: usize = 1000;
/// Most basins that are examined.
const MAX_LISTED_BASINS: usize = 10_000;

/// Measures until the server stops.
pub(crate) async fn run(usage: Usage, node: Node, data_dir: PathBuf, stop: CancellationToken) {
    let began = now();
    let mut saved = tokio::time::Instant::now();
    // A start reads no records: the first reading of basins is that of the next hour, or of a request.
    let mut hour = Interval::Hour.begin(began);
    loop {
        let (sampled, of) = (usage.clone(), node.clone());
        let present = Interval::Hour.begin(now());
        let is_new_hour = std::mem::replace(&mut hour, present) != present;
        let saves = saved.elapsed() >= SAVE_INTERVAL;
        let to = data_dir.clone();
        let work = tokio::task::spawn_blocking(move || {
            sample_streams(&sampled, &of, began);
            if is_new_hour {
                sample_basins(&sampled, &of);
            }
            sampled.state().forget(now());
            if saves {
                sampled.save(&to);
            }
        });
        if let Err(error) = work.await {
            tracing::warn!(%error, "usage was not measured");
        }
        if saves {
            saved = tokio::time::Instant::now();
        }
        tokio::select! {
            () = tokio::time::sleep(SAMPLE_INTERVAL) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Reads the sizes of streams that were appended to since the server began, and that have changed since
/// their last reading.
fn sample_streams(usage: &Usage, node: &Node, began: u32) {
    let mut known: Vec<_> = {
        let state = usage.state();
        let basins = state.basins.iter();
        let streams = basins.flat_map(|(basin, of)| {
            let streams = of.streams.iter();
            let streams = streams.filter(|(_, of)| of.last_used >= began);
            streams.map(|(name, of)| (of.sized, of.extent, basin.clone(), name.clone()))
        });
        streams.collect()
    };
    known.sort_unstable();
    let mut read = 0;
    for (sized, extent, basin, stream) in known {
        if node.stopping().is_cancelled() || read >= MAX_STREAM_READS {
            return;
        }
        // One that is gone, or cannot be read now, keeps the readings that it has.
        let Ok(position) = node.position(&basin, &stream) else {
            continue;
        };
        let present = Extent::of(&position);
        if sized > 0 && present == extent {
            continue;
        }
        let Ok(size) = node.metered_size(&basin, &stream) else {
            continue;
        };
        read += size.read;
        let now = now();
        let mut state = usage.state();
        let of = state.basins.get_mut(&basin);
        if let Some(measured) = of.and_then(|basin| basin.streams.get_mut(&stream)) {
            note_stream(measured, present, size.bytes, now);
        }
    }
}

fn note_stream(measured: &mut Measured, extent: Extent, bytes: u64, now: u32) {
    measured.sized = now;
    measured.extent = extent;
    let series = measured.meters.series(Meter::StoredBytes);
    series.set(Interval::Minute, now, bytes);
}

/// The size of a basin.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    streams: u64,
    bytes: u64,
}

fn sample_basins(usage: &Usage, node: &Node) {
    let mut left = MAX_BASIN_READS;
    let (basins, _) = node.list_basins("", "", MAX_LISTED_BASINS);
    for basin in basins {
        let Some(size) = size_of(node, &basin.name, &mut left) else {
            continue;
        };
        let mut state = usage.state();
        let is_known = state.basins.contains_key(&basin.name);
        // An unused basin takes no place from a used one.
        if is_known || (size.streams > 0 && state.basins.len() < MAX_BASINS) {
            note(state.basins.entry(basin.name).or_default(), size);
        }
    }
}

fn note(basin: &mut BasinUsage, size: Size) {
    let now = now();
    basin.measured.sized = now;
    let meters = &mut basin.measured.meters;
    let streams = meters.series(Meter::Streams);
    streams.set(Interval::Hour, now, size.streams);
    let stored = meters.series(Meter::StoredBytes);
    stored.set(Interval::Hour, now, size.bytes);
}

/// The size of a basin, of whose streams at most `left` bytes are read; `None` if it is gone, cannot be read
/// now, or the server stops.
fn size_of(node: &Node, basin: &str, left: &mut u64) -> Option<Size> {
    let mut size = Size::default();
    let (mut read, mut after) = (0u64, String::new());
    loop {
        let (streams, has_more) = node.list_streams(basin, "", &after, PAGE).ok()?;
        for stream in &streams {
            if node.stopping().is_cancelled() {
                return None;
            }
            size.streams += 1;
            if *left > 0 {
                // One that was deleted meanwhile has no size.
                let of = node.metered_size(basin, &stream.name).unwrap_or_default();
                // An empty one takes a look, too.
                *left = left.saturating_sub(of.read.max(1024));
                size.bytes += of.bytes;
                read += 1;
            }
        }
        match streams.last() {
            Some(last) if has_more => after.clone_from(&last.name),
            _ => break,
        }
    }
    if read > 0 {
        let all = u128::from(size.bytes) * u128::from(size.streams) / u128::from(read);
        size.bytes = u64::try_from(all).unwrap_or(u64::MAX);
    }
    Some(size)
}

impl Usage {
    /// The sizes of a stream as they were read.
    pub(super) fn sizes(&self, basin: &str, stream: &str) -> Series {
        let state = self.state();
        let known = state.basins.get(basin).and_then(|b| b.streams.get(stream));
        let sizes = known.and_then(|of| of.meters.get(Meter::StoredBytes));
        sizes.cloned().unwrap_or_default()
    }

    /// The last size of a stream that was read, and when, in seconds since the epoch. Reads nothing.
    pub(crate) fn last_size(&self, basin: &str, stream: &str) -> Option<(u32, u64)> {
        let state = self.state();
        let known = state.basins.get(basin)?.streams.get(stream)?;
        let sizes = known.meters.get(Meter::StoredBytes)?;
        sizes.last_before(Interval::Minute, now())
    }

    /// The same after a look whether the stream has changed: see [`Usage::refreshed_sizes`]. Blocks.
    pub(crate) fn present_size(
        &self,
        node: &Node,
        basin: &str,
        stream: &str,
        arrived: Instant,
    ) -> Result<Option<(u32, u64)>, Error> {
        let sizes = self.refreshed_sizes(node, basin, stream, arrived)?;
        Ok(sizes.last_before(Interval::Minute, now()))
    }

    /// The same with the size that it has for a request that arrived at this time. It is read only if the stream has
    /// changed since the last reading, and nobody has begun to read it since the request arrived: requests share
    /// a reading. Blocks.
    pub(super) fn refreshed_sizes(
        &self,
        node: &Node,
        basin: &str,
        stream: &str,
        arrived: Instant,
    ) -> Result<Series, Error> {
        let present = Extent::of(&node.position(basin, stream)?);
        let is_read = {
            let state = self.state();
            let known = state.basins.get(basin).and_then(|b| b.streams.get(stream));
            known.is_some_and(|of| of.sized > 0 && of.extent == present)
        };
        if is_read {
            return Ok(self.sizes(basin, stream));
        }
        let read = || {
            let bytes = node.metered_size(basin, stream)?.bytes;
            if let Some(of) = self.state().basins.get_mut(basin)
                && let Some(measured) = of.streams.get_mut(stream)
            {
                note_stream(measured, present, bytes, now());
            }
            Ok::<_, Error>(bytes)
        };
        let readings = &self.shared.readings;
        let bytes = readings.size(basin, stream, arrived, present, read)?;
        let mut sizes = self.sizes(basin, stream);
        // It may be a stream that was not used since the measurements began.
        sizes.set(Interval::Minute, now(), bytes);
        Ok(sizes)
    }

    /// Reads the size of a basin now, unless that was done lately or it has many streams. Blocks.
    pub(super) fn refresh_basin(&self, node: &Node, basin: &str) {
        let sized = {
            let state = self.state();
            state
                .basins
                .get(basin)
                .map_or(0, |usage| usage.measured.sized)
        };
        if sized > 0 && now().saturating_sub(sized) < REFRESH_AGE {
            return;
        }
        let listed = node.list_streams(basin, "", "", MAX_REFRESHED);
        if !listed.is_ok_and(|(_, has_more)| !has_more) {
            return;
        }
        if let Some(size) = size_of(node, basin, &mut MAX_STREAM_READS.clone()) {
            note(self.state().used(basin, now()), size);
        }
    }
}
