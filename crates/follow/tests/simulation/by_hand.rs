//! Snapshotters and readers that do it by hand: with fragments of a few bytes, crashes between any two
//! of them, and mistakes.

use std::time::Duration;

use bytes::Bytes;
use esker_follow::endpoint::{AppendFailed, Endpoint as _};
use esker_follow::snapshot::pipe::Sum;
use esker_follow::snapshot::record::Seen;
use esker_follow::snapshot::{Encoding, Meta, record};
use esker_follow::{Fold as _, Follower, SequencedRecord};
use futures::StreamExt as _;
use rand::Rng as _;
use rand::rngs::StdRng;
use s2_sdk::types::AppendRecord;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::fold::Chain;
use crate::model::Stream;

/// What a snapshotter or a reader does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// Nothing.
    None,
    /// It trims before the final marker.
    TrimsTooSoon,
    /// It appends a snapshot that trims up to itself without a condition.
    HasNoCondition,
    /// It says to cover one record more than it does.
    CoversOneMore,
    /// It says to cover one record less than it does.
    CoversOneLess,
    /// A reader: it restores the first fragments that it meets, whole or not.
    RestoresTornOnes,
    /// A reader: it goes on behind a gap.
    IgnoresGaps,
    /// A reader: after a read broke off, it goes on one record too early.
    RepeatsOne,
    /// A reader: records between a snapshot's fragments are lost on it.
    LosesWhatIsBetween,
}

/// Takes a snapshot once: a framed one of small fragments, or a single one.
pub async fn snapshot(stream: &Stream, rng: &mut StdRng, mistake: Mistake, chain: &Chain) {
    let builder = Follower::builder(stream.clone(), chain.clone()).in_stream();
    let Ok(follower) = builder.open().await else {
        return;
    };
    let waits = Duration::from_secs(5);
    let Ok(Ok(())) = timeout(waits, follower.caught_up()).await else {
        return;
    };
    let Ok(view) = follower.view().await else {
        return;
    };
    drop(follower);
    let identity = stream.now_identity();
    let cursor = match mistake {
        Mistake::CoversOneMore => view.cursor + 1,
        Mistake::CoversOneLess => view.cursor.saturating_sub(1),
        _ => view.cursor,
    };
    let meta = Meta {
        format: 1,
        fold: "chain".to_owned(),
        fold_version: 1,
        cursor,
        created_at: identity.created_at,
        lineage: identity.lineage,
        taken_at: 0,
        encoding: Encoding::None,
    };
    assert_eq!(chain.name(), meta.fold);
    let bytes = Bytes::from(view.state.to_bytes());
    let mut sum = Sum::of(&meta);
    sum.update(&bytes);
    let (id, totals) = (Uuid::new_v4(), sum.totals());
    let is_free = matches!(mistake, Mistake::HasNoCondition | Mistake::CoversOneMore);
    let at = (!is_free && rng.random_bool(0.7)).then_some(view.cursor);
    // Anchored ones of which the trim is a record of its own.
    let is_single = at.is_some() && rng.random_bool(0.3) || mistake == Mistake::HasNoCondition;
    if is_single {
        let single = record::single_record(id, &meta, &totals, bytes).unwrap();
        let batch = vec![record::trim_record(cursor + 1), single];
        let _ = stream.append(batch, at).await;
        return;
    }
    let mut records: Vec<AppendRecord> = Vec::new();
    let pieces = rng.random_range(1..=4);
    let size = bytes.len().div_ceil(pieces);
    for (index, piece) in bytes.chunks(size).enumerate() {
        let meta = (index == 0).then_some(&meta);
        let piece = Bytes::copy_from_slice(piece);
        let made = record::fragment_record(id, index as u64, meta, piece);
        records.push(made.unwrap());
    }
    let end = record::final_record(id, records.len() as u64, &totals).unwrap();
    records.push(end);
    let trim = record::trim_record(cursor);
    match mistake {
        Mistake::TrimsTooSoon => records.insert(records.len() - 1, trim),
        _ => records.push(trim),
    }
    let mut at = at;
    for (index, one) in records.into_iter().enumerate() {
        let again = if rng.random_bool(0.1) { 2 } else { 1 };
        for _ in 0..again {
            loop {
                match stream.append(vec![one.clone()], at).await {
                    Ok(_) => break,
                    Err(AppendFailed::Unknown(_)) if index > 0 => {
                        sleep(Duration::from_millis(50)).await;
                    }
                    // It gives up, or crashes: fragment 0 may be there.
                    Err(_) => return,
                }
            }
            at = None;
        }
        if rng.random_bool(0.08) {
            return;
        }
        sleep(Duration::from_millis(rng.random_range(0..200))).await;
    }
}

