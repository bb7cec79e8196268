//! Reads the demo's stream from its first record on while records are appended, over a separate connection.
//!
//! It compares every record with the one that was sent, and keeps the next sequence number. When the
//! connection is lost, it waits for the server's new address ([`Follower::go_to`]), and continues from that
//! number.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use s2_sdk::types::{ReadFrom, ReadInput, ReadStart, SequencedRecord};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::records::Records;
use crate::failure::Failure;
use crate::remote::Remote;
use crate::server_address::ServerAddress;
use crate::stream_cmd::connection::Connection;
use crate::stream_cmd::target::StreamTarget;

/// Longest wait for the follower to see the last record after it was appended.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// A follower.
pub struct Follower {
    task: JoinHandle<Result<(), Failure>>,
    addresses: watch::Sender<ServerAddress>,
    seen: watch::Receiver<u64>,
    total: u64,
}

impl Follower {
    /// Starts to follow.
    pub fn start(target: StreamTarget, records: Arc<Records>, address: ServerAddress) -> Follower {
        Follower::spawn(target, records, address, false)
    }

    /// The same by way of a node that asks the leader: a session that breaks with the leader is lost, whatever error it
    /// ends with.
    pub fn start_by_way_of(
        target: StreamTarget,
        records: Arc<Records>,
        address: ServerAddress,
    ) -> Follower {
        Follower::spawn(target, records, address, true)
    }

    fn spawn(
        target: StreamTarget,
        records: Arc<Records>,
        address: ServerAddress,
        by_way_of_another: bool,
    ) -> Follower {
        let (addresses, mut address) = watch::channel(address);
        let (seen, watched) = watch::channel(0);
        let total = records.count();
        let task = tokio::spawn(async move {
            let mut following = Following {
                target,
                records,
                next: 0,
                seen,
                by_way_of_another,
            };
            loop {
                let server = address.borrow_and_update().clone();
                match following.follow(server).await? {
                    End::SawAll => return Ok(()),
                    // The sender of addresses was dropped: the demo ends.
                    End::Lost if address.changed().await.is_err() => return Ok(()),
                    End::Lost => {}
                }
            }
        });
        Follower {
            task,
            addresses,
            seen: watched,
            total,
        }
    }

    /// How many records it has seen, in order and without a gap.
    pub fn seen(&self) -> u64 {
        *self.seen.borrow()
    }

    /// Gives it the server's new address.
    pub fn go_to(&self, address: ServerAddress) {
        self.addresses.send_replace(address);
    }

    /// Lets it try again where it was: the server is there, and only its session was lost.
    pub fn come_back(&self) {
        self.addresses.send_modify(|_| {});
    }

    /// Waits until it has seen the last record.
    ///
    /// # Errors
    ///
    /// The first difference between what it read and what was sent; or nothing arrived within the time limit.
    pub async fn finish(mut self) -> Result<(), Failure> {
        match tokio::time::timeout(WAIT_TIMEOUT, &mut self.task).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => Err(Failure::wrong("demo", format!("the follower: {error}"))),
            Err(_) => Err(Failure::wrong(
                "demo",
                format!(
                    "the follower saw {} of {} records, and nothing more for {} s",
                    self.seen(),
                    self.total,
                    WAIT_TIMEOUT.as_secs()
                ),
            )),
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why a connection ended.
enum End {
    /// The last record was read.
    SawAll,
    /// The server is gone.
    Lost,
}

struct Following {
    target: StreamTarget,
    records: Arc<Records>,
    /// The sequence number that comes next.
    next: u64,
    seen: watch::Sender<u64>,
    by_way_of_another: bool,
}

impl Following {
    async fn follow(&mut self, server: ServerAddress) -> Result<End, Failure> {
        let Ok(connection) = Connection::open(&Remote::open(server)).await else {
            return Ok(End::Lost);
        };
        let start = ReadStart::new().with_from(ReadFrom::SeqNum(self.next));
        // No session that reconnects by itself: the next server listens at another address.
        let session = connection
            .stream(&self.target)
            .read_session(ReadInput::new().with_start(start), Default::default())
            .await;
        let mut session = match session {
            Ok(session) => session,
            Err(error) if error.is_retryable() || self.by_way_of_another => return Ok(End::Lost),
            Err(error) => {
                let failure = connection.asked_stream(&self.target).read_session(&error);
                return Err(Failure::wrong(
                    "demo",
                    format!(
                        "the follower has seen {} records and cannot go on from there: {}",
                        self.next, failure.message
                    ),
                ));
            }
        };
        while self.next < self.records.count() {
            match session.next().await {
                Some(Ok(batch)) => {
                    for record in &batch.records {
                        check(&self.records, self.next, record).map_err(|problem| {
                            Failure::wrong("demo", format!("the follower {problem}"))
                        })?;
                        self.next += 1;
                    }
                    self.seen.send_replace(self.next);
                }
                Some(Err(error)) if error.is_retryable() || self.by_way_of_another => {
                    return Ok(End::Lost);
                }
                Some(Err(error)) => {
                    let failure = connection.asked_stream(&self.target).read_session(&error);
                    return Err(Failure::wrong(
                        "demo",
                        format!(
                            "the follower, before record {}: {}",
                            self.next, failure.message
                        ),
                    ));
                }
                None => return Ok(End::Lost),
            }
        }
        Ok(End::SawAll)
    }
}

/// Checks that a record that was read is the one that was sent as number `expected`. The error is the
/// difference, as the rest of a sentence.
pub fn check(records: &Records, expected: u64, read: &SequencedRecord) -> Result<(), String> {
    if read.seq_num != expected {
        return Err(format!(
            "read sequence number {} where {expected} was to come: records are missing, or there \
             twice",
            read.seq_num
        ));
    }
    match records.get(expected) {
        None => Err(format!(
            "read a record {expected}, although only {} were sent",
            records.count()
        )),
        Some(sent) if !same_body(records, expected, read) => Err(format!(
            "read a record {expected} that is not what was sent: `{}` instead of `{}`",
            read.body.escape_ascii(),
            sent.escape_ascii()
        )),
        Some(_) => Ok(()),
    }
}

/// Whether what was read is this record, whatever number it has.
pub fn same_body(records: &Records, number: u64, read: &SequencedRecord) -> bool {
    records.get(number) == Some(&read.body) && read.headers.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_is_missing_doubled_altered_or_made_up_is_found() {
        let records = Records::flights();
        let read = |seq_num, of| {
            let body = records.get(of).unwrap().clone();
            SequencedRecord::from_parts(seq_num, 0, Vec::new(), body)
        };
        assert_eq!(check(&records, 7, &read(7, 7)), Ok(()));
        for (what, record) in [
            ("missing", read(8, 8)),
            ("doubled", read(6, 6)),
            ("altered", read(7, 8)),
        ] {
            assert!(check(&records, 7, &record).is_err(), "{what}");
        }
        let made_up = SequencedRecord::from_parts(20_000, 0, Vec::new(), "{}");
        assert!(check(&records, 20_000, &made_up).is_err());
    }
}
