//! Following a stream with a fold.
//!
//! | module | what it holds |
//! |---|---|
//! | [`builder`] | the options of a follower |
//! | [`recover`] | where it begins: the newest usable snapshot |
//! | [`run`] | its task: reading, applying, publishing |
//! | [`snapshot_task`] | when a snapshot is due, and how it is taken meanwhile |
//! | [`updates`] | what it publishes |
//!
//! One task owns the state. Other code asks the task, or gets a clone.

mod builder;
mod recover;
mod run;
mod snapshot_task;
mod updates;

use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;

pub use builder::Builder;
pub use updates::{Status, Update, View};

use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::external::External;
use crate::fold::Fold;
use crate::options::{Reading, Triggers, Writing};
use crate::snapshot::SnapshotInfo;

/// Updates that wait for a slow receiver.
const UPDATES: usize = 256;
/// Questions that wait for the task.
const QUESTIONS: usize = 16;

/// Where snapshots are.
#[derive(Clone, Debug)]
pub enum Snapshots {
    /// Nowhere. If the stream begins with one, it is used.
    None,
    /// In the stream.
    InStream,
    /// Beside it.
    External(External),
}

/// What a follower is made of.
pub(crate) struct Parts<F> {
    pub endpoint: Arc<dyn Endpoint>,
    pub initial: F,
    pub snapshots: Snapshots,
    pub reading: Reading,
    pub writing: Writing,
    pub triggers: Triggers,
}

/// The questions to the task.
enum Question<F> {
    View(oneshot::Sender<View<F>>),
    Publish(oneshot::Sender<()>),
    Snapshot(oneshot::Sender<Result<SnapshotInfo, Error>>),
    Close(oneshot::Sender<View<F>>),
}

/// A stream that is being followed. It stops when this is dropped; [`Follower::close`] lets a snapshot
/// that is being taken finish first.
pub struct Follower<F> {
    questions: mpsc::Sender<Question<F>>,
    status: watch::Receiver<Status>,
    view: Arc<watch::Sender<View<F>>>,
    updates: broadcast::Sender<Update>,
    restored: Option<SnapshotInfo>,
    passed_over: Vec<String>,
    task: tokio::task::JoinHandle<()>,
}

impl<F> std::fmt::Debug for Follower<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let status = self.status.borrow().clone();
        f.debug_struct("Follower").field("status", &status).finish()
    }
}

impl<F> Drop for Follower<F> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<F: Fold> Follower<F> {
    /// Follows a stream with a fold, whose current value is the empty state.
    pub fn builder(endpoint: impl Endpoint, fold: F) -> Builder<F> {
        Builder::new(Arc::new(endpoint), fold)
    }

    /// The snapshot that it began with.
    pub fn restored(&self) -> Option<&SnapshotInfo> {
        self.restored.as_ref()
    }

    /// Snapshots that it found and did not begin with, and why not.
    pub fn passed_over(&self) -> &[String] {
        &self.passed_over
    }

    /// The current status.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// The status, as it changes.
    pub fn watch_status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Updates from now on. A receiver that is too slow misses updates, and gets their number.
    pub fn updates(&self) -> impl Stream<Item = Update> + Send + Unpin + use<F> {
        BroadcastStream::new(self.updates.subscribe()).map(|update| match update {
            Ok(update) => update,
            Err(BroadcastStreamRecvError::Lagged(missed)) => Update::Missed(missed),
        })
    }

    /// The state now.
    ///
    /// # Errors
    ///
    /// The error that the follower ended with.
    pub async fn view(&self) -> Result<View<F>, Error> {
        self.ask(Question::View).await
    }

    /// The state, as it changes: at every tail, and ten times a second on the way there. The state is
    /// cloned each time, for as long as it is watched.
    ///
    /// # Errors
    ///
    /// The error that the follower ended with.
    pub async fn watch(&self) -> Result<watch::Receiver<View<F>>, Error> {
        let watching = self.view.subscribe();
        self.ask(Question::Publish).await?;
        Ok(watching)
    }

    /// Waits until everything up to the tail is in the state.
    ///
    /// # Errors
    ///
    /// The error that the follower ended with.
    pub async fn caught_up(&self) -> Result<(), Error> {
        let mut status = self.status.clone();
        let met = status.wait_for(|status| status.caught_up || status.ended.is_some());
        match met.await.map(|status| status.ended.clone()) {
            Ok(None) => Ok(()),
            Ok(Some(ended)) => Err(ended.unwrap_or(Error::Ended)),
            Err(_) => Err(Error::Ended),
        }
    }

    /// Takes a snapshot now. If nothing is new since the newest one, returns that one.
    ///
    /// # Errors
    ///
    /// [`Error::NotTaken`], [`Error::Store`], or the error that the follower ended with.
    pub async fn snapshot(&self) -> Result<SnapshotInfo, Error> {
        self.ask(Question::Snapshot).await?
    }

    /// Stops, and returns the state. A snapshot that is being taken is finished first.
    ///
    /// # Errors
    ///
    /// The error that the follower ended with before.
    pub async fn close(self) -> Result<View<F>, Error> {
        self.ask(Question::Close).await
    }

    /// Waits until it ends by itself, and returns why.
    pub async fn ended(&self) -> Error {
        let mut status = self.status.clone();
        let ended = status.wait_for(|status| status.ended.is_some()).await;
        let ended = ended.ok().and_then(|status| status.ended.clone());
        ended.flatten().unwrap_or(Error::Ended)
    }

    async fn ask<A>(
        &self,
        question: impl FnOnce(oneshot::Sender<A>) -> Question<F>,
    ) -> Result<A, Error> {
        let (answer, answered) = oneshot::channel();
        if self.questions.send(question(answer)).await.is_ok()
            && let Ok(answer) = answered.await
        {
            return Ok(answer);
        }
        let ended = self.status.borrow().ended.clone();
        Err(ended.flatten().unwrap_or(Error::Ended))
    }
}
