//! Reading ahead of a session that catches up, on a thread where blocking is fine.
//!
//! The thread keeps its place in the database from one scan to the next, so that a session of many scans
//! searches its stream once. A place keeps files and memtables that were replaced meanwhile from being removed, so
//! a run is short: it ends when the session does not take a scan within [`TAKE_TIMEOUT`], after
//! [`MAX_RUN`], when memory gets short, or when the records in memory continue. A session then begins another.
//! Threads are taken in turns by principal ([`ReadBudget::scanning`]): scans of one that a slow disk holds up leave
//! threads to others.

use std::sync::Arc;
use std::time::Duration;

use esker_partition::reader::{Place, ScanEnd};
use esker_partition::stream::Stream;
use esker_partition::{Cursor, ReadError, Reader, Scan};
use s2_common::read_extent::{EvaluatedReadLimit, ReadLimit, ReadUntil};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::admission::Client;
use crate::blocking::join;
use crate::read_budget::{ReadBudget, ReadPermit};

/// How long a scan waits for its session. A client that takes 50 MiB/s or more does not end the run.
const TAKE_TIMEOUT: Duration = Duration::from_millis(20);
/// How long a run lasts.
const MAX_RUN: Duration = Duration::from_secs(1);

/// Scans that are made one after the other, at most one ahead of the session.
pub(crate) struct Run {
    scans: mpsc::Receiver<Read>,
    thread: JoinHandle<()>,
}

/// The result of a scan, and the permit for its memory.
pub(crate) type Read = (Result<Scan, ReadError>, ReadPermit);

/// Where a run reads.
pub(crate) struct Source {
    pub reader: Reader,
    pub stream: Arc<Stream>,
    pub budget: ReadBudget,
    /// Whose memory it is.
    pub client: Client,
}

impl Run {
    /// Begins to read at a cursor. The permit is for the first scan.
    pub fn begin(
        source: Source,
        cursor: Cursor,
        limit: ReadLimit,
        until: ReadUntil,
        permit: ReadPermit,
    ) -> Run {
        let (sender, scans) = mpsc::channel(1);
        let (turns, client) = (source.budget.scanning().clone(), source.client);
        let may_go_on = source.budget.try_run();
        let runtime = Handle::current();
        let from = (cursor, limit, until);
        let thread = match turns.try_take(client, 1) {
            Ok(turn) => tokio::task::spawn_blocking(move || {
                source.read(&runtime, &sender, from, permit, may_go_on);
                drop(turn);
            }),
            Err(_) => tokio::spawn(async move {
                let turn = tokio::select! {
                    turn = turns.wait(client, 1) => turn,
                    // The session has ended.
                    () = sender.closed() => return,
                };
                let read = tokio::task::spawn_blocking(move || {
                    source.read(&runtime, &sender, from, permit, may_go_on);
                    drop(turn);
                });
                join(read).await;
            }),
        };
        Run { scans, thread }
    }

    /// A run whose disk does not answer until what this returns beside it is dropped.
    #[cfg(test)]
    pub fn hanging() -> (Run, mpsc::Sender<Read>) {
        let (sender, scans) = mpsc::channel(1);
        let thread = tokio::task::spawn_blocking(|| ());
        (Run { scans, thread }, sender)
    }

    /// The next scan; `None` when the run has ended. Must not be called again after that. The future can be dropped and
    /// this be called again.
    pub async fn next(&mut self) -> Option<Read> {
        match self.scans.recv().await {
            Some(read) => Some(read),
            None => {
                // A panic of the thread is raised again here.
                join(&mut self.thread).await;
                None
            }
        }
    }
}

impl Source {
    fn read(
        self,
        runtime: &Handle,
        sender: &mpsc::Sender<Read>,
        (mut cursor, mut limit, until): (Cursor, ReadLimit, ReadUntil),
        mut permit: ReadPermit,
        may_go_on: Option<OwnedSemaphorePermit>,
    ) {
        let begun = Instant::now();
        let mut place = Place::default();
        loop {
            let scan = (self.reader).scan_on(&self.stream, cursor, limit, until, &mut place);
            let next = match &scan {
                Ok(scan) => self.next(scan, limit),
                Err(_) => None,
            };
            // The channel is empty: the last scan was taken. The permit stays with the records, even if the session
            // has ended.
            if sender.try_send((scan, permit)).is_err() || may_go_on.is_none() {
                return;
            }
            let Some((after, left)) = next else { return };
            if begun.elapsed() >= MAX_RUN {
                return;
            }
            let taken = runtime.block_on(timeout(TAKE_TIMEOUT, sender.reserve()));
            let Ok(Ok(_)) = taken else { return };
            let Some(claimed) = self.budget.try_claim_ahead(self.client) else {
                return;
            };
            (cursor, limit, permit) = (after, left, claimed);
        }
    }

    /// Where the scan after this one begins, and its limit, if the database has to be read for it.
    fn next(&self, scan: &Scan, limit: ReadLimit) -> Option<(Cursor, ReadLimit)> {
        let after = scan.cursor();
        let (count, bytes) = (scan.records.len(), scan.records.metered_size());
        match limit.remaining(count, bytes) {
            EvaluatedReadLimit::Remaining(left)
                if scan.end == ScanEnd::More && !self.stream.has_recent(after.resumes_at()) =>
            {
                Some((after, left))
            }
            _ => None,
        }
    }
}
