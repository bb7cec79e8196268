//! The streams of a partition that are open in memory, by name and by id.
//!
//! Opening reads the database under a lock that publishing takes too, so that a stream is never opened twice,
//! and never with a state older than the last one published. Those who look for a stream that is open do not
//! wait for it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::counters::Counters;
use super::failed::FailedSessions;
use super::name_cache::{NameCache, NameChange};
use super::name_index::{Listed, name_entry};
use super::options::StreamOptions;
use crate::digest::DigestsDone;
use crate::ids::{BasinId, STATE_BASIN_ID, StreamId};
use crate::keys;
use crate::lineage::Lineage;
use crate::state::{Forgotten, STATE_STREAM, StateMeta};
use crate::store::{PartitionDb, StoreError};
use crate::stream::{Change, Imports, Stream, StreamMeta, StreamState};

/// What a written step changed.
pub(crate) struct Done {
    pub counters: Counters,
    pub touched: Vec<Published>,
    pub dropped: Vec<BasinId>,
    pub to_reclaim: Vec<StreamId>,
    pub failed: FailedSessions,
    /// The metadata of the state store, if it changed.
    pub state: Option<StateMeta>,
    /// Commits of the state store.
    pub commits: u64,
    /// Bytes of entries of the state store that are no longer needed.
    pub garbage: u64,
    /// Versions of its keys that are deleted.
    pub forgotten: Forgotten,
    /// Names that were added and removed.
    pub names: Vec<NameChange>,
    /// Bytes that were written.
    pub bytes: u64,
    /// The lineage that has begun.
    pub lineage: Option<Lineage>,
    /// What the step asks and records of digests.
    pub digests: DigestsDone,
}

/// A touched stream, ready to be published.
pub(crate) struct Published {
    pub id: StreamId,
    pub stream: Option<Arc<Stream>>,
    pub meta: Option<StreamMeta>,
    pub change: Change,
}

pub(crate) struct Directory {
    part: PartitionDb,
    options: StreamOptions,
    /// Held while a stream is opened, and while a step is published. Taken before `open`.
    loading: Mutex<()>,
    /// Never held while the database is read.
    open: RwLock<Open>,
    /// Changed by those who hold `loading`. Taken after `open`.
    names: RwLock<NameCache>,
    /// See [`Directory::due_changes`].
    due_changes: AtomicU64,
}

#[derive(Default)]
struct Open {
    by_id: HashMap<StreamId, Arc<Stream>>,
    by_name: HashMap<BasinId, HashMap<String, Arc<Stream>>>,
    /// Basins whose ids are refused.
    dropped: HashSet<BasinId>,
}

impl Directory {
    pub fn open(part: PartitionDb, options: StreamOptions) -> Result<Directory, StoreError> {
        let dropped = dropped_basins(&part)?;
        Ok(Directory {
            part,
            options,
            loading: Mutex::default(),
            open: RwLock::new(Open {
                dropped,
                ..Open::default()
            }),
            names: RwLock::default(),
            due_changes: AtomicU64::new(0),
        })
    }

    /// See [`Reader::due_changes`](crate::reader::Reader::due_changes).
    pub fn due_changes(&self) -> u64 {
        self.due_changes.load(Ordering::Acquire)
    }

    /// Streams of a basin by name, from memory; `None` if there are too many for it. As
    /// [`Reader::list`](crate::reader::Reader::list).
    pub fn list(
        &self,
        basin: BasinId,
        prefix: &str,
        start_after: &str,
        limit: usize,
    ) -> Result<Option<Vec<Listed>>, StoreError> {
        if let Some(known) = self.list_known(basin, prefix, start_after, limit) {
            return Ok(known);
        }
        let _loading = self.loading.lock();
        if matches!(*self.names.read(), NameCache::Unread) {
            let dropped = self.open.read().dropped.clone();
            let most = self.options.name_bytes;
            let names = NameCache::read(&self.part, |basin| dropped.contains(&basin), most)?;
            *self.names.write() = names;
        }
        Ok(self.list_known(basin, prefix, start_after, limit).flatten())
    }

    /// The same, if it is known whether there are too many.
    fn list_known(
        &self,
        basin: BasinId,
        prefix: &str,
        start_after: &str,
        limit: usize,
    ) -> Option<Option<Vec<Listed>>> {
        match &*self.names.read() {
            NameCache::Unread => None,
            NameCache::TooMany => Some(None),
            NameCache::Whole(names) => Some(Some(names.list(basin, prefix, start_after, limit))),
        }
    }

    fn note_due_change(&self) {
        self.due_changes.fetch_add(1, Ordering::Release);
    }

    /// The stream of this name, if it is open: found without the database.
    pub fn open_by_name(&self, basin: BasinId, name: &str) -> Option<Arc<Stream>> {
        let open = self.open.read();
        open.by_name.get(&basin)?.get(name).cloned()
    }

