//! Sizes that requests have read, shared between requests for the same stream.
//!
//! Who reads a stream's size keeps others from reading it meanwhile; then these use what was read, if the stream
//! has not changed since, or if the reading began after they arrived. So of many requests for a stream that is
//! appended to all the time, one reads for all that wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::state::Extent;

/// Streams whose sizes are remembered. Beyond them, those that nobody reads are forgotten.
const MAX_REMEMBERED: usize = 1000;

/// A size, and what the stream had when it was read.
#[derive(Clone, Copy, Debug)]
struct Reading {
    begun: Instant,
    extent: Extent,
    bytes: u64,
}

/// The last reading of one stream.
type Slot = Arc<Mutex<Option<Reading>>>;

/// See the [module's head](self).
#[derive(Default)]
pub(super) struct SharedReadings {
    /// By basin and stream.
    slots: Mutex<HashMap<(String, String), Slot>>,
}

impl SharedReadings {
    /// The size of a stream that has this extent, for a request that arrived at this time. Blocks while another
    /// caller reads the same stream.
    ///
    /// # Errors
    ///
    /// Those of `read`.
    pub(super) fn size<E>(
        &self,
        basin: &str,
        stream: &str,
        arrived: Instant,
        extent: Extent,
        read: impl FnOnce() -> Result<u64, E>,
    ) -> Result<u64, E> {
        let slot = self.slot(basin, stream);
        let mut last = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = *last
            && (last.extent == extent || last.begun >= arrived)
        {
            return Ok(last.bytes);
        }
        let begun = Instant::now();
        let bytes = read()?;
        *last = Some(Reading {
            begun,
            extent,
            bytes,
        });
        Ok(bytes)
    }

    fn slot(&self, basin: &str, stream: &str) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (basin.to_owned(), stream.to_owned());
        if slots.len() >= MAX_REMEMBERED && !slots.contains_key(&key) {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        slots.entry(key).or_default().clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;

    fn size(readings: &SharedReadings, arrived: Instant, tail: u64, reads: &AtomicU64) -> u64 {
        let size = readings.size("basin", "stream", arrived, Extent::at(tail), || {
            std::thread::sleep(Duration::from_millis(10));
            Ok::<_, ()>(100 + reads.fetch_add(1, Ordering::SeqCst))
        });
        size.unwrap()
    }

    #[test]
    fn requests_for_the_same_stream_share_a_reading() {
        let (readings, reads) = (SharedReadings::default(), AtomicU64::new(0));
        let arrived = Instant::now();
        // The stream is appended to all the time.
        std::thread::scope(|scope| {
            for tail in 0..16 {
                let (readings, reads) = (&readings, &reads);
                scope.spawn(move || size(readings, arrived, tail, reads));
            }
        });
        assert_eq!(reads.load(Ordering::SeqCst), 1);
        // One that arrives later gets what there is then.
        let later = Instant::now();
        assert_eq!(size(&readings, later, 99, &reads), 101);
        assert_eq!(size(&readings, Instant::now(), 99, &reads), 101);
        assert_eq!(size(&readings, Instant::now(), 100, &reads), 102);
    }

    #[test]
    fn a_failed_reading_is_tried_again_and_what_is_remembered_is_bounded() {
        let readings = SharedReadings::default();
        let of = |stream: u64, read: Result<u64, ()>| {
            let (now, extent) = (Instant::now(), Extent::at(1));
            readings.size("basin", &stream.to_string(), now, extent, || read)
        };
        assert_eq!(of(0, Err(())), Err(()));
        assert_eq!(of(0, Ok(7)), Ok(7));
        assert_eq!(of(0, Err(())), Ok(7));
        for stream in 0..3 * MAX_REMEMBERED as u64 {
            of(stream, Ok(1)).unwrap();
            assert!(readings.slots.lock().unwrap().len() <= MAX_REMEMBERED);
        }
    }
}
