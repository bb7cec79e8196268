//! Folds that differ, refuse and panic.

use std::io::{self, Read, Write};

use esker_follow::snapshot::Meta;
use esker_follow::{
    ApplyError, Error, Fold, Follower, MalformedRecords, SequencedRecord, Unusable,
};
use futures::StreamExt as _;

use crate::model::Stream;
use crate::some;

/// Counts records, but for some.
#[derive(Clone, Debug)]
struct Picky {
    name: &'static str,
    version: u32,
    count: u64,
}

impl Picky {
    fn new(name: &'static str, version: u32) -> Picky {
        Picky {
            name,
            version,
            count: 0,
        }
    }
}

impl Fold for Picky {
    fn name(&self) -> &str {
        self.name
    }

    fn version(&self) -> u32 {
        self.version
    }

    fn apply(&mut self, record: &SequencedRecord) -> Result<(), ApplyError> {
        match &record.body[..] {
            b"malformed" => Err(ApplyError::Malformed("not for me".to_owned())),
            b"fails" => Err(ApplyError::Failed("no more".to_owned())),
            b"panics" => panic!("on purpose"),
            _ => {
                self.count += 1;
                Ok(())
            }
        }
    }

    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.count.to_be_bytes())
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        let mut bytes = [0; 8];
        from.read_exact(&mut bytes)?;
        self.count = u64::from_be_bytes(bytes);
        Ok(())
    }
}

fn reader(stream: &Stream, fold: Picky) -> esker_follow::Builder<Picky> {
    Follower::builder(stream.clone(), fold).in_stream()
}

/// A stream that begins with this fold's snapshot.
async fn with_snapshot(fold: Picky) -> Stream {
    let stream = Stream::new(1);
    stream.data(some(5));
    let follower = reader(&stream, fold).open().await.unwrap();
    follower.caught_up().await.unwrap();
    follower.snapshot().await.unwrap();
    stream
}

#[tokio::test(start_paused = true)]
async fn another_fold_s_snapshot_is_refused_or_passed_over_by_choice() {
    let stream = with_snapshot(Picky::new("theirs", 1)).await;
    match reader(&stream, Picky::new("ours", 1)).open().await {
        Err(Error::OtherFold { other, ours, .. }) => {
            assert!(other.contains("`theirs`"), "{other}");
            assert_eq!(ours, "ours");
        }
        other => panic!("{other:?}"),
    }
    // Passed over, nothing is left that covers what is gone.
    let builder = reader(&stream, Picky::new("ours", 1)).pass_over_unusable();
    match builder.open().await {
        Err(Error::HistoryGone { head: 6, tried, .. }) => {
            assert!(tried[0].contains("theirs"), "{tried:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_newer_version_s_snapshot_is_refused_and_an_older_one_s_restored() {
    let stream = with_snapshot(Picky::new("ours", 2)).await;
    match reader(&stream, Picky::new("ours", 1)).open().await {
        Err(Error::Unusable {
            why: Unusable::NewerFold { theirs: 2, .. },
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    for version in [2, 3] {
        let builder = reader(&stream, Picky::new("ours", version));
        let follower = builder.open().await.unwrap();
        assert_eq!(follower.view().await.unwrap().state.count, 5);
    }
}

#[test]
fn a_newer_format_is_refused() {
    let meta: Meta = serde_json::from_str(
        r#"{"format":2,"fold":"ours","fold_version":1,"cursor":1,"taken_at":1,"encoding":"none","new":[]}"#,
    )
    .unwrap();
    let refused = meta.usable("ours", 1, &Default::default());
    assert_eq!(refused, Err(Unusable::NewerFormat(2)));
}

#[tokio::test(start_paused = true)]
async fn a_malformed_record_stops_with_its_position_or_is_skipped_and_counted() {
    let stream = Stream::new(1);
    stream.data(["a", "malformed", "b"]);
    let stops = reader(&stream, Picky::new("ours", 1)).open().await.unwrap();
    match stops.ended().await {
        Error::Malformed { seq_num: 1, .. } => {}
        other => panic!("{other:?}"),
    }
    assert!(matches!(stops.view().await, Err(Error::Malformed { .. })));
    let builder = reader(&stream, Picky::new("ours", 1)).malformed(MalformedRecords::Skip);
    let skips = builder.open().await.unwrap();
    skips.caught_up().await.unwrap();
    let view = skips.view().await.unwrap();
    assert_eq!((view.cursor, view.state.count), (3, 2));
    assert_eq!(skips.status().skipped, 1);
}

#[tokio::test(start_paused = true)]
async fn a_fold_that_panics_or_fails_ends_the_follower_and_names_the_position() {
    for (body, says) in [("panics", "on purpose"), ("fails", "no more")] {
        let stream = Stream::new(1);
        stream.data(["a", "b"]);
        let follower = reader(&stream, Picky::new("ours", 1)).open().await.unwrap();
        follower.caught_up().await.unwrap();
        let mut updates = follower.updates();
        stream.data(["c", body]);
        match follower.ended().await {
            Error::FoldFailed {
                seq_num: 3, why, ..
            } => assert!(why.contains(says), "{why}"),
            other => panic!("{other:?}"),
        }
        while let Some(update) = updates.next().await {
            if let esker_follow::Update::Ended(Some(_)) = update {
                break;
            }
        }
        assert!(follower.snapshot().await.is_err());
        assert!(follower.close().await.is_err());
    }
}
