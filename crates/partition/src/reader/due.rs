//! What is due by time: records that are too old, streams that have been empty for long enough.

use s2_common::config::StreamConfig;
use s2_common::record::SeqNum;

use super::Reader;
use crate::batches::Batches;
use crate::ids::{BasinId, StreamId};
use crate::keys;
use crate::store::StoreError;
use crate::stream::{StreamMeta, StreamState};

/// Something that is due by time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Records below are too old.
    Expire {
        /// The stream.
        stream: StreamId,
        /// First sequence number that stays.
        up_to: SeqNum,
    },
    /// The stream has been empty for long enough.
    DeleteIfEmpty {
        /// The stream.
        stream: StreamId,
        /// When it was last active, in milliseconds since the epoch.
        since_ms: u64,
    },
}

/// What a scan of streams found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DueScan {
    /// What is due.
    pub due: Vec<DueBySettings>,
    /// The stream after which the next scan continues; none at the end.
    pub next: Option<StreamId>,
    /// When something of the other streams becomes due, in milliseconds since the epoch, unless the partition
    /// changes before ([`Reader::due_changes`]): not later than that. None if nothing does.
    pub earliest_ms: Option<u64>,
}

/// A stream, seen from what is due of it.
enum StreamDue {
    /// Something is.
    Now(Due),
    /// Something is at this time, in milliseconds since the epoch.
    At(u64),
    /// Nothing, as long as it does not change.
    Never,
}

/// What is due of a stream, and by which settings: it is not, once they are others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueBySettings {
    /// What is due.
    pub due: Due,
    /// The version of the stream's settings.
    pub settings_version: u64,
}

impl Reader {
    /// What is due at `now_ms` of up to `count` streams with ids after `after`.
    ///
    /// # Errors
    ///
    /// The database cannot be read.
    pub fn due(&self, after: StreamId, count: usize, now_ms: u64) -> Result<DueScan, StoreError> {
        let mut seen = Vec::new();
        {
            let (_, to) = keys::all_stream_metas();
            let from = keys::stream_meta(StreamId(after.0.saturating_add(1)));
            let mut it = self.part.iterate(&from, &to, true);
            it.seek_to_first();
            while let (Some(key), Some(value)) = (it.key(), it.value()) {
                if seen.len() == count {
                    break;
                }
                let id = keys::id_of(key)
                    .ok_or_else(|| self.part.malformed("a stream's key", &"its length"))?;
                let meta = <StreamMeta as prost::Message>::decode(value)
                    .map_err(|e| self.part.malformed("a stream's settings", &e))?;
                seen.push((StreamId(id), meta));
                it.next();
            }
            it.status()
                .map_err(|e| self.part.error("reading streams", e))?;
        }
        let next = (seen.len() == count)
            .then(|| seen.last().map(|(id, _)| *id))
            .flatten();
        let mut scan = DueScan {
            next,
            ..DueScan::default()
        };
        for (id, meta) in seen {
            if self.directory.is_dropped(BasinId(meta.basin)) {
                continue;
            }
            match self.due_of(id, &meta, now_ms)? {
                StreamDue::Now(due) => scan.due.push(DueBySettings {
                    due,
                    settings_version: meta.settings_version,
                }),
                StreamDue::At(at_ms) => {
                    let earliest_ms = scan.earliest_ms.map_or(at_ms, |before| before.min(at_ms));
                    scan.earliest_ms = Some(earliest_ms);
                }
                StreamDue::Never => {}
            }
        }
        Ok(scan)
    }

    /// A number that changes whenever something may become due earlier than a scan before has found: with new
    /// streams and settings, with the first records of an empty stream and the last ones of another, and with
    /// another state of the partition. It changes after the data, so a scan that begins after a look at it misses
    /// nothing that came before.
    pub fn due_changes(&self) -> u64 {
        self.directory.due_changes()
    }

    fn due_of(
        &self,
        id: StreamId,
        meta: &StreamMeta,
        now_ms: u64,
    ) -> Result<StreamDue, StoreError> {
        let config = StreamConfig::from(&meta.settings);
        let age = config.retention_policy.age();
        let min_age = config.delete_on_empty.min_age();
        if age.is_none() && min_age.is_none() {
            return Ok(StreamDue::Never);
        }
        let state = self.part.stream_state(id)?.unwrap_or_default();
        if state.is_empty() {
            let Some(min_age) = min_age else {
                return Ok(StreamDue::Never);
            };
            let min_age_ms = min_age.as_millis() as u64;
            return Ok(match now_ms.saturating_sub(state.active_ms) >= min_age_ms {
                true => StreamDue::Now(Due::DeleteIfEmpty {
                    stream: id,
                    since_ms: state.active_ms,
                }),
                false => StreamDue::At(state.active_ms.saturating_add(min_age_ms)),
            });
        }
        let Some(age) = age else {
            return Ok(StreamDue::Never);
        };
        let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let cutoff = now_ms.saturating_sub(age_ms);
        Ok(match self.first_arrived(id, cutoff, &state)? {
            Arrived::From(up_to) if up_to > state.head() => {
                StreamDue::Now(Due::Expire { stream: id, up_to })
            }
            // A record is kept while its age is at most the retention.
            Arrived::Oldest(arrival_ms) => {
                StreamDue::At(arrival_ms.saturating_add(age_ms).saturating_add(1))
            }
            Arrived::From(_) | Arrived::None => StreamDue::Never,
        })
    }

    /// Where the first batch begins that arrived at or after `cutoff`; the tail if none did. If that is the oldest
    /// batch, its arrival. Batches of a
    /// stream arrive in order, so this is a binary search. Every move is a forward seek, see
    /// [`crate::batches`].
    fn first_arrived(
        &self,
        id: StreamId,
        cutoff: u64,
        state: &StreamState,
    ) -> Result<Arrived, StoreError> {
        let (head, tail) = (state.head(), state.tail_seq);
        let mut batches = Batches::new(&self.part, id, tail);
        // The oldest first: most streams have nothing to expire.
        batches.seek(head);
        let mut low = match batches.next()? {
            Some(oldest) if oldest.arrival_ms < cutoff => oldest.end_seq().max(head),
            Some(oldest) => return Ok(Arrived::Oldest(oldest.arrival_ms)),
            None => return Ok(Arrived::None),
        };
        // No batch that begins before `low` arrived at or after `cutoff`. The first one that begins at or
        // after `high` did; it begins at `found`.
        let (mut high, mut found) = (tail, tail);
        while low < high {
            let probe = low + (high - low) / 2;
            batches.seek_start(probe);
            match batches.next()?.filter(|batch| batch.first_seq < high) {
                Some(batch) if batch.arrival_ms < cutoff => low = batch.end_seq(),
                Some(batch) => (high, found) = (probe, batch.first_seq),
                None => high = probe,
            }
        }
        Ok(Arrived::From(found))
    }
}

/// The first batch of a stream that arrived at or after some time.
enum Arrived {
    /// It begins here, and older ones come before it.
    From(SeqNum),
    /// It is the oldest, which arrived at this time.
    Oldest(u64),
    /// There are no batches.
    None,
}
