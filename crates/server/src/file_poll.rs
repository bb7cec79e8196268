//! Follows files while the server runs: they are read again and again beside requests, and a file system that
//! hangs holds up nothing else.
//!
//! [`follow`] is the loop; a [`Follower`] reads its files once and reports by an [`Outcome`] what came of it: a
//! metric, a problem in the status, and one line in the log for each change.

use std::time::Duration;

use esker_node::HostProblems;
use tokio_util::sync::CancellationToken;

/// How long a reading may take before that is reported.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// What reads files and uses what is in them.
pub(crate) trait Follower: Send + 'static {
    /// Reads the files once.
    fn poll(&mut self);

    /// What came of it.
    fn outcome(&mut self) -> &mut Outcome;
}

/// How files are called in the log and the status.
#[derive(Debug)]
pub(crate) struct Texts {
    /// The code of the problem that they cannot be used.
    pub code: &'static str,
    /// The counter of their changes, by `result`.
    pub reloads: &'static str,
    /// `The root token file`, `The TLS files`.
    pub files: &'static str,
    /// What is used instead: `the token of before stays`.
    pub instead: &'static str,
}

/// What came of the readings.
#[derive(Debug)]
pub(crate) struct Outcome {
    texts: &'static Texts,
    pub(crate) problems: HostProblems,
    /// Why the files cannot be used, so that it is logged once.
    pub(crate) failure: Option<String>,
}

impl Outcome {
    pub fn new(texts: &'static Texts, problems: HostProblems) -> Outcome {
        for result in ["ok", "failed"] {
            metrics::counter!(texts.reloads, "result" => result).increment(0);
        }
        Outcome {
            texts,
            problems,
            failure: None,
        }
    }

    /// The files have something else than before, which is used from now on.
    pub fn replaced(&mut self) {
        metrics::counter!(self.texts.reloads, "result" => "ok").increment(1);
        self.unchanged();
    }

    /// The files can be used, and have what is used already.
    pub fn unchanged(&mut self) {
        if self.failure.take().is_some() {
            tracing::info!("{} can be used again", self.texts.files);
            self.problems.clear(self.texts.code);
        }
    }

    /// The files cannot be used.
    pub fn failed(&mut self, why: String) {
        if self.failure.as_ref() == Some(&why) {
            return;
        }
        let Texts { files, instead, .. } = self.texts;
        tracing::warn!(error = %why, "{files} cannot be used: {instead}");
        metrics::counter!(self.texts.reloads, "result" => "failed").increment(1);
        self.problems.set(
            self.texts.code,
            format!("{files} cannot be used, so {instead}: {why}"),
            "correct the file; it is read again by itself",
        );
        self.failure = Some(why);
    }

    /// What reports that a reading takes long.
    fn on_timeout(&self) -> impl FnOnce() + use<> {
        let (texts, problems) = (self.texts, self.problems.clone());
        move || {
            let Texts { files, instead, .. } = texts;
            let what =
                format!("{files} cannot be read, so {instead}: the file system does not answer");
            tracing::warn!("{what}");
            let remedy = "look at that file system; it is read again by itself";
            problems.set(texts.code, what, remedy);
        }
    }

    /// The reading that took long has ended, before the next one.
    fn answered(&mut self) {
        self.problems.clear(self.texts.code);
        // What was wrong besides is reported again by the next reading.
        self.failure = None;
    }
}

/// Reads the files every `interval` until `stop`.
pub(crate) async fn follow(
    mut follower: impl Follower,
    interval: Duration,
    stop: CancellationToken,
) {
    while tokio::time::timeout(interval, stop.cancelled())
        .await
        .is_err()
    {
        let on_timeout = follower.outcome().on_timeout();
        let Some(reading) = read(follower, Follower::poll, on_timeout).await else {
            return;
        };
        follower = reading.reader;
        if reading.hung {
            follower.outcome().answered();
        }
    }
}

/// A reading that has ended.
struct Reading<T> {
    /// What has read.
    reader: T,
    /// Whether it took longer than [`READ_TIMEOUT`], so that `on_timeout` was called.
    hung: bool,
}

/// Reads on a thread where blocking is fine. After [`READ_TIMEOUT`], `on_timeout` is called once, and the wait
/// goes on: readings do not pile up. `None` if the reading has panicked, which the panic hook has reported.
async fn read<T: Send + 'static>(
    mut reader: T,
    read: impl FnOnce(&mut T) + Send + 'static,
    on_timeout: impl FnOnce(),
) -> Option<Reading<T>> {
    let mut reading = tokio::task::spawn_blocking(move || {
        read(&mut reader);
        reader
    });
    let in_time = tokio::time::timeout(READ_TIMEOUT, &mut reading).await;
    let hung = in_time.is_err();
    let read = match in_time {
        Ok(read) => read,
        Err(_) => {
            on_timeout();
            reading.await
        }
    };
    let reader = read.ok()?;
    Some(Reading { reader, hung })
}
