//! The options of a follower.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, watch};

use super::recover;
use super::run::Run;
use super::{Follower, Parts, QUESTIONS, Snapshots, Status, UPDATES, View};
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::external::External;
use crate::fold::Fold;
use crate::options::{MalformedRecords, Reading, Triggers, Writing};
use crate::snapshot::Encoding;

/// Most bytes of a fold's name: it is in every snapshot's description.
const NAME: usize = 256;

/// The options of a follower. By default it only follows: it takes no snapshots, and uses one if the
/// stream begins with it.
pub struct Builder<F> {
    parts: Parts<F>,
}

impl<F> std::fmt::Debug for Builder<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("snapshots", &self.parts.snapshots)
            .field("triggers", &self.parts.triggers)
            .finish_non_exhaustive()
    }
}

impl<F: Fold> Builder<F> {
    pub(super) fn new(endpoint: Arc<dyn Endpoint>, initial: F) -> Builder<F> {
        Builder {
            parts: Parts {
                endpoint,
                initial,
                snapshots: Snapshots::None,
                reading: Reading::default(),
                writing: Writing::default(),
                triggers: Triggers::default(),
            },
        }
    }

    /// Snapshots are in the stream: in one record if they fit, in many otherwise. The stream is trimmed
    /// to each.
    #[must_use]
    pub fn in_stream(self) -> Builder<F> {
        self.snapshots(Snapshots::InStream)
    }

    /// Snapshots are objects beside the stream.
    #[must_use]
    pub fn external(self, external: External) -> Builder<F> {
        self.snapshots(Snapshots::External(external))
    }

    /// Where snapshots are.
    #[must_use]
    pub fn snapshots(mut self, snapshots: Snapshots) -> Builder<F> {
        self.parts.snapshots = snapshots;
        self
    }

    /// Takes a snapshot every `records` records.
    #[must_use]
    pub fn every_records(mut self, records: u64) -> Builder<F> {
        self.parts.triggers.records = Some(records.max(1));
        self
    }

    /// Takes a snapshot every `bytes` bytes of records' bodies.
    #[must_use]
    pub fn every_bytes(mut self, bytes: u64) -> Builder<F> {
        self.parts.triggers.bytes = Some(bytes.max(1));
        self
    }

    /// Takes a snapshot once per interval, if there is anything new.
    #[must_use]
    pub fn every(mut self, interval: Duration) -> Builder<F> {
        self.parts.triggers.interval = Some(interval);
        self
    }

    /// Takes a snapshot when replaying what came since the newest one is predicted to take longer than
    /// this. The prediction uses measurements of this follower.
    #[must_use]
    pub fn budget(mut self, budget: Duration) -> Builder<F> {
        self.parts.triggers.budget = Some(budget);
        self
    }

    /// How snapshots are encoded: zstd by default.
    #[must_use]
    pub fn encoding(mut self, encoding: Encoding) -> Builder<F> {
        self.parts.writing.encoding = encoding;
        self
    }

    /// Attempts to append a snapshot within the stream directly after the last record, before it is
    /// appended at any position (anchored): 3 by default, 0 to anchor at once.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Builder<F> {
        self.parts.writing.attempts = attempts;
        self
    }

    /// What happens to records that the fold reports as malformed: by default the follower stops.
    #[must_use]
    pub fn malformed(mut self, malformed: MalformedRecords) -> Builder<F> {
        self.parts.reading.malformed = malformed;
        self
    }

    /// Passes over snapshots of another fold, of a newer version or of another stream of the same name,
    /// and uses an older one. By default, the follower does not open if it finds one of those. Damaged
    /// snapshots, and those of a history that was lost, are always passed over.
    #[must_use]
    pub fn pass_over_unusable(mut self) -> Builder<F> {
        self.parts.reading.pass_over = true;
        self
    }

    /// How long to wait for a server that does not answer, while the state is not there yet: 30 s by
    /// default, `None` for ever. After that the follower waits without a limit.
    #[must_use]
    pub fn restore_timeout(mut self, timeout: Option<Duration>) -> Builder<F> {
        self.parts.reading.restore_timeout = timeout;
        self
    }

    /// Restores the newest usable snapshot, and begins to follow.
    ///
    /// # Errors
    ///
    /// [`Error`]: history that is gone, snapshots that are not usable, a server or a store that does not
    /// answer or refuses, settings that make no sense.
    pub async fn open(self) -> Result<Follower<F>, Error> {
        let parts = self.parts;
        let name = parts.initial.name();
        if name.is_empty() || name.len() > NAME {
            return Err(Error::Invalid(format!(
                "a fold's name has 1 to {NAME} bytes, and this one {}",
                name.len()
            )));
        }
        if parts.triggers.any() && matches!(parts.snapshots, Snapshots::None) {
            return Err(Error::Invalid(
                "snapshots are to be taken, and nothing says where they go".to_owned(),
            ));
        }
        let recovered = recover::first(&parts).await?;
        let restored = recovered.snapshot.clone();
        let passed_over = recovered.tried.clone();
        let (questions, asked) = mpsc::channel(QUESTIONS);
        let (status, watched) = watch::channel(Status {
            cursor: recovered.cursor,
            ..Status::default()
        });
        let view = Arc::new(watch::Sender::new(View {
            cursor: recovered.cursor,
            state: recovered.fold.clone(),
        }));
        let (updates, _) = broadcast::channel(UPDATES);
        let run = Run::new(
            parts,
            recovered,
            asked,
            status,
            view.clone(),
            updates.clone(),
        );
        Ok(Follower {
            questions,
            status: watched,
            view,
            updates,
            restored,
            passed_over,
            task: tokio::spawn(run.run()),
        })
    }
}