    fn open_by_id(&self, id: StreamId) -> Option<Arc<Stream>> {
        self.open.read().by_id.get(&id).cloned()
    }

    /// The options that it was opened with.
    pub fn options(&self) -> &StreamOptions {
        &self.options
    }

    /// Gives the open streams the states that they have in `next`, which `switch` puts in place of the data
    /// that streams are opened from.
    ///
    /// # Errors
    ///
    /// `next` cannot be read: nothing is changed, and `switch` is not called.
    pub fn replace(&self, next: &PartitionDb, switch: impl FnOnce()) -> Result<(), StoreError> {
        let _loading = self.loading.lock();
        let dropped = dropped_basins(next)?;
        let streams: Vec<_> = self.open.read().by_id.values().cloned().collect();
        let mut changes = Vec::with_capacity(streams.len());
        for stream in streams {
            let meta =
                next.get::<StreamMeta>(keys::stream_meta(stream.id), "a stream's settings")?;
            let meta = meta.filter(|meta| !dropped.contains(&BasinId(meta.basin)));
            let change = match meta {
                Some(meta) => Change {
                    state: next
                        .stream_state(stream.id)?
                        .ok_or_else(|| next.malformed("a stream's state", &"it is missing"))?,
                    settings: Some((meta.settings, meta.settings_version)),
                    gone: false,
                    batches: Vec::new(),
                },
                None => Change {
                    state: stream.view().state,
                    settings: None,
                    gone: true,
                    batches: Vec::new(),
                },
            };
            changes.push((stream, change));
        }
        switch();
        self.note_due_change();
        let mut open = self.open.write();
        open.dropped = dropped;
        *self.names.write() = NameCache::Unread;
        for (stream, change) in changes {
            if change.gone {
                open.remove(&stream);
            }
            stream.replace(change);
        }
        Ok(())
    }

    /// Begins a lineage that was written: streams pass over the numbers that the stale one may have given out.
    /// `note` makes it the partition's, from which streams are opened.
    pub fn begin_lineage(&self, forks: u64, note: impl FnOnce()) {
        let _loading = self.loading.lock();
        note();
        self.note_due_change();
        let streams: Vec<_> = self.open.read().by_id.values().cloned().collect();
        for stream in streams {
            let mut state = stream.view().state;
            state.see_forks(forks);
            stream.replace(Change {
                state,
                settings: None,
                gone: false,
                batches: Vec::new(),
            });
        }
    }

    /// The stream of this name, if there is one.
    pub fn by_name(&self, basin: BasinId, name: &str) -> Result<Option<Arc<Stream>>, StoreError> {
        if let Some(stream) = self.open_by_name(basin, name) {
            return Ok(Some(stream));
        }
        let _loading = self.loading.lock();
        if let Some(stream) = self.open_by_name(basin, name) {
            return Ok(Some(stream));
        }
        if self.is_dropped(basin) {
            return Ok(None);
        }
        match name_entry(&self.part, basin, name)? {
            // It may have been opened by its id.
            Some(entry) => match self.open_by_id(entry.id) {
                Some(stream) => Ok(Some(stream)),
                None => self.load(entry.id),
            },
            None => Ok(None),
        }
    }

    /// The stream of this id, if there is one.
    pub fn by_id(&self, id: StreamId) -> Result<Option<Arc<Stream>>, StoreError> {
        if let Some(stream) = self.open_by_id(id) {
            return Ok(Some(stream));
        }
        let _loading = self.loading.lock();
        match self.open_by_id(id) {
            Some(stream) => Ok(Some(stream)),
            None => self.load(id),
        }
    }

    /// Whether the basin was dropped.
    pub fn is_dropped(&self, basin: BasinId) -> bool {
        self.open.read().dropped.contains(&basin)
    }

