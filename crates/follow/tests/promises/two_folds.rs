//! Two folds on one stream: no trim destroys the other's newest snapshot.

use std::io::{self, Read, Write};
use std::time::Duration;

use esker_follow::{ApplyError, Builder, Error, Fold, Follower, SequencedRecord};
use s2_sdk::types::AppendRecord;

use crate::fold::Chain;
use crate::model::{Scripted, Stream};
use crate::{has_everything, in_stream, some};

/// Counts records.
#[derive(Clone, Default)]
struct Counter {
    records: u64,
    /// Bytes that a snapshot has besides.
    padding: usize,
}

impl Fold for Counter {
    fn name(&self) -> &str {
        "counter"
    }

    fn apply(&mut self, _: &SequencedRecord) -> Result<(), ApplyError> {
        self.records += 1;
        Ok(())
    }

    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.records.to_be_bytes())?;
        let noise = Chain {
            padding: self.padding,
            ..Chain::default()
        };
        noise.snapshot(out)
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        let mut bytes = [0; 8];
        from.read_exact(&mut bytes)?;
        self.records = u64::from_be_bytes(bytes);
        io::copy(from, &mut io::sink())?;
        Ok(())
    }
}

fn counting(stream: &Stream) -> Builder<Counter> {
    Follower::builder(stream.clone(), Counter::default()).in_stream()
}

