//! What a stream must hold, and what the API says of an append.
//!
//! The rules are written down here a second time, from the API's description, so that the server is
//! compared with them and not with itself. Timestamps that the server chooses are known only within
//! bounds, until it has told them.

use bytes::Bytes;
use s2_api::v1::stream::proto;

/// Most records of a batch.
pub const BATCH_RECORDS: usize = 1000;
/// Most metered bytes of a batch.
pub const BATCH_BYTES: usize = 1024 * 1024;
/// Most bytes of a fencing token.
pub const TOKEN_BYTES: usize = 36;

/// A record as a client appends it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// When, according to the client.
    pub timestamp: Option<u64>,
    /// Names and values.
    pub headers: Vec<(Bytes, Bytes)>,
    /// The body.
    pub body: Bytes,
}

impl Record {
    /// Bytes as the API counts them.
    pub fn metered(&self) -> usize {
        let headers = self.headers.iter().map(|(n, v)| 2 + n.len() + v.len());
        8 + headers.sum::<usize>() + self.body.len()
    }

    /// The command that it is, by name.
    pub fn command(&self) -> Option<&[u8]> {
        match self.headers.as_slice() {
            [(name, value)] if name.is_empty() => Some(value),
            _ => None,
        }
    }

    fn is_valid(&self) -> bool {
        match self.command() {
            Some(b"fence") => {
                self.body.len() <= TOKEN_BYTES && std::str::from_utf8(&self.body).is_ok()
            }
            Some(b"trim") => self.body.len() == 8,
            Some(_) => false,
            None => self.headers.iter().all(|(name, _)| !name.is_empty()),
        }
    }

    /// Whether every byte string in it is text.
    pub fn is_text(&self) -> bool {
        let text = |bytes: &Bytes| std::str::from_utf8(bytes).is_ok();
        text(&self.body) && self.headers.iter().all(|(n, v)| text(n) && text(v))
    }
}

/// An append.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Records, in order.
    pub records: Vec<Record>,
    /// The sequence number that the first must get.
    pub match_seq_num: Option<u64>,
    /// The fencing token that must be in force.
    pub fencing_token: Option<String>,
}

impl Batch {
    /// Whether it may be appended at all.
    pub fn is_valid(&self) -> bool {
        let token = self.fencing_token.as_ref().map_or(0, String::len);
        (1..=BATCH_RECORDS).contains(&self.records.len())
            && self.metered() <= BATCH_BYTES
            && self.records.iter().all(Record::is_valid)
            && token <= TOKEN_BYTES
    }

    /// Bytes as the API counts them.
    pub fn metered(&self) -> usize {
        self.records.iter().map(Record::metered).sum()
    }
}

impl From<proto::AppendInput> for Batch {
    fn from(input: proto::AppendInput) -> Batch {
        let record = |record: proto::AppendRecord| Record {
            timestamp: record.timestamp,
            headers: record
                .headers
                .into_iter()
                .map(|h| (h.name, h.value))
                .collect(),
            body: record.body,
        };
        Batch {
            records: input.records.into_iter().map(record).collect(),
            match_seq_num: input.match_seq_num,
            fencing_token: input.fencing_token,
        }
    }
}

impl From<&Batch> for proto::AppendInput {
    fn from(batch: &Batch) -> proto::AppendInput {
        let header = |(name, value): &(Bytes, Bytes)| proto::Header {
            name: name.clone(),
            value: value.clone(),
        };
        let record = |record: &Record| proto::AppendRecord {
            timestamp: record.timestamp,
            headers: record.headers.iter().map(header).collect(),
            body: record.body.clone(),
        };
        proto::AppendInput {
            records: batch.records.iter().map(record).collect(),
            match_seq_num: batch.match_seq_num,
            fencing_token: batch.fencing_token.clone(),
        }
    }
}

/// A time that the server chose: the least and the most that it can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Between(pub u64, pub u64);

impl Between {
    /// The later of two times.
    fn max(self, other: Between) -> Between {
        Between(self.0.max(other.0), self.1.max(other.1))
    }
}

/// A record with its place.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its sequence number.
    pub seq_num: u64,
    /// Its timestamp.
    pub timestamp: Between,
    /// Itself.
    pub record: Record,
}

