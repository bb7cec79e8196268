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

/// What is due of a stream, and by which settings: it is not, once they are others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueBySettings {
    /// What is due.
    pub due: Due,
    /// The version of the stream's settings.
    pub settings_version: u64,
}

impl Reader {
    /// What is due at `now_ms` of up to `count` streams with ids after `after`; and the id after which
    /// the next call continues, `None` at the end.
    pub fn due(
        &self,
        after: StreamId,
        count: usize,
        now_ms: u64,
    ) -> Result<(Vec<DueBySettings>, Option<StreamId>), StoreError> {
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
        let mut due = Vec::new();
        for (id, meta) in seen {
            if !self.directory.is_dropped(BasinId(meta.basin)) {
                let found = self.due_of(id, &meta, now_ms)?;
                due.extend(found.map(|due| DueBySettings {
                    due,
                    settings_version: meta.settings_version,
                }));
            }
        }
        Ok((due, next))
    }

    fn due_of(
        &self,
        id: StreamId,
        meta: &StreamMeta,
        now_ms: u64,
    ) -> Result<Option<Due>, StoreError> {
        let config = StreamConfig::from(&meta.settings);
        let age = config.retention_policy.age();
        let min_age = config.delete_on_empty.min_age();
        if age.is_none() && min_age.is_none() {
            return Ok(None);
        }
        let state = self.part.stream_state(id)?.unwrap_or_default();
        if state.is_empty() {
            let ripe = min_age.is_some_and(|min_age| {
                now_ms.saturating_sub(state.active_ms) >= min_age.as_millis() as u64
            });
            return Ok(ripe.then_some(Due::DeleteIfEmpty {
                stream: id,
                since_ms: state.active_ms,
            }));
        }
        let Some(age) = age else {
            return Ok(None);
        };
        let cutoff = now_ms.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        let up_to = self.first_arrived(id, cutoff, &state)?;
        Ok((up_to > state.head()).then_some(Due::Expire { stream: id, up_to }))
    }

    /// Where the first batch begins that arrived at or after `cutoff`; the tail if none did. Batches of a
    /// stream arrive in order, so this is a binary search. Every move is a forward seek, see
    /// [`crate::batches`].
    fn first_arrived(
        &self,
        id: StreamId,
        cutoff: u64,
        state: &StreamState,
    ) -> Result<SeqNum, StoreError> {
        let (head, tail) = (state.head(), state.tail_seq);
        let mut batches = Batches::new(&self.part, id, tail);
        // The oldest first: most streams have nothing to expire.
        batches.seek(head);
        let mut low = match batches.next()? {
            Some(oldest) if oldest.arrival_ms < cutoff => oldest.end_seq().max(head),
            _ => return Ok(head),
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
        Ok(found)
    }
}
