//! Batches of records, made and encoded before the clock runs.
//!
//! Bodies are random, so that no server benefits from compression. A [`Batches`] holds a few different
//! batches, which a load repeats: they are further apart than a compressor's window, and made once, so that
//! making them costs nothing while a row is measured.

use anyhow::Context;
use bytes::Bytes;
use prost::Message;
use rand::{RngCore, SeedableRng, rngs::StdRng};
use s2_api::v1::stream::{
    proto,
    s2s::{CompressionAlgorithm, SessionMessage},
};
use s2_sdk::types::{AppendRecord, AppendRecordBatch};

/// Fewest bytes of the bodies of one [`Batches`], so that a repetition is further away than the window of any
/// compressor that a server is likely to use (64 KiB for LZ4).
const DISTINCT_BYTES: usize = 4 << 20;

/// One batch in the forms in which the two clients send it.
pub struct Batch {
    records: usize,
    sdk: AppendRecordBatch,
    unary: Bytes,
    frame: Bytes,
}

impl Batch {
    /// Number of records.
    pub fn records(&self) -> usize {
        self.records
    }

    /// The batch for the SDK; bodies are shared, not copied.
    pub fn sdk(&self) -> AppendRecordBatch {
        self.sdk.clone()
    }

    /// The batch as the body of a unary append.
    pub fn unary(&self) -> Bytes {
        self.unary.clone()
    }

    /// The batch as one frame of an append session.
    pub fn frame(&self) -> Bytes {
        self.frame.clone()
    }
}

/// Several batches of equal shape, to be used in turn.
pub struct Batches {
    all: Vec<Batch>,
}

impl Batches {
    /// Makes batches of `records` records with bodies of `body_bytes` bytes; `seed` determines the contents.
    ///
    /// # Errors
    ///
    /// If a batch would break the API's limits: 1,000 records, 1 MiB metered.
    pub fn new(records: usize, body_bytes: usize, seed: u64) -> anyhow::Result<Self> {
        let mut random = StdRng::seed_from_u64(seed);
        let distinct = DISTINCT_BYTES.div_ceil(records * body_bytes).clamp(1, 1024);
        let all = (0..distinct)
            .map(|_| {
                let bodies: Vec<Bytes> = (0..records)
                    .map(|_| {
                        let mut body = vec![0; body_bytes];
                        random.fill_bytes(&mut body);
                        body.into()
                    })
                    .collect();
                encode(&bodies)
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Self { all })
    }

    /// The batch to use as number `turn`.
    pub fn at(&self, turn: usize) -> &Batch {
        &self.all[turn % self.all.len()]
    }
}

fn encode(bodies: &[Bytes]) -> anyhow::Result<Batch> {
    let sdk = bodies
        .iter()
        .map(|body| AppendRecord::new(body.clone()))
        .collect::<Result<Vec<_>, _>>()
        .and_then(AppendRecordBatch::try_from_iter)
        .context("a batch breaks the limits of the API")?;
    let input = proto::AppendInput {
        records: bodies
            .iter()
            .map(|body| proto::AppendRecord {
                timestamp: None,
                headers: Vec::new(),
                body: body.clone(),
            })
            .collect(),
        match_seq_num: None,
        fencing_token: None,
    };
    Ok(Batch {
        records: bodies.len(),
        sdk,
        unary: input.encode_to_vec().into(),
        frame: SessionMessage::regular(CompressionAlgorithm::None, &input)?.encode(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_batch_carry_the_same_records() {
        let batches = Batches::new(3, 10, 1).expect("within the limits");
        let batch = batches.at(0);
        let decoded = proto::AppendInput::decode(batch.unary()).expect("it was just encoded");
        assert_eq!(decoded.records.len(), batch.records());
        for (record, same) in decoded.records.iter().zip(&batch.sdk()) {
            assert_eq!(&record.body[..], same.body());
        }
    }

    #[test]
    fn a_batch_beyond_the_limits_of_the_api_is_refused() {
        assert!(Batches::new(1001, 1, 1).is_err());
        assert!(Batches::new(1000, 2000, 1).is_err());
    }

    #[test]
    fn the_same_seed_makes_the_same_batches() {
        let make = |seed| Batches::new(2, 16, seed).expect("within the limits");
        assert_eq!(make(5).at(7).unary(), make(5).at(7).unary());
        assert_ne!(make(5).at(7).unary(), make(6).at(7).unary());
    }
}
