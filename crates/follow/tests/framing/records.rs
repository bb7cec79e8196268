//! Snapshots as records, in any order that a stream can have them in, and damaged.

use bytes::Bytes;
use esker_follow::in_stream::restore::{Beginning, find};
use esker_follow::options::Reading;
use esker_follow::snapshot::assembly::{Assembly, Fed, MAX_OPEN};
use esker_follow::snapshot::{Encoding, record};
use esker_follow::{Error, SequencedRecord};
use proptest::prelude::*;
use s2_sdk::types::{AppendRecord, Header};
use uuid::Uuid;

use crate::model::Stream;
use crate::{Blob, block_on, describe, encode};

/// What happens to one record.
#[derive(Clone, Debug)]
enum Harm {
    None,
    FlipsBody {
        record: usize,
        byte: usize,
        bits: u8,
    },
    FlipsHeader {
        record: usize,
        header: usize,
        byte: usize,
        bits: u8,
    },
    LosesHeader {
        record: usize,
        header: usize,
    },
    Drops {
        record: usize,
    },
    SwapsWithNext {
        record: usize,
    },
    CutsOff {
        record: usize,
    },
}

fn harm() -> impl Strategy<Value = Harm> {
    let at = || 0..64_usize;
    prop_oneof![
        Just(Harm::None),
        (at(), any::<usize>(), 1..=255_u8).prop_map(|(record, byte, bits)| Harm::FlipsBody {
            record,
            byte,
            bits
        }),
        (at(), 0..4_usize, any::<usize>(), 1..=255_u8).prop_map(|(record, header, byte, bits)| {
            Harm::FlipsHeader {
                record,
                header,
                byte,
                bits,
            }
        }),
        (at(), 0..4_usize).prop_map(|(record, header)| Harm::LosesHeader { record, header }),
        at().prop_map(|record| Harm::Drops { record }),
        at().prop_map(|record| Harm::SwapsWithNext { record }),
        at().prop_map(|record| Harm::CutsOff { record }),
    ]
}

/// A snapshot to be written: its state, where it is cut, and whether it is compressed.
#[derive(Clone, Debug)]
struct Written {
    state: Vec<u8>,
    cuts: Vec<usize>,
    compressed: bool,
    single: bool,
}

fn written() -> impl Strategy<Value = Written> {
    (
        prop::collection::vec(any::<u8>(), 0..300),
        prop::collection::vec(any::<usize>(), 0..5),
        any::<bool>(),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(state, cuts, compressed, single)| Written {
            state,
            cuts,
            compressed,
            single,
        })
}

async fn records(stream: &Stream, cursor: u64, written: &Written) -> Vec<AppendRecord> {
    let encoding = match written.compressed {
        true => Encoding::Zstd,
        false => Encoding::None,
    };
    let meta = describe(stream, cursor, encoding);
    let (bytes, totals) = encode(&written.state, &meta).await;
    let id = Uuid::new_v4();
    if written.single {
        return vec![record::single_record(id, &meta, &totals, bytes).unwrap()];
    }
    let mut cuts: Vec<usize> = written
        .cuts
        .iter()
        .map(|cut| cut % (bytes.len() + 1))
        .collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    let pieces = cuts.windows(2).map(|pair| bytes.slice(pair[0]..pair[1]));
    let mut records = Vec::new();
    for (index, piece) in pieces.enumerate() {
        let meta = (index == 0).then_some(&meta);
        records.push(record::fragment_record(id, index as u64, meta, piece).unwrap());
    }
    records.push(record::final_record(id, records.len() as u64, &totals).unwrap());
    records
}

fn rebuilt(body: Vec<u8>, headers: Vec<Header>) -> AppendRecord {
    AppendRecord::new(body)
        .unwrap()
        .with_headers(headers)
        .unwrap()
}

fn flipped(bytes: &[u8], byte: usize, bits: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if !bytes.is_empty() {
        let at = byte % bytes.len();
        bytes[at] ^= bits;
    }
    bytes
}

fn harm_done(records: &mut Vec<AppendRecord>, harm: &Harm) {
    let len = records.len();
    match *harm {
        Harm::None => {}
        Harm::FlipsBody { record, byte, bits } => {
            let one = &mut records[record % len];
            *one = rebuilt(flipped(one.body(), byte, bits), one.headers().to_vec());
        }
        Harm::FlipsHeader {
            record,
            header,
            byte,
            bits,
        } => {
            let one = &mut records[record % len];
            let mut headers = one.headers().to_vec();
            if headers.is_empty() {
                return;
            }
            let at = header % headers.len();
            headers[at].value = flipped(&headers[at].value, byte, bits).into();
            *one = rebuilt(one.body().to_vec(), headers);
        }
        Harm::LosesHeader { record, header } => {
            let one = &mut records[record % len];
            let mut headers = one.headers().to_vec();
            if !headers.is_empty() {
                headers.remove(header % headers.len());
            }
            *one = rebuilt(one.body().to_vec(), headers);
        }
        Harm::Drops { record } => {
            records.remove(record % len);
        }
        Harm::SwapsWithNext { record } => {
            let at = record % len;
            records.swap(at, (at + 1) % len);
        }
        Harm::CutsOff { record } => {
            records.truncate(record % len);
        }
    }
}

