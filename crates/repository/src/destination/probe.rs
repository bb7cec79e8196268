//! Tests whether a store's conditional puts can be relied on.
//!
//! The consistency of a repository depends on them: if two writers both believe that they have swapped the
//! root, the snapshot of one is lost. Some stores ignore the condition and answer with success, and some
//! proxies drop the header. So before anything is written, [`probe`] executes the steps of the protocol on a
//! random key, and deletes it.

use std::time::Duration;

use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{
    Error, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload, PutResult, Result as StoreResult,
    UpdateVersion,
};

use super::Destination;
use crate::env::{Env, within};
use crate::store::is_no_bucket;

/// Directory of probes, below the destination's prefix. It is not a valid name of a partition.
const DIR: &str = ".esker-probe";

/// A step without an answer for this long has failed.
const SILENCE: Duration = Duration::from_secs(60);

/// Number of races without a winner after which the store counts as wrong.
const RACES: usize = 3;

/// Why a store cannot be written to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// The credentials do not permit to write.
    #[error("{destination} may not be written to with these credentials: {source}")]
    ReadOnly {
        /// Its URL.
        destination: String,
        /// The answer of the store.
        source: Error,
    },
    /// Nothing is known about its conditional puts, because a request failed.
    #[error("cannot {what} while probing {destination}: {source}")]
    Failed {
        /// The step that failed.
        what: &'static str,
        /// Its URL.
        destination: String,
        /// The answer of the store.
        source: Error,
    },
    /// There is no such bucket.
    #[error("there is no bucket for {destination} (NoSuchBucket): make it, or correct the URL")]
    NoBucket {
        /// Its URL.
        destination: String,
    },
    /// The store gave no answer to a request.
    #[error("{destination} gave no answer within {} s when asked to {what}", SILENCE.as_secs())]
    Silent {
        /// The step that got no answer.
        what: &'static str,
        /// Its URL.
        destination: String,
    },
    /// The store must not be used: its answers contradict what it did.
    #[error("{destination} cannot be used for writing: {lie}")]
    Liar {
        /// Its URL.
        destination: String,
        /// What the store did.
        lie: Lie,
    },
}

/// Something that a store did and must not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Lie {
    /// The store ignores `If-None-Match: *`.
    #[error(
        "it replaced an object although it was asked to create it only if absent (If-None-Match: *)"
    )]
    ReplacedOnCreate,
    /// The store returns no ETag, so no condition can name one.
    #[error("it gave no ETag for what was put, so that nothing can be updated conditionally")]
    NoETag,
    /// The store refuses `If-Match` with the right ETag.
    #[error("it refused to update an object whose ETag was the right one (If-Match)")]
    RefusedRightETag,
    /// The store ignores `If-Match`.
    #[error("it updated an object although the ETag was an old one (If-Match)")]
    UpdatedOnOldETag,
    /// A put with `If-Match` creates an object.
    #[error("it made an object that was not there when asked to update it (If-Match)")]
    UpdatedAbsent,
    /// The store does not check and write in one atomic step.
    #[error("it let two concurrent updates with the same ETag both succeed: they are not atomic")]
    BothWon,
    /// Of two concurrent updates, none succeeds.
    #[error("it refused both of two concurrent updates although one had the right ETag")]
    NeitherWon,
    /// Reads return old content.
    #[error("it did not return what was written last: reads are not consistent")]
    StaleRead,
    /// Lists omit new objects.
    #[error("it did not list an object that was just written: lists are not consistent")]
    StaleList,
    /// Deletes have no effect, or reads return deleted objects.
    #[error("it returned an object after deleting it")]
    StillThere,
}

/// Probes a destination: some 12 requests, with bodies of one byte. Its object is deleted whatever the
/// outcome.
///
/// # Errors
///
/// The first thing that the store did wrong. [`ProbeError::ReadOnly`] if the credentials do not permit to
/// write.
pub async fn probe(destination: &Destination, env: &dyn Env) -> Result<(), ProbeError> {
    let name = format!("{:016x}{:016x}", env.random(), env.random());
    let key = destination.prefix().clone().join(DIR).join(name);
    let probe = Probe {
        destination,
        env,
        key: &key,
    };
    let outcome = probe.play().await;
    let cleaned = within(env, SILENCE, destination.store().delete(&key)).await;
    if !matches!(outcome, Ok(()) | Err(ProbeError::ReadOnly { .. }))
        && !matches!(cleaned, Some(Ok(()) | Err(Error::NotFound { .. })))
    {
        tracing::warn!(%destination, %key, "The object of a failed probe is left behind");
    }
    outcome
}

struct Probe<'a> {
    destination: &'a Destination,
    env: &'a dyn Env,
    key: &'a Path,
}

