//! Scrub: reads the objects of retained snapshots at a bounded rate, and compares size and checksum.
//!
//! The caller takes the objects of a pass ([`Repository::scrub_plan`]), in the order of their keys, reads one
//! after the other ([`Repository::scrub_object`]), and remembers the last key to continue after a restart. Of
//! each object there are three possible results that are never mixed: it is sound, it is damaged or missing
//! ([`BadObject`]), or it could not be read now, which is an error and proves nothing.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use futures::StreamExt as _;
use xxhash_rust::xxh3::Xxh3;

use crate::error::Error;
use crate::ids::Digest;
use crate::marks::BadObject;
use crate::part::PART;
use crate::rate_limiter::RateLimiter;
use crate::repository::Repository;
use crate::root::Root;
use crate::store::{Sink, Store};

/// An object that a scrub reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrubObject {
    /// Its key, below the partition.
    pub key: String,
    /// Its size in bytes, as the description has it.
    pub size: u64,
    /// Its checksum; without one, only the size is compared.
    pub digest: Option<Digest>,
}

/// The objects of one pass.
#[derive(Clone, Debug, Default)]
pub struct ScrubPlan {
    /// Objects to read, in the order of their keys.
    pub objects: Vec<ScrubObject>,
    /// Objects that the store does not have, or that have another size; and descriptions that are damaged or
    /// missing.
    pub bad: Vec<BadObject>,
    /// Keys of the descriptions that were read and are whole.
    pub descriptions: Vec<String>,
}

impl Repository {
    /// The objects that the retained snapshots need. Their sizes come from one list.
    ///
    /// # Errors
    ///
    /// [`Error::NoRoot`] and errors of reading: nothing is known then.
    pub async fn scrub_plan(&self) -> Result<ScrubPlan, Error> {
        let store = self.store.operation();
        let root = self.read_root(&store).await?;
        let mut plan = ScrubPlan::default();
        let mut needed: BTreeMap<String, ScrubObject> = BTreeMap::new();
        for retained in &root.retained_snapshots {
            let dir = retained.dir();
            let metadata = match self.fetch_description(&store, &dir).await {
                Ok(metadata) => metadata,
                // What it needs is not known here; the release that wrote it scrubs it.
                Err(error @ Error::NewerFormat { .. }) => {
                    tracing::warn!(%error, "A snapshot is not scrubbed");
                    continue;
                }
                Err(error) if error.is_damage() => {
                    plan.bad.push(BadObject {
                        key: dir.metadata(),
                        why: cause(&error),
                    });
                    continue;
                }
                Err(error) => return Err(error),
            };
            plan.descriptions.push(dir.metadata());
            for file in &metadata.files {
                let key = metadata.key_of(file);
                let digest = metadata.checksum_of(file);
                let object = needed.entry(key.clone()).or_insert(ScrubObject {
                    key,
                    size: file.size,
                    digest,
                });
                object.digest = object.digest.or(digest);
            }
        }
        let mut sizes = HashMap::new();
        let mut listed = store.list();
        while let Some(object) = listed.next().await {
            let object = object?;
            if needed.contains_key(&object.key) {
                sizes.insert(object.key, object.size);
            }
        }
        for (key, object) in needed {
            let why = match sizes.get(&key) {
                None => "it is missing".to_owned(),
                Some(size) if *size != object.size => {
                    format!("it has {size} bytes instead of {}", object.size)
                }
                Some(_) => {
                    plan.objects.push(object);
                    continue;
                }
            };
            plan.bad.push(BadObject { key, why });
        }
        plan.bad = self.still_needed(&store, plan.bad).await?;
        Ok(plan)
    }