/// A snapshot that is being met.
struct Body {
    id: Uuid,
    meta: Meta,
    next: u64,
    bytes: Vec<u8>,
}

/// A reader of streams with snapshots that are not compressed. It knows no more than the first that it
/// meets, and gives up if that is torn.
struct Reader {
    mistake: Mistake,
    chain: Chain,
    head: Option<u64>,
    next: u64,
    is_restored: bool,
    body: Option<Body>,
    between: Vec<SequencedRecord>,
}

impl Reader {
    /// Takes in a record; whether it can go on.
    fn take(&mut self, record: SequencedRecord) -> bool {
        let position = record.seq_num;
        let is_first = self.head.is_none();
        let head = *self.head.get_or_insert(position);
        if is_first {
            self.is_restored = head == 0;
        } else if position != self.next && self.mistake != Mistake::IgnoresGaps {
            let goes_back = position < self.next && self.mistake == Mistake::RepeatsOne;
            if !goes_back {
                return false;
            }
        }
        self.next = position + 1;
        match record::see(&record) {
            Seen::Data if self.is_restored => {
                let _ = self.chain.apply(&record);
            }
            Seen::Data => self.between.push(record),
            _ if self.is_restored => {}
            Seen::Fragment { id, index, meta } => self.fragment(id, index, meta, &record),
            Seen::Final { id, .. } => {
                let is_mine =
                    |body: &Body| body.id == id || self.mistake == Mistake::RestoresTornOnes;
                if let Some(body) = self.body.take_if(|body| is_mine(body)) {
                    self.restore(body.meta.cursor, &body.bytes);
                }
            }
            Seen::Single { meta, .. } => {
                let is_head = position == head && meta.cursor + 1 == position;
                if meta.cursor >= head || is_head {
                    self.restore(meta.cursor, &record.body);
                }
            }
            _ => {}
        }
        true
    }

    fn fragment(
        &mut self,
        id: Uuid,
        index: u64,
        meta: Option<Box<Meta>>,
        record: &SequencedRecord,
    ) {
        let reaches_back = |meta: &Meta| Some(meta.cursor) >= self.head;
        if let (None, Some(meta)) = (&self.body, meta)
            && reaches_back(&meta)
        {
            self.body = Some(Body {
                id,
                meta: *meta,
                next: 0,
                bytes: Vec::new(),
            });
        }
        let any = self.mistake == Mistake::RestoresTornOnes;
        if let Some(body) = &mut self.body
            && (any || (body.id == id && body.next == index))
        {
            body.next += 1;
            body.bytes.extend_from_slice(&record.body);
        }
    }

    fn restore(&mut self, cursor: u64, mut bytes: &[u8]) {
        let _ = self.chain.read(&mut bytes);
        self.is_restored = true;
        let mut between = std::mem::take(&mut self.between);
        between.retain(|record| record.seq_num >= cursor);
        if self.mistake == Mistake::LosesWhatIsBetween {
            between.clear();
        }
        for record in between {
            let _ = self.chain.apply(&record);
        }
    }
}

/// Reads for a while; what it came to at a tail.
pub async fn read(stream: &Stream, rng: &mut StdRng, mistake: Mistake) -> Option<(u64, Chain)> {
    let mut reader = Reader {
        mistake,
        chain: Chain::default(),
        head: None,
        next: 0,
        is_restored: false,
        body: None,
        between: Vec::new(),
    };
    for _ in 0..rng.random_range(1..5) {
        let back = u64::from(mistake == Mistake::RepeatsOne);
        let mut pieces = stream.read(reader.next.saturating_sub(back));
        let reading = async {
            while let Some(Ok(piece)) = pieces.next().await {
                for record in piece.records {
                    if !reader.take(record) {
                        return None;
                    }
                }
                if piece.tail == Some(reader.next) && reader.is_restored {
                    return Some(true);
                }
            }
            Some(false)
        };
        let limit = Duration::from_millis(rng.random_range(10..3000));
        let at_tail = match timeout(limit, reading).await {
            Ok(None) => return None,
            Ok(Some(at_tail)) => at_tail,
            Err(_) => false,
        };
        if at_tail && rng.random_bool(0.5) {
            return Some((reader.next, reader.chain));
        }
        sleep(Duration::from_millis(rng.random_range(10..5000))).await;
    }
    None
}