/// Interleaves, as `order` says; `again` tells which batches come twice.
fn interleaved(
    mut many: Vec<Vec<AppendRecord>>,
    order: &[u8],
    again: &[bool],
) -> Vec<AppendRecord> {
    let mut out = Vec::new();
    let mut step = 0;
    many.iter_mut().for_each(|records| records.reverse());
    while many.iter().any(|records| !records.is_empty()) {
        let pick = order[step % order.len()] as usize;
        let twice = again[step % again.len()];
        step += 1;
        let left: Vec<usize> = (0..many.len()).filter(|i| !many[*i].is_empty()).collect();
        let from = left[pick % left.len()];
        let one = many[from].pop().unwrap();
        if twice {
            out.push(one.clone());
        }
        out.push(one);
        if step % 3 == 0 {
            out.push(AppendRecord::new(format!("data {step}")).unwrap());
        }
    }
    out
}

/// What follows the state, as the fold would get it.
fn replayed(met: &[SequencedRecord], resume: u64, stream: &Stream) -> Vec<u64> {
    let later = stream.records();
    let later = later.iter().filter(|r| r.seq_num >= resume);
    let all = met.iter().chain(later);
    let data = all.filter(|r| record::see(r) == record::Seen::Data);
    data.map(|r| r.seq_num).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_is_restored_is_a_state_that_was_written_or_nothing(
        snapshots in prop::collection::vec(written(), 1..4),
        order in prop::collection::vec(any::<u8>(), 1..30),
        again in prop::collection::vec(prop::bool::weighted(0.2), 1..10),
        harm in harm(),
        head in 1..4_u64,
    ) {
        block_on(async {
            let stream = Stream::new(1);
            stream.data(["a", "b", "c", "d"]);
            stream.land(&[record::trim_record(head)], None).unwrap();
            let cursor = stream.now_tail();
            let mut many = Vec::new();
            for written in &snapshots {
                many.push(records(&stream, cursor, written).await);
            }
            let mut all = interleaved(many, &order, &again);
            harm_done(&mut all, &harm);
            if !all.is_empty() {
                stream.land(&all, None).unwrap();
            }
            let mut identity = stream.now_identity();
            let reading = Reading { pass_over: true, ..Reading::default() };
            let found = find(&stream, &Blob::default(), &mut identity, &reading).await;
            let found = match found {
                Ok(Beginning::With(found)) => found,
                Ok(Beginning::AtZero) => panic!("the head is not 0"),
                Err(Error::HistoryGone { .. }) => {
                    prop_assert!(!matches!(harm, Harm::None), "nothing was wrong with them");
                    return Ok(());
                }
                Err(other) => panic!("{other}"),
            };
            let state = found.fold.0.unwrap();
            let is_written = snapshots.iter().any(|written| written.state == state);
            prop_assert!(is_written, "a state that nobody wrote: {} bytes", state.len());
            prop_assert_eq!(found.info.cursor, cursor);
            let left = stream.records();
            let data = left.iter().filter(|r| r.seq_num >= cursor);
            let data = data.filter(|r| record::see(r) == record::Seen::Data);
            let data: Vec<u64> = data.map(|r| r.seq_num).collect();
            prop_assert_eq!(replayed(&found.met, found.resume, &stream), data);
            Ok(())
        })?;
    }

    #[test]
    fn however_many_are_begun_few_are_remembered(begun in 1..40_usize, size in 0..2000_usize) {
        let stream = block_on(async { Stream::new(1) });
        let meta = describe(&stream, 0, Encoding::None);
        let mut assembly = Assembly::default();
        for position in 0..begun as u64 {
            let body = Bytes::from(vec![0; size]);
            let id = Uuid::new_v4();
            let made = record::fragment_record(id, 0, Some(&meta), body).unwrap();
            let headers = made.headers().to_vec();
            let record = SequencedRecord::from_parts(position, 0, headers, made.body().to_vec());
            let fed = assembly.feed(position, &record::see(&record), &record.body);
            prop_assert_eq!(fed, Fed::Began(id));
        }
        prop_assert_eq!(assembly.open().count(), begun.min(MAX_OPEN));
    }
}
