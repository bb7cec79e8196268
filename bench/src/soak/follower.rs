//! The readers that follow streams while the server is killed.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use futures::StreamExt;
use s2_sdk::{
    S2Stream,
    types::{ReadFrom, ReadInput, ReadSessionConfig, ReadStart, ReadStop},
};

use testkit_server::history::{checker::Seen, record};

use super::{appender::Stop, subject::Subject};

/// Pause before a session that failed is opened again.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(10);

/// Time limit for reading a whole stream.
const READ_AT_MOST: Duration = Duration::from_secs(120);

/// Follows a stream from `start` on and records what it reads, until the server is killed.
pub async fn follow(
    subject: Arc<Subject>,
    stream: S2Stream,
    start: u64,
    stop: Stop,
) -> anyhow::Result<()> {
    let follower = subject.history.lock().follower();
    let mut next = start;
    while !stop.load(Ordering::Relaxed) {
        let input = ReadInput::new().with_start(from(next));
        if let Ok(mut session) = stream.read_session(input, ReadSessionConfig::new()).await {
            while let Some(Ok(batch)) = session.next().await {
                let mut history = subject.history.lock();
                for record in &batch.records {
                    history.saw(follower, record::seen(subject.tag, record));
                    next = record.seq_num + 1;
                }
            }
        }
        tokio::time::sleep(PAUSE_AFTER_ERROR).await;
    }
    Ok(())
}

/// The tail of a stream and everything before it.
///
/// # Errors
///
/// If the stream cannot be read to its tail.
pub async fn read_all(subject: &Subject, stream: &S2Stream) -> anyhow::Result<(Vec<Seen>, u64)> {
    let tail = stream.check_tail().await?.seq_num;
    let mut contents = Vec::with_capacity(usize::try_from(tail)?);
    if tail == 0 {
        return Ok((contents, tail));
    }
    let read = async {
        // Without waiting, the session ends at the tail, wherever that is by then.
        let input = ReadInput::new()
            .with_start(from(0))
            .with_stop(ReadStop::new().with_wait(0));
        let mut session = stream.read_session(input, ReadSessionConfig::new()).await?;
        while let Some(batch) = session.next().await {
            for record in &batch?.records {
                contents.push(record::seen(subject.tag, record));
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(READ_AT_MOST, read).await??;
    Ok((contents, tail))
}

fn from(seq_num: u64) -> ReadStart {
    ReadStart::new().with_from(ReadFrom::SeqNum(seq_num))
}