    /// Keeps others from opening streams, as a read of a slow disk does.
    #[cfg(test)]
    pub fn hold_opening(&self) -> parking_lot::MutexGuard<'_, ()> {
        self.loading.lock()
    }

    /// How many streams are open.
    #[cfg(test)]
    pub fn open_streams(&self) -> usize {
        self.open.read().by_id.len()
    }

    /// Opens a stream. The caller holds `loading`.
    fn load(&self, id: StreamId) -> Result<Option<Arc<Stream>>, StoreError> {
        let Some(meta) = self
            .part
            .get::<StreamMeta>(keys::stream_meta(id), "a stream's settings")?
        else {
            return Ok(None);
        };
        if self.is_dropped(BasinId(meta.basin)) {
            return Ok(None);
        }
        let state = self
            .part
            .stream_state(id)?
            .ok_or_else(|| self.part.malformed("a stream's state", &"it is missing"))?;
        let stream = Stream::new(
            id,
            self.part.partition(),
            &meta,
            state,
            self.options.recent.clone(),
        );
        let stream = stream.map_err(|e| self.part.malformed("a stream's settings", &e))?;
        let stream = Arc::new(stream);
        let most = self.options.open_streams;
        self.open.write().insert(stream.clone(), most);
        Ok(Some(stream))
    }

    /// Makes a written step visible.
    pub fn publish(&self, done: Done) {
        let _loading = self.loading.lock();
        let mut open = self.open.write();
        if !done.names.is_empty() {
            let most = self.options.name_bytes;
            self.names.write().apply(done.names, most);
        }
        let mut is_due_changed = false;
        for touched in done.touched {
            let change = touched.change;
            // What was stored before is known of open streams alone.
            is_due_changed |= touched.meta.is_some() || touched.stream.is_none();
            let stream = match touched.stream {
                Some(stream) => stream,
                None => {
                    // Created in this step; a reader may have opened it since it was written.
                    let existing = open.by_id.get(&touched.id).cloned();
                    match (existing, touched.meta) {
                        (Some(stream), _) => stream,
                        (None, Some(meta)) if !change.gone => {
                            let stream = Stream::new(
                                touched.id,
                                self.part.partition(),
                                &meta,
                                change.state.clone(),
                                self.options.recent.clone(),
                            );
                            // The step that created it has checked its cipher.
                            let Ok(stream) = stream else {
                                continue;
                            };
                            let stream = Arc::new(stream);
                            open.insert(stream.clone(), self.options.open_streams);
                            stream
                        }
                        _ => continue,
                    }
                }
            };
            if change.gone {
                open.remove(&stream);
            }
            is_due_changed |= stream.publish(change);
        }
        if is_due_changed {
            self.note_due_change();
        }
        for basin in done.dropped {
            open.dropped.insert(basin);
            self.names.write().drop_basin(basin);
            let names = open.by_name.remove(&basin).unwrap_or_default();
            for stream in names.into_values() {
                open.by_id.remove(&stream.id);
                let state = stream.view().state;
                let change = Change {
                    state,
                    settings: None,
                    gone: true,
                    batches: Vec::new(),
                };
                stream.publish(change);
            }
        }
    }
}

impl Open {
    fn insert(&mut self, stream: Arc<Stream>, limit: usize) {
        if self.by_id.len() >= limit {
            self.close_idle(self.by_id.len() - limit + limit / 16 + 1);
        }
        self.by_name
            .entry(stream.basin)
            .or_default()
            .insert(stream.name.clone(), stream.clone());
        self.by_id.insert(stream.id, stream);
    }

    fn remove(&mut self, stream: &Stream) {
        self.by_id.remove(&stream.id);
        if let Some(names) = self.by_name.get_mut(&stream.basin) {
            // A new stream of the name may have been published before.
            if names.get(&stream.name).is_some_and(|s| s.id == stream.id) {
                names.remove(&stream.name);
            }
            if names.is_empty() {
                self.by_name.remove(&stream.basin);
            }
        }
    }

    /// Closes up to `count` streams to which nothing else has a reference.
    fn close_idle(&mut self, count: usize) {
        let idle: Vec<Arc<Stream>> = self
            .by_id
            .values()
            // The two references of the maps.
            .filter(|stream| Arc::strong_count(stream) == 2)
            .take(count)
            .cloned()
            .collect();
        for stream in idle {
            self.remove(&stream);
        }
    }
}

/// The basins whose ids are refused.
fn dropped_basins(part: &PartitionDb) -> Result<HashSet<BasinId>, StoreError> {
    let mut dropped = HashSet::new();
    let (from, to) = keys::all_dropped_basins();
    let mut it = part.iterate(&from, &to, false);
    it.seek_to_first();
    while let Some(key) = it.key() {
        dropped.extend(keys::id_of(key).map(BasinId));
        it.next();
    }
    it.status()
        .map_err(|e| part.error("reading dropped basins", e))?;
    Ok(dropped)
}

impl PartitionDb {
    /// The stored [`StreamState`] of a stream, after all forks that the partition has seen.
    pub(crate) fn stream_state(&self, id: StreamId) -> Result<Option<StreamState>, StoreError> {
        let state = self.get::<StreamState>(keys::stream_state(id), "a stream's state")?;
        let Some(mut state) = state else {
            return Ok(None);
        };
        if state.has_unattributed_gaps() {
            let of_state = name_entry(self, STATE_BASIN_ID, STATE_STREAM)?;
            let is_of_state = of_state.is_some_and(|of_state| of_state.id == id);
            state.separate_gaps(match is_of_state {
                true => self.state_imports()?,
                false => Some(Imports::default()),
            });
        }
        state.see_forks(self.forks()?);
        Ok(Some(state))
    }
}