impl Probe<'_> {
    async fn play(&self) -> Result<(), ProbeError> {
        // An absent object cannot be updated, and can be created only once.
        let made_up = UpdateVersion {
            e_tag: Some("\"0123456789abcdef0123456789abcdef\"".to_owned()),
            version: None,
        };
        if self.update("0", made_up).await?.is_some() {
            return Err(self.liar(Lie::UpdatedAbsent));
        }
        let Some(first) = self.put("create an object", "1", PutMode::Create).await? else {
            // The key is random: no other process has created it.
            let source = exists(self.key);
            return Err(self.failed("create an object", source));
        };
        let again = self
            .put("create an object again", "2", PutMode::Create)
            .await?;
        if again.is_some() {
            return Err(self.liar(Lie::ReplacedOnCreate));
        }
        // An object can be updated with its own ETag, and not with an older one.
        let first = self.version(first)?;
        let Some(second) = self.update("3", first.clone()).await? else {
            return Err(self.liar(Lie::RefusedRightETag));
        };
        if self.update("4", first).await?.is_some() {
            return Err(self.liar(Lie::UpdatedOnOldETag));
        }
        // Of two concurrent updates, one succeeds.
        let second = self.version(second)?;
        let newest = self.race(second).await?;
        // Reads and lists return the object, and a deleted one is not returned.
        if self.read().await?.as_deref() != Some(newest.as_bytes()) {
            return Err(self.liar(Lie::StaleRead));
        }
        if !self.is_listed().await? {
            return Err(self.liar(Lie::StaleList));
        }
        let what = "delete an object";
        self.ask(what, self.store().delete(self.key))
            .await?
            .map_err(|source| self.failed(what, source))?;
        match self.read().await? {
            Some(_) => Err(self.liar(Lie::StillThere)),
            None => Ok(()),
        }
    }

    /// Sends two concurrent updates; returns the content of the one that succeeded.
    async fn race(&self, version: UpdateVersion) -> Result<&'static str, ProbeError> {
        for _ in 0..RACES {
            let (one, other) = futures::join!(
                self.update("5", version.clone()),
                self.update("6", version.clone())
            );
            match (one?, other?) {
                (Some(_), None) => return Ok("5"),
                (None, Some(_)) => return Ok("6"),
                (Some(_), Some(_)) => return Err(self.liar(Lie::BothWon)),
                // Amazon may answer 409 to concurrent requests, so both may fail.
                (None, None) => {}
            }
        }
        Err(self.liar(Lie::NeitherWon))
    }

    fn store(&self) -> &dyn ObjectStore {
        &**self.destination.store()
    }

    async fn ask<T>(
        &self,
        what: &'static str,
        request: impl Future<Output = StoreResult<T>>,
    ) -> Result<StoreResult<T>, ProbeError> {
        let answer = within(self.env, SILENCE, request).await;
        answer.ok_or_else(|| ProbeError::Silent {
            what,
            destination: self.destination.display_url().to_owned(),
        })
    }

    /// None if the condition was not met.
    async fn put(
        &self,
        what: &'static str,
        content: &'static str,
        mode: PutMode,
    ) -> Result<Option<PutResult>, ProbeError> {
        let payload = PutPayload::from_static(content.as_bytes());
        let updates = matches!(mode, PutMode::Update(_));
        let request = self.store().put_opts(self.key, payload, mode.into());
        match self.ask(what, request).await? {
            Ok(put) => Ok(Some(put)),
            Err(
                Error::AlreadyExists { .. }
                | Error::Precondition { .. }
                | Error::NotModified { .. },
            ) => Ok(None),
            // An update of an object that does not exist. For other puts, the bucket is missing.
            Err(Error::NotFound { .. }) if updates => Ok(None),
            Err(source @ (Error::PermissionDenied { .. } | Error::Unauthenticated { .. })) => {
                Err(ProbeError::ReadOnly {
                    destination: self.destination.display_url().to_owned(),
                    source,
                })
            }
            Err(source) => Err(self.failed(what, source)),
        }
    }

    async fn update(
        &self,
        content: &'static str,
        version: UpdateVersion,
    ) -> Result<Option<PutResult>, ProbeError> {
        let mode = PutMode::Update(version);
        self.put("update an object", content, mode).await
    }

    fn version(&self, put: PutResult) -> Result<UpdateVersion, ProbeError> {
        match put.e_tag {
            Some(_) => Ok(put.into()),
            None => Err(self.liar(Lie::NoETag)),
        }
    }

    async fn read(&self) -> Result<Option<bytes::Bytes>, ProbeError> {
        let what = "read an object";
        let read = async { self.store().get(self.key).await?.bytes().await };
        match self.ask(what, read).await? {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(self.failed(what, source)),
        }
    }

    async fn is_listed(&self) -> Result<bool, ProbeError> {
        let what = "list objects";
        let dir = self.destination.prefix().clone().join(DIR);
        let mut listed = self.store().list(Some(&dir)).try_filter(|meta| {
            let found = meta.location == *self.key;
            std::future::ready(found)
        });
        let found = self
            .ask(what, listed.try_next())
            .await?
            .map_err(|source| self.failed(what, source))?;
        Ok(found.is_some())
    }

    fn failed(&self, what: &'static str, source: Error) -> ProbeError {
        if is_no_bucket(&source) {
            return ProbeError::NoBucket {
                destination: self.destination.display_url().to_owned(),
            };
        }
        ProbeError::Failed {
            what,
            destination: self.destination.display_url().to_owned(),
            source,
        }
    }

    fn liar(&self, lie: Lie) -> ProbeError {
        ProbeError::Liar {
            destination: self.destination.display_url().to_owned(),
            lie,
        }
    }
}

fn exists(key: &Path) -> Error {
    Error::AlreadyExists {
        path: key.to_string(),
        source: "it is there before it was made".into(),
    }
}