impl Kept {
    /// Its timestamp, once the server has told it.
    pub fn known_timestamp(&self) -> u64 {
        assert_eq!(self.timestamp.0, self.timestamp.1, "never read back");
        self.timestamp.0
    }
}

/// How a stream gives timestamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timestamping {
    /// The client's, or else the arrival.
    ClientPrefer,
    /// The client's, or nothing is appended.
    ClientRequire,
    /// The arrival, always.
    Arrival,
}

/// Why a valid batch is not appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// This token is in force.
    FencingToken(String),
    /// This sequence number is next.
    SeqNum(u64),
    /// A record lacks one.
    Timestamp,
}

/// A stream as it must be.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Its name.
    pub name: String,
    /// Where its timestamps come from.
    pub timestamping: Timestamping,
    /// Whether they may be in the future.
    pub uncapped: bool,
    /// Every record ever appended; the one with sequence number n is at n.
    pub kept: Vec<Kept>,
    /// The first sequence number that readers see.
    pub trim_point: u64,
    /// The token in force.
    pub fencing_token: String,
}

impl Stream {
    /// A new, empty one.
    pub fn new(name: &str, timestamping: Timestamping, uncapped: bool) -> Stream {
        Stream {
            name: name.to_owned(),
            timestamping,
            uncapped,
            kept: Vec::new(),
            trim_point: 0,
            fencing_token: String::new(),
        }
    }

    /// The next sequence number.
    pub fn tail(&self) -> u64 {
        self.kept.len() as u64
    }

    /// The first sequence number with a record; the tail if there is none.
    pub fn head(&self) -> u64 {
        self.trim_point.min(self.tail())
    }

    /// The timestamp of the last record ever appended.
    pub fn tail_timestamp(&self) -> Between {
        self.kept.last().map_or(Between(0, 0), |k| k.timestamp)
    }

    /// The records that readers see, from a sequence number on.
    pub fn from(&self, seq_num: u64) -> &[Kept] {
        let from = seq_num.max(self.head()).min(self.tail());
        &self.kept[from as usize..]
    }

    /// Appends what arrived within `arrival`, all of it or nothing.
    pub fn append(&mut self, batch: &Batch, arrival: Between) -> Result<(), Refusal> {
        assert!(batch.is_valid());
        if let Some(token) = &batch.fencing_token
            && *token != self.fencing_token
        {
            return Err(Refusal::FencingToken(self.fencing_token.clone()));
        }
        if let Some(expected) = batch.match_seq_num
            && expected != self.tail()
        {
            return Err(Refusal::SeqNum(self.tail()));
        }
        let missing = batch.records.iter().any(|r| r.timestamp.is_none());
        if self.timestamping == Timestamping::ClientRequire && missing {
            return Err(Refusal::Timestamp);
        }
        for record in &batch.records {
            let wanted = match (self.timestamping, record.timestamp) {
                (Timestamping::Arrival, _) | (_, None) => arrival,
                // The largest number stands for "none" where it is kept, and one less is kept.
                (_, Some(t)) if self.uncapped => Between(t.min(u64::MAX - 1), t.min(u64::MAX - 1)),
                (_, Some(t)) => Between(t.min(arrival.0), t.min(arrival.1)),
            };
            let seq_num = self.tail();
            self.kept.push(Kept {
                seq_num,
                timestamp: self.tail_timestamp().max(wanted),
                record: record.clone(),
            });
            match record.command() {
                Some(b"fence") => {
                    self.fencing_token = String::from_utf8(record.body.to_vec()).unwrap();
                }
                Some(b"trim") => {
                    let point = u64::from_be_bytes(record.body[..].try_into().unwrap());
                    self.trim_point = self.trim_point.max(point.min(seq_num + 1));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes in what the server says of a record's timestamp.
    #[track_caller]
    pub fn learn(&mut self, seq_num: u64, timestamp: u64) {
        let kept = &mut self.kept[seq_num as usize];
        let Between(low, high) = kept.timestamp;
        assert!(
            (low..=high).contains(&timestamp),
            "record {seq_num} of {:?} has timestamp {timestamp}, which is not in {low}..={high}",
            self.name
        );
        kept.timestamp = Between(timestamp, timestamp);
    }
}
