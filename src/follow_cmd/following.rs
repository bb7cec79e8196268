//! A stream that is being followed: opened, caught up with, ended.

use std::time::{Duration, Instant};

use esker_follow::{Error, Follower, MalformedRecords, S2Endpoint, SnapshotInfo, Status};

use super::fold::Folded;
use super::progress::{self, Records, TICK};
use super::server::Server;
use super::snapshot_args::SnapshotPlace;
use super::stop::Stop;
use super::{failure, report};
use crate::failure::Failure;
use crate::output;
use crate::stream_cmd::target::StreamTarget;
use crate::term::{count, plain};

/// A remark is printed about what takes longer than this.
const NOTICEABLE: Duration = Duration::from_millis(500);

/// A wait that is longer than this is remarked on: a restart of the server takes less.
const LONG: Duration = Duration::from_secs(5);

/// Further options of a follower.
pub struct Options {
    pub skip_malformed: bool,
    pub pass_over: bool,
}

/// A follower, and what messages about it need.
pub struct Following<'a> {
    pub server: &'a Server,
    pub place: &'a SnapshotPlace,
    pub stream: &'a StreamTarget,
    /// The follower's fold, or a clone: all clones share the record of changes.
    pub fold: Folded,
    pub endpoint: S2Endpoint,
    pub follower: Follower<Folded>,
    /// The next sequence number when it was opened.
    tail: u64,
    /// When it was opened and its snapshot was restored.
    opened: Instant,
    pub caught_up_in: Option<Duration>,
}

