//! Runs calls that wait for a disk.

use std::sync::Arc;

use esker_node::{Client, Error, StateError};
use tonic::Status;

use super::status::{refused, status, too_much, unavailable};
use crate::answers::{Answers, Scan};
use crate::turns::Turns;

/// Runs a scan, in turn and with memory for its answer. `find` gets how many bytes it may find, and returns `None` as
/// soon as there are more.
///
/// # Errors
///
/// Those of `find`; `UNAVAILABLE` if there was no turn or no memory in time, and `RESOURCE_EXHAUSTED` if no answer may
/// have as much.
pub(super) async fn scan<T: Send + 'static>(
    answers: &Answers,
    client: Client,
    find: impl Fn(usize) -> Result<Option<T>, Status> + Send + Sync + 'static,
) -> Result<(T, Scan), Status> {
    let find = Arc::new(find);
    let mut scan = answers.scan(client).await.map_err(refused)?;
    loop {
        let find = find.clone();
        // The thread keeps the place until it has ended, even if the caller is gone.
        let (found, ended) = read(move || Ok((find(scan.most())?, scan))).await?;
        match found {
            Some(found) => return Ok((found, ended)),
            None if ended.is_whole() => return Err(too_much()),
            None => drop(ended),
        }
        scan = answers.whole_scan(client).await.map_err(refused)?;
    }
}

/// Runs a read where it may block. All reads go through here, except for single keys that are in the
/// cache.
///
/// # Errors
///
/// Those of the read.
async fn read<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    // A panic in it has been reported by the panic hook; an end of the runtime is a stop.
    tokio::task::spawn_blocking(read)
        .await
        .unwrap_or_else(|_| Err(status(&StateError::Stopping)))
}

/// The same, in turn.
///
/// # Errors
///
/// Those of the read; `UNAVAILABLE` if its turn has not come in time.
pub(super) async fn read_in_turn<T: Send + 'static>(
    turns: &Turns,
    client: Client,
    read: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    match turns.run(client, read).await {
        Ok(done) => done,
        Err(error) => Err(no_turn(error)),
    }
}

/// Runs work that waits for threads of its own, in turn. Once begun, it goes on and keeps its turn, even if the caller is
/// gone.
///
/// # Errors
///
/// Those of the work; `UNAVAILABLE` if its turn has not come in time.
pub(super) async fn in_turn<T: Send + 'static>(
    turns: &Turns,
    client: Client,
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    let turn = turns.turn(client).await.map_err(no_turn)?;
    let done = tokio::spawn(async move {
        let _turn = turn;
        work.await
    });
    // A panic in it has been reported by the panic hook; an end of the runtime is a stop.
    done.await
        .unwrap_or_else(|_| Err(status(&StateError::Stopping)))
}

fn no_turn(error: Error) -> Status {
    match error {
        Error::TryLater(why) => unavailable(why),
        _ => status(&StateError::Stopping),
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lists_of_snapshots_that_one_principal_has_queued_hold_up_one_of_another_for_one() {
        let of = |principal| Client {
            principal,
            connection: 0,
        };
        let turns = Turns::of_snapshots();
        let (read, is_read) = tokio::sync::watch::channel(false);
        let list = |principal| {
            let mut is_read = is_read.clone();
            let work = async move {
                let read = is_read.wait_for(|read| *read).await;
                read.map(|_| ()).map_err(|_| Status::internal("never read"))
            };
            Box::pin(in_turn(&turns, of(principal), work))
        };
        let mut flood: Vec<_> = (0..100).map(|_| list(1)).collect();
        for waits in &mut flood {
            assert!(waits.now_or_never().is_none());
        }
        // They go on without those who have asked, and keep their turns.
        flood.drain(..2);
        let late = list(2).await.unwrap_err();
        assert_eq!(late.code(), tonic::Code::Unavailable, "{late:?}");
        let mut other = list(2);
        assert!((&mut other).now_or_never().is_none());
        // One that waits has the one turn, and the other principal the next.
        read.send(true).unwrap();
        other.await.unwrap();
    }
}
