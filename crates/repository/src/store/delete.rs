//! Deletes objects, in bulk if the store supports it.

use std::collections::HashSet;

use futures::StreamExt as _;
use futures::stream;
use object_store::path::Path;

use super::Store;
use crate::env::within;
use crate::error::Error;

/// Maximum number of keys that one request deletes: the limit of S3.
const DELETED_AT_ONCE: usize = 1000;
/// Number of such requests under way at a time.
const DELETE_REQUESTS: usize = 8;
/// Attempts at one request; the next sweep deletes the remaining objects.
const DELETE_ATTEMPTS: u32 = 3;

impl Store {
    /// Deletes objects, in bulk if the store supports it. Returns those that could not be deleted; an
    /// object that does not exist counts as deleted.
    pub(crate) async fn delete(&self, keys: Vec<String>) -> Vec<(String, Error)> {
        let mut requests = Vec::new();
        for chunk in keys.chunks(DELETED_AT_ONCE) {
            requests.push(self.delete_chunk(chunk.to_vec()));
        }
        let failed: Vec<Vec<_>> = stream::iter(requests)
            .buffered(DELETE_REQUESTS)
            .collect()
            .await;
        failed.into_iter().flatten().collect()
    }

    async fn delete_chunk(&self, mut keys: Vec<String>) -> Vec<(String, Error)> {
        let mut attempts = 1;
        loop {
            let failed = self.delete_at_once(&keys).await;
            if failed.is_empty() || attempts == DELETE_ATTEMPTS {
                return failed;
            }
            self.env.sleep(self.wait_after(attempts)).await;
            attempts += 1;
            keys = failed.into_iter().map(|(key, _)| key).collect();
        }
    }

    async fn delete_at_once(&self, keys: &[String]) -> Vec<(String, Error)> {
        let paths: Vec<_> = keys.iter().map(|key| Ok(self.path(key))).collect();
        let mut answers = self.inner.delete_stream(stream::iter(paths).boxed());
        // One failure may concern many keys, so the keys that are confirmed as deleted are collected.
        let mut gone = HashSet::new();
        let mut failure = None;
        loop {
            match within(&*self.env, self.retries.silence, answers.next()).await {
                Some(Some(Ok(path))) => {
                    gone.insert(path);
                }
                Some(Some(Err(object_store::Error::NotFound { path, .. }))) => {
                    gone.extend(Path::parse(path));
                }
                Some(Some(Err(source))) => {
                    failure.get_or_insert_with(|| source.to_string());
                }
                Some(None) => break,
                None => {
                    failure.get_or_insert_with(|| "no answer in time".to_owned());
                    break;
                }
            }
        }
        keys.iter()
            .filter(|key| !gone.contains(&self.path(key)))
            .map(|key| {
                let why = failure.as_deref().unwrap_or("the store does not say why");
                let source = object_store::Error::Generic {
                    store: "repository",
                    source: why.into(),
                };
                let error = Error::Store {
                    what: "delete",
                    object: self.display_url(key),
                    attempts: 1,
                    source: source.into(),
                };
                (key.clone(), error)
            })
            .collect()
    }
}