impl<'a> Following<'a> {
    /// Restores the newest snapshot, and begins to follow. `None` if that was interrupted.
    pub async fn open(
        server: &'a Server,
        place: &'a SnapshotPlace,
        stream: &'a StreamTarget,
        fold: &Folded,
        options: &Options,
        stop: &mut Stop,
    ) -> Result<Option<Following<'a>>, Failure> {
        let open = async {
            let (endpoint, tail) = server.open(stream).await?;
            let builder = Follower::builder(endpoint.clone(), fold.clone());
            let mut builder = place.configure(builder);
            if options.skip_malformed {
                builder = builder.malformed(MalformedRecords::Skip);
            }
            if options.pass_over {
                builder = builder.pass_over_unusable();
            }
            let follower = builder.open().await;
            let follower =
                follower.map_err(|e| failure::of(&e, server.address(), place.objects.as_ref()))?;
            Ok((endpoint, tail, follower))
        };
        let spinner = progress::spinner("looking for a snapshot".to_owned());
        let opened = tokio::select! {
            opened = open => Some(opened),
            () = stop.asked() => None,
        };
        spinner.finish_and_clear();
        let Some(opened) = opened else {
            return Ok(None);
        };
        let (endpoint, tail, follower) = opened?;
        for passed_over in follower.passed_over() {
            remark(&format!("passed over: {}", plain(passed_over)));
        }
        Ok(Some(Following {
            server,
            place,
            stream,
            fold: fold.clone(),
            endpoint,
            follower,
            tail,
            opened: Instant::now(),
            caught_up_in: None,
        }))
    }

    /// Waits until the state has caught up; `false` if that was interrupted. Fails if the server sends
    /// nothing for `timeout`.
    pub async fn catch_up(
        &mut self,
        stop: &mut Stop,
        timeout: Option<Duration>,
    ) -> Result<bool, Failure> {
        let status = self.follower.watch_status();
        let mut moved = (status.borrow().cursor, Instant::now());
        let bar = Records::new(moved.0, self.tail);
        let mut ticks = tokio::time::interval(TICK);
        let caught_up = self.follower.caught_up();
        let mut caught_up = std::pin::pin!(caught_up);
        let mut waiting = Waiting::default();
        let result = loop {
            tokio::select! {
                result = &mut caught_up => break result.map(|()| true).map_err(|e| self.failure(&e)),
                () = stop.asked() => break Ok(false),
                _ = ticks.tick() => {
                    let cursor = status.borrow().cursor;
                    bar.at(cursor);
                    if !output::draws_progress() {
                        waiting.look(&status.borrow());
                    }
                    if cursor != moved.0 {
                        moved = (cursor, Instant::now());
                    }
                    if timeout.is_some_and(|timeout| moved.1.elapsed() >= timeout) {
                        break Err(self.silent(cursor, moved.1.elapsed()));
                    }
                }
            }
        };
        bar.clear();
        if result.is_ok() {
            self.caught_up_in = Some(self.opened.elapsed());
        }
        result
    }

    fn silent(&self, cursor: u64, silence: Duration) -> Failure {
        let why = match self.follower.status().waits_for {
            Some(why) => format!("; last: {}", plain(&why)),
            None => String::new(),
        };
        Failure::unreachable(
            "unreachable",
            format!(
                "{} has sent nothing of {} for {} s; the state was at {cursor} of {}{why}",
                self.server.address(),
                self.stream,
                silence.as_secs(),
                self.tail
            ),
        )
    }

    /// The snapshot that it began with.
    pub fn restored(&self) -> Option<&SnapshotInfo> {
        self.follower.restored()
    }

    /// An error of the library.
    pub fn failure(&self, error: &Error) -> Failure {
        failure::of(error, self.server.address(), self.place.objects.as_ref())
    }

    /// Closes the follower, waits for a snapshot that is being taken, and prints where it stopped.
    pub async fn end(self, stop: &mut Stop) -> Result<(), Failure> {
        let status = self.follower.watch_status();
        let failure = {
            let (server, objects) = (self.server, self.place.objects.as_ref());
            move |error: Error| failure::of(&error, server.address(), objects)
        };
        let closing = self.follower.close();
        let mut closing = std::pin::pin!(closing);
        let closed = match tokio::time::timeout(NOTICEABLE, &mut closing).await {
            Ok(closed) => closed.map(drop).map_err(failure),
            Err(_) => {
                remark(
                    "A snapshot that is being taken comes to its end; Ctrl-C again ends at once.",
                );
                tokio::select! {
                    closed = &mut closing => closed.map(drop).map_err(failure),
                    () = stop.asked() => Err(Failure::wrong(
                        "interrupted",
                        "interrupted while a snapshot was being taken; what is there of it harms \
                         nobody",
                    )),
                }
            }
        };
        remark(&stands(self.stream, &status.borrow(), self.tail));
        closed
    }
}

/// What a follower waits for, remarked on once it takes long.
#[derive(Default)]
pub struct Waiting {
    since: Option<Instant>,
    is_remarked: bool,
}

impl Waiting {
    /// Remarks that it waits, or that it goes on.
    pub fn look(&mut self, status: &Status) {
        let Some(why) = &status.waits_for else {
            if self.is_remarked {
                remark("The server answers again, and the stream is followed on.");
            }
            *self = Waiting::default();
            return;
        };
        let since = *self.since.get_or_insert_with(Instant::now);
        if !self.is_remarked && since.elapsed() >= LONG {
            self.is_remarked = true;
            remark(&format!("waiting, and trying again: {}", plain(why)));
        }
    }
}

/// A text that describes where it stopped, in a stream that had at least this tail.
fn stands(stream: &StreamTarget, status: &Status, tail: u64) -> String {
    let behind = match report::tail(status).max(tail).saturating_sub(status.cursor) {
        0 if status.caught_up => String::new(),
        0 => ", which may not be all".to_owned(),
        n => format!(", {} behind the tail", count(n)),
    };
    let newest = match &status.newest {
        Some(info) => format!("; {} is the newest", report::snapshot(info)),
        None => String::new(),
    };
    format!("{stream}: stopped at {}{behind}{newest}", status.cursor)
}

/// Prints a remark to standard error.
pub fn remark(text: &str) {
    remark!("{text}");
}
