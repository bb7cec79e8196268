//! The simplest possible stream partition: lists in memory, one command at a time. The property test
//! compares the real one with it.

use std::collections::{BTreeMap, BTreeSet};

use s2_common::config::{StreamConfig, TimestampingMode};
use s2_common::read_extent::{ReadLimit, ReadUntil};
use s2_common::record::{CommandRecord, MeteredSize as _, Record, SeqNum, StreamPosition};
use s2_common::stream::{ReadFrom, ReadStart};

use super::fixture::*;
use crate::command::{
    Append, AppendRefusal, Appended, Change, Kind, Mode, Outcome, ProvisionRefusal,
    ProvisionStream, Provisioned, SettingsSet,
};
use crate::encryption::cipher_of;
use crate::ids::{BasinId, StreamId};
use crate::reader::{Due, ScanEnd};
use crate::settings::StreamSettings;

/// An append, before it is encoded.
#[derive(Clone, Debug)]
pub struct Appending {
    pub stream: StreamId,
    pub at_ms: u64,
    pub records: Vec<Rec>,
    pub match_seq_num: Option<u64>,
    pub token: Option<String>,
    pub session: u64,
    /// The number of the cipher that its records are encrypted with.
    pub cipher: u32,
}

/// A command, before it is encoded.
#[derive(Clone, Debug)]
pub enum Act {
    Append(Appending),
    Provision(ProvisionStream),
    SetSettings(StreamId, u64, StreamSettings),
    Delete(BasinId, String),
    Expire(StreamId, SeqNum, u64),
    DeleteIfEmpty(StreamId, u64),
    DropBasin(BasinId),
}

impl Act {
    pub fn kind(&self) -> Kind {
        match self.clone() {
            Act::Append(a) => Kind::Append(Append {
                match_seq_num: a.match_seq_num,
                fencing_token: a.token,
                session: a.session,
                ..encrypted(a.cipher, a.stream, a.at_ms, a.records)
            }),
            Act::Provision(provision) => Kind::ProvisionStream(provision),
            Act::SetSettings(stream, version, settings) => set_settings(stream, version, settings),
            Act::Delete(basin, name) => delete(basin, &name),
            Act::Expire(stream, up_to, at_ms) => expire(stream, up_to, at_ms),
            Act::DeleteIfEmpty(stream, since_ms) => delete_if_empty(stream, since_ms),
            Act::DropBasin(basin) => drop_basin(basin),
        }
    }
}

/// A record that was appended.
#[derive(Clone, Debug)]
struct Written {
    timestamp: u64,
    record: Record,
    /// The first sequence number of its batch, and when that arrived.
    batch: SeqNum,
    arrival_ms: u64,
}

/// A stream.
#[derive(Clone, Debug)]
pub struct ModelStream {
    pub id: StreamId,
    pub basin: BasinId,
    pub name: String,
    pub created_ms: u64,
    pub settings: StreamSettings,
    pub version: u64,
    request_hash: Vec<u8>,
    /// The number of its cipher.
    pub cipher: u32,
    pub tail_timestamp: u64,
    pub trim_point: SeqNum,
    pub token: String,
    pub active_ms: u64,
    /// All records ever appended: the one with sequence number n is at n.
    written: Vec<Written>,
}

/// All streams.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub streams: BTreeMap<StreamId, ModelStream>,
    pub dropped: BTreeSet<BasinId>,
    pub created: u64,
    /// Commands applied.
    lsn: u64,
    /// Every refusal in a session, except those because of an earlier one.
    refused: Vec<(u64, StreamId, u64)>,
    remember_failed: u64,
}

impl ModelStream {
    pub fn tail(&self) -> StreamPosition {
        position(self.written.len() as u64, self.tail_timestamp)
    }

    pub fn config(&self) -> StreamConfig {
        (&self.settings).into()
    }

    fn is_empty(&self) -> bool {
        self.trim_point == self.tail().seq_num
    }

    /// What readers see.
    pub fn records(&self) -> Vec<Seen> {
        (0..)
            .zip(&self.written)
            .filter(|(seq, _)| *seq >= self.trim_point)
            .map(|(seq, written)| Seen {
                seq,
                timestamp: written.timestamp,
                text: text_of(&written.record),
            })
            .collect()
    }

    /// The timestamps of all records ever appended, and those around each.
    pub fn times(&self) -> Vec<u64> {
        let times = self.written.iter().map(|written| written.timestamp);
        times
            .flat_map(|t| [t, t.saturating_sub(1), t + 1])
            .collect()
    }

    pub fn scan(
        &self,
        from: SeqNum,
        limit: ReadLimit,
        until: ReadUntil,
    ) -> (Vec<Seen>, SeqNum, ScanEnd) {
        let mut taken = Vec::new();
        let mut bytes = 0;
        for seen in self.records().into_iter().filter(|seen| seen.seq >= from) {
            bytes += self.written[seen.seq as usize].record.metered_size();
            if limit.deny(taken.len() + 1, bytes) || until.deny(seen.timestamp) {
                return (taken, seen.seq, ScanEnd::Limit);
            }
            taken.push(seen);
        }
        let tail = self.tail();
        (taken, from.max(tail.seq_num), ScanEnd::Tail(tail))
    }

