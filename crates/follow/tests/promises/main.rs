//! What is promised for each hard case, over a stream in memory, with faults written by hand.

#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "../simulation/fold.rs"]
mod fold;
#[allow(dead_code)]
#[path = "../simulation/model.rs"]
mod model;
#[allow(dead_code)]
#[path = "../simulation/store.rs"]
mod store;

mod external;
mod folds;
mod gaps;
mod histories;
mod in_stream;
mod ready_folds;
mod two_folds;

use bytes::Bytes;
use esker_follow::snapshot::pipe::Sum;
use esker_follow::snapshot::{Encoding, Meta, Totals};
use esker_follow::{Builder, Follower, View};
use fold::Chain;
use model::Stream;

/// A reader of snapshots in the stream.
fn in_stream(stream: &Stream) -> Builder<Chain> {
    Follower::builder(stream.clone(), Chain::default()).in_stream()
}

/// So many records.
fn some(records: usize) -> Vec<String> {
    (0..records).map(|i| format!("record {i}")).collect()
}

/// Catches up, and has to have everything then.
async fn has_everything(follower: &Follower<Chain>, stream: &Stream) -> View<Chain> {
    follower.caught_up().await.unwrap();
    let view = loop {
        let view = follower.view().await.unwrap();
        if view.cursor >= stream.now_tail() {
            break view;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    let state: Vec<_> = view.state.seen.iter().copied().collect();
    assert_eq!(state, stream.history(u64::MAX), "it is not the fold of all");
    assert_eq!(view.cursor, stream.now_tail());
    view
}

/// What a fold's snapshot says of itself.
fn describe(stream: &Stream, cursor: u64, chain: &Chain) -> (Meta, Bytes, Totals) {
    let identity = stream.now_identity();
    let bytes = Bytes::from(chain.to_bytes());
    let meta = Meta {
        format: 1,
        fold: "chain".to_owned(),
        fold_version: 1,
        cursor,
        created_at: identity.created_at,
        lineage: identity.lineage,
        taken_at: 1,
        encoding: Encoding::None,
    };
    let mut sum = Sum::of(&meta);
    sum.update(&bytes);
    (meta, bytes, sum.totals())
}

/// The state of everything before a cursor.
fn state(stream: &Stream, cursor: u64) -> Chain {
    Chain {
        seen: stream.history(cursor).into_iter().collect(),
        ..Chain::default()
    }
}