/// The chain's snapshot is still there, and so is what follows it.
async fn chain_recovers(stream: &Stream, cursor: u64) {
    let reader = in_stream(stream).open().await.unwrap();
    assert_eq!(reader.restored().unwrap().cursor, cursor);
    has_everything(&reader, stream).await;
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_would_trim_another_folds_away_is_refused() {
    let stream = Stream::new(1);
    stream.data(some(5));
    let chain = in_stream(&stream).open().await.unwrap();
    let counter = counting(&stream).open().await.unwrap();
    has_everything(&chain, &stream).await;
    counter.caught_up().await.unwrap();
    chain.snapshot().await.unwrap();
    stream.data(some(3));
    let tail = stream.now_tail();
    let mut status = counter.watch_status();
    let read = status.wait_for(|status| status.cursor == tail).await;
    drop(read.unwrap());
    match counter.snapshot().await {
        Err(Error::OtherFold { other, ours, .. }) => {
            assert!(other.contains("`chain`"), "{other}");
            assert_eq!(ours, "counter");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(stream.now_tail(), tail, "nothing was appended");
    assert_eq!(counter.status().failed, 1);
    assert_eq!(counter.view().await.unwrap().state.records, 8, "it goes on");
    chain_recovers(&stream, 5).await;
    // The one whose snapshots they are goes on taking them.
    chain.snapshot().await.unwrap();
    chain_recovers(&stream, 10).await;
}

#[tokio::test(start_paused = true)]
async fn a_fold_does_not_start_where_another_has_its_snapshots() {
    let stream = Stream::new(1);
    stream.data(some(5));
    let chain = in_stream(&stream).open().await.unwrap();
    has_everything(&chain, &stream).await;
    chain.snapshot().await.unwrap();
    match counting(&stream).open().await {
        Err(Error::OtherFold { .. }) => {}
        other => panic!("{other:?}"),
    }
    chain_recovers(&stream, 5).await;
}

#[tokio::test(start_paused = true)]
async fn a_fold_that_reads_another_folds_snapshot_on_its_way_ends_at_the_tail() {
    let stream = Stream::new(1);
    stream.data(some(5));
    // All records are still there, so that any fold can begin with the first one.
    stream.set_faults(crate::model::Faults {
        trim_delay: 1_000_000_000,
        ..crate::model::Faults::none()
    });
    let chain = in_stream(&stream).attempts(0).open().await.unwrap();
    has_everything(&chain, &stream).await;
    chain.snapshot().await.unwrap();
    let counter = counting(&stream).pass_over_unusable();
    let counter = counter.every_records(1).open().await.unwrap();
    match counter.ended().await {
        Error::OtherFold { .. } => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(counter.status().taken, 0);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_another_fold_appended_meanwhile_is_not_trimmed_away() {
    let stream = Stream::new(1);
    stream.data(some(5));
    let chain = in_stream(&stream).open().await.unwrap();
    has_everything(&chain, &stream).await;
    let builder = Follower::builder(
        stream.clone(),
        Counter {
            padding: 3 << 20,
            ..Counter::default()
        },
    );
    let counter = builder.in_stream().open().await.unwrap();
    counter.caught_up().await.unwrap();
    // The chain's lands between the first fragment of the other and its end.
    let (meta, body, totals) = crate::describe(&stream, 5, &crate::state(&stream, 5));
    let id = uuid::Uuid::new_v4();
    let single = esker_follow::snapshot::record::single_record(id, &meta, &totals, body);
    let batch: Vec<AppendRecord> = vec![
        esker_follow::snapshot::record::trim_record(5),
        single.unwrap(),
    ];
    let more = AppendRecord::new("more").unwrap();
    stream.script([Scripted {
        after: Box::new(move |stream| {
            stream.land(&[more], None).unwrap();
            stream.land(&batch, None).unwrap();
        }),
        ..Scripted::default()
    }]);
    // Its own cursor is no further than the chain's: both are whole, and nothing is lost.
    let taken = counter.snapshot().await;
    assert!(taken.is_ok(), "{taken:?}");
    chain_recovers_passing_over(&stream).await;
    // From now on a further one would trim the chain's away.
    stream.data(some(3));
    let tail = stream.now_tail();
    let mut status = counter.watch_status();
    drop(
        status
            .wait_for(|status| status.cursor >= tail)
            .await
            .unwrap(),
    );
    let refused = counter.snapshot().await;
    assert!(
        matches!(refused, Err(Error::OtherFold { .. })),
        "{refused:?}"
    );
    chain_recovers_passing_over(&stream).await;
}

#[tokio::test(start_paused = true)]
async fn another_folds_snapshot_in_front_of_a_gap_is_not_trimmed_away() {
    let stream = Stream::new(1);
    stream.data(some(5));
    let counter = counting(&stream).open().await.unwrap();
    counter.caught_up().await.unwrap();
    stream.fork(5);
    stream.data(some(2));
    // Its trim leaps over the gap, behind its cursor.
    let (meta, body, totals) = crate::describe(&stream, 5, &crate::state(&stream, 5));
    let id = uuid::Uuid::new_v4();
    let single = esker_follow::snapshot::record::single_record(id, &meta, &totals, body);
    let trim = esker_follow::snapshot::record::trim_record(5);
    stream.land(&[trim, single.unwrap()], None).unwrap();
    stream.data(some(3));
    let tail = stream.now_tail();
    let mut status = counter.watch_status();
    let read = status.wait_for(|status| status.cursor == tail).await;
    drop(read.unwrap());
    let refused = counter.snapshot().await;
    assert!(
        matches!(refused, Err(Error::OtherFold { .. })),
        "{refused:?}"
    );
    chain_recovers(&stream, 5).await;
}

async fn chain_recovers_passing_over(stream: &Stream) {
    let reader = in_stream(stream).pass_over_unusable();
    let recovered = recovered(reader).await;
    assert_eq!(recovered, Some(5));
}

/// The cursor of what a follower begins with, if there is anything.
async fn recovered(builder: Builder<Chain>) -> Option<u64> {
    let follower = builder.open().await.unwrap();
    follower.restored().map(|info| info.cursor)
}

#[tokio::test(start_paused = true)]
async fn once_the_other_folds_snapshot_is_trimmed_away_by_hand_this_one_may_be_taken() {
    let stream = Stream::new(1);
    stream.data(some(5));
    let chain = in_stream(&stream).open().await.unwrap();
    let counter = counting(&stream).open().await.unwrap();
    has_everything(&chain, &stream).await;
    counter.caught_up().await.unwrap();
    chain.snapshot().await.unwrap();
    drop(chain);
    let trim = esker_follow::snapshot::record::trim_record(stream.now_tail());
    stream.land(&[trim], None).unwrap();
    let tail = stream.now_tail();
    let mut status = counter.watch_status();
    drop(
        status
            .wait_for(|status| status.cursor == tail)
            .await
            .unwrap(),
    );
    stream.data(some(1));
    tokio::time::sleep(Duration::from_secs(1)).await;
    counter.snapshot().await.unwrap();
    let reader = counting(&stream).open().await.unwrap();
    reader.caught_up().await.unwrap();
    assert_eq!(reader.view().await.unwrap().state.records, 6);
}