    pub fn start(&self, start: ReadStart, may_follow: bool) -> Result<SeqNum, StreamPosition> {
        let tail = self.tail();
        let past = match start.from {
            ReadFrom::SeqNum(seq) => seq > tail.seq_num,
            ReadFrom::Timestamp(timestamp) => timestamp > tail.timestamp,
            ReadFrom::TailOffset(_) => false,
        };
        let seq = match start.from {
            _ if past && !start.clamp => return Err(tail),
            _ if past => tail.seq_num,
            ReadFrom::SeqNum(seq) => seq,
            ReadFrom::TailOffset(offset) => tail.seq_num.saturating_sub(offset),
            ReadFrom::Timestamp(timestamp) => self
                .records()
                .into_iter()
                .find(|seen| seen.timestamp >= timestamp)
                .map_or(tail.seq_num, |seen| seen.seq),
        };
        if seq == tail.seq_num && !may_follow {
            return Err(tail);
        }
        Ok(seq)
    }

    fn due(&self, now_ms: u64) -> Option<Due> {
        let config = self.config();
        if self.is_empty() {
            let min_age = config.delete_on_empty.min_age()?;
            let ripe = now_ms.saturating_sub(self.active_ms) >= min_age.as_millis() as u64;
            return ripe.then_some(Due::DeleteIfEmpty {
                stream: self.id,
                since_ms: self.active_ms,
            });
        }
        let age = config.retention_policy.age()?.as_millis() as u64;
        let stays = self.written[self.trim_point as usize..]
            .iter()
            .find(|written| written.arrival_ms >= now_ms.saturating_sub(age));
        let up_to = stays.map_or(self.tail().seq_num, |written| written.batch);
        (up_to > self.trim_point).then_some(Due::Expire {
            stream: self.id,
            up_to,
        })
    }

    /// Encrypted records that were ever appended.
    pub fn encrypted(&self) -> u64 {
        let is_encrypted =
            |w: &&Written| self.cipher != 0 && matches!(w.record, Record::Envelope(_));
        self.written.iter().filter(is_encrypted).count() as u64
    }

    fn append(&mut self, append: &Appending) -> Result<Appended, AppendRefusal> {
        if append.cipher != self.cipher {
            return Err(AppendRefusal::CipherMismatch);
        }
        if append
            .token
            .as_ref()
            .is_some_and(|token| *token != self.token)
        {
            let actual = self.token.parse().unwrap();
            return Err(AppendRefusal::FencingTokenMismatch(actual));
        }
        let first = self.tail().seq_num;
        if append.match_seq_num.is_some_and(|seq| seq != first) {
            return Err(AppendRefusal::SeqNumMismatch(first));
        }
        let timestamping = self.config().timestamping;
        let mut timestamps = Vec::new();
        for (timestamp, _) in &append.records {
            let chosen = match (timestamping.mode, timestamp) {
                (TimestampingMode::Arrival, _) => append.at_ms,
                (TimestampingMode::ClientRequire, None) => {
                    return Err(AppendRefusal::TimestampMissing);
                }
                (_, None) => append.at_ms,
                (_, Some(timestamp)) if timestamping.uncapped => *timestamp,
                (_, Some(timestamp)) => append.at_ms.min(*timestamp),
            };
            let last = timestamps.last().copied().unwrap_or(self.tail_timestamp);
            timestamps.push(chosen.max(last));
        }
        self.active_ms = self.active_ms.max(append.at_ms);
        for ((_, record), timestamp) in append.records.iter().zip(&timestamps) {
            let seq = self.tail().seq_num;
            self.written.push(Written {
                timestamp: *timestamp,
                record: record.clone(),
                batch: first,
                arrival_ms: self.active_ms,
            });
            self.tail_timestamp = *timestamp;
            match record {
                Record::Command(CommandRecord::Fence(token)) => self.token = token.to_string(),
                Record::Command(CommandRecord::Trim(point)) => {
                    self.trim_point = self.trim_point.max(seq.saturating_add(1).min(*point));
                }
                Record::Envelope(_) => {}
            }
        }
        Ok(Appended {
            start: position(first, timestamps[0]),
            end: self.tail(),
            tail: self.tail(),
        })
    }
}

impl Model {
    /// A model that remembers refusals for this many commands.
    pub fn remembering(remember_failed: u64) -> Model {
        Model {
            remember_failed,
            ..Model::default()
        }
    }

    /// Refusals that are still remembered: LSN, stream, session.
    pub fn refusals(&self) -> Vec<(u64, StreamId, u64)> {
        let recent = |refused: &&(u64, StreamId, u64)| refused.0 + self.remember_failed > self.lsn;
        self.refused.iter().filter(recent).copied().collect()
    }