    /// Reads an object, no faster than the limiter allows. `None`: it is as it was written, or no retained
    /// snapshot needs it any more.
    ///
    /// # Errors
    ///
    /// The object could not be read now, which proves nothing.
    pub async fn scrub_object(
        &self,
        object: &ScrubObject,
        limiter: Option<&RateLimiter>,
    ) -> Result<Option<BadObject>, Error> {
        let store = self.store.operation();
        let read = self.hash_object(&store, &object.key, object.size, limiter);
        let why = match read.await {
            Ok(digest) if object.digest.is_none_or(|expected| expected == digest) => {
                return Ok(None);
            }
            Ok(digest) => format!("its bytes are not what was written (checksum {digest})"),
            Err(error) if error.is_damage() => cause(&error),
            Err(error) => return Err(error),
        };
        let bad = BadObject {
            key: object.key.clone(),
            why,
        };
        Ok(self.still_needed(&store, vec![bad]).await?.pop())
    }

    /// Those of the objects that a retained snapshot needs: an object of a snapshot that was released
    /// meanwhile may be deleted, which is no damage.
    async fn still_needed(
        &self,
        store: &Store,
        bad: Vec<BadObject>,
    ) -> Result<Vec<BadObject>, Error> {
        if bad.is_empty() {
            return Ok(bad);
        }
        let root = self.read_root(store).await?;
        let mut needed = std::collections::HashSet::new();
        for retained in &root.retained_snapshots {
            needed.insert(retained.dir().metadata());
            if let Some(metadata) = self.description_if_whole(store, retained).await? {
                needed.extend(metadata.files.iter().map(|file| metadata.key_of(file)));
            }
        }
        Ok(bad
            .into_iter()
            .filter(|object| needed.contains(&object.key))
            .collect())
    }

    /// The checksum of an object's bytes.
    pub(crate) async fn hash_object(
        &self,
        store: &Store,
        key: &str,
        size: u64,
        limiter: Option<&RateLimiter>,
    ) -> Result<Digest, Error> {
        let mut sink = Hashing(Xxh3::new());
        match limiter {
            None => store.read_all(key, size, &mut sink).await?,
            Some(limiter) => {
                let turn = |bytes| limiter.turn(&**store.env(), bytes);
                store
                    .read_in_parts(key, size, PART, turn, &mut sink)
                    .await?;
            }
        }
        Ok(Digest(sink.0.digest128()))
    }

    /// The first marked object of a retained snapshot that is still damaged or missing. `None`: it has no
    /// marks, or what they name is sound now.
    pub(crate) async fn still_marked(
        &self,
        root: &Root,
        dir: &crate::layout::SnapshotDir,
    ) -> Result<Option<Error>, Error> {
        let mut retained = root.retained_snapshots.iter();
        let Some(retained) = retained.find(|r| r.dir() == *dir && !r.damaged.is_empty()) else {
            return Ok(None);
        };
        let store = self.store.operation();
        let Some(metadata) = self.description_if_whole(&store, retained).await? else {
            // A restore of it reports what is wrong with its description.
            return Ok(None);
        };
        for mark in &retained.damaged {
            let file = metadata
                .files
                .iter()
                .find(|f| metadata.key_of(f) == mark.key);
            let Some(file) = file else { continue };
            match self.hash_object(&store, &mark.key, file.size, None).await {
                Ok(digest) if metadata.checksum_of(file).is_none_or(|d| d == digest) => {}
                Ok(_) => {
                    return Ok(Some(Error::Damaged {
                        object: store.display_url(&mark.key),
                        why: mark.why.clone(),
                    }));
                }
                Err(error) if error.is_damage() => return Ok(Some(error)),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// What is wrong with an object.
fn cause(error: &Error) -> String {
    match error {
        Error::Damaged { why, .. } => why.clone(),
        Error::Missing { .. } => "it is missing".to_owned(),
        other => other.to_string(),
    }
}

struct Hashing(Xxh3);

impl Sink for Hashing {
    async fn take(&mut self, bytes: Bytes) -> Result<(), Error> {
        self.0.update(&bytes);
        Ok(())
    }
}