    /// The stream of this name.
    pub fn named(&self, basin: BasinId, name: &str) -> Option<&ModelStream> {
        self.streams
            .values()
            .find(|stream| stream.basin == basin && stream.name == name)
    }

    pub fn due(&self, now_ms: u64) -> Vec<Due> {
        self.streams
            .values()
            .filter_map(|stream| stream.due(now_ms))
            .collect()
    }

    /// Applies a command; returns its outcome.
    pub fn apply(&mut self, act: &Act) -> Outcome {
        self.lsn += 1;
        match act {
            Act::Append(append) => {
                let mut refusals = self.refusals().into_iter();
                let has_failed =
                    refusals.any(|(_, stream, s)| (stream, s) == (append.stream, append.session));
                let Some(stream) = self.streams.get_mut(&append.stream) else {
                    return Outcome::Appended(Err(AppendRefusal::StreamGone));
                };
                if has_failed {
                    return Outcome::Appended(Err(AppendRefusal::SessionFailed));
                }
                let outcome = stream.append(append);
                if outcome.is_err() && append.session != 0 {
                    self.refused.push((self.lsn, append.stream, append.session));
                }
                Outcome::Appended(outcome)
            }
            Act::Provision(provision) => Outcome::StreamProvisioned(self.provision(provision)),
            Act::SetSettings(id, version, settings) => {
                Outcome::SettingsSet(match self.streams.get_mut(id) {
                    None => SettingsSet::Gone,
                    Some(stream) if stream.version != *version => SettingsSet::Conflict,
                    Some(stream) => {
                        stream.set(settings, CREATED_MS);
                        SettingsSet::Done
                    }
                })
            }
            Act::Delete(basin, name) => {
                let id = self.named(*basin, name).map(|stream| stream.id);
                Outcome::StreamDeleted(id.and_then(|id| self.streams.remove(&id)).is_some())
            }
            Act::Expire(id, up_to, at_ms) => {
                if let Some(stream) = self.streams.get_mut(id) {
                    let point = stream.tail().seq_num.min(*up_to);
                    if point > stream.trim_point {
                        stream.trim_point = point;
                        stream.active_ms = stream.active_ms.max(*at_ms);
                    }
                }
                Outcome::Expired
            }
            Act::DeleteIfEmpty(id, since_ms) => {
                let stale = self
                    .streams
                    .get(id)
                    .is_none_or(|stream| !stream.is_empty() || stream.active_ms != *since_ms);
                if !stale {
                    self.streams.remove(id);
                }
                Outcome::StreamDeleted(!stale)
            }
            Act::DropBasin(basin) => {
                self.dropped.insert(*basin);
                self.streams.retain(|_, stream| stream.basin != *basin);
                Outcome::BasinDropped
            }
        }
    }

    fn provision(
        &mut self,
        provision: &ProvisionStream,
    ) -> Result<Provisioned<StreamId>, ProvisionRefusal> {
        let basin = BasinId(provision.basin);
        if self.dropped.contains(&basin) {
            return Err(ProvisionRefusal::BasinDropped);
        }
        let Some(id) = self.named(basin, &provision.name).map(|stream| stream.id) else {
            self.created += 1;
            let stream = ModelStream {
                id: StreamId(self.created),
                basin,
                name: provision.name.clone(),
                created_ms: provision.at_ms,
                settings: provision.settings.clone(),
                version: 1,
                request_hash: provision.request_hash.clone(),
                cipher: provision.cipher,
                tail_timestamp: 0,
                trim_point: 0,
                token: String::new(),
                active_ms: provision.at_ms,
                written: Vec::new(),
            };
            let provisioned = stream.provisioned(Change::Created);
            self.streams.insert(stream.id, stream);
            return Ok(provisioned);
        };
        let stream = self.streams.get_mut(&id).unwrap();
        if provision.mode() == Mode::Ensure {
            if stream.settings == provision.settings {
                return Ok(stream.provisioned(Change::Nothing));
            }
            stream.set(&provision.settings, provision.at_ms);
            return Ok(stream.provisioned(Change::Updated));
        }
        if stream.request_hash == provision.request_hash && !stream.request_hash.is_empty() {
            return Ok(stream.provisioned(Change::Nothing));
        }
        Err(ProvisionRefusal::Exists)
    }
}

impl ModelStream {
    fn set(&mut self, settings: &StreamSettings, at_ms: u64) {
        self.settings = settings.clone();
        self.version += 1;
        self.active_ms = self.active_ms.max(at_ms);
    }

    fn provisioned(&self, change: Change) -> Provisioned<StreamId> {
        Provisioned {
            change,
            id: self.id,
            created_ms: self.created_ms,
            cipher: cipher_of(self.cipher).unwrap(),
        }
    }
}
