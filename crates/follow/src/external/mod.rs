//! Snapshots as objects beside the stream: in a bucket, or in a directory.
//!
//! An object is called `<prefix>/<cursor>.<extension>`, `snapshots/orders/1000.json.zst` for instance.
//! Leading zeros are accepted, and so is whatever follows the cursor's digits after a `.` or a `-`. An
//! object is written once and never changed; [`object`](crate::snapshot::object) defines its content.
//! Objects with other names are ignored.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, Error as StoreError, GetOptions, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMode, PutMultipartOptions, PutOptions, PutPayload, WriteMultipart,
};
use parking_lot::Mutex;

mod put;
mod reader;
mod retention;

use reader::Reader;

use crate::endpoint::Identity;
use crate::error::Error;
use crate::fold::Fold;
use crate::options::Reading;
use crate::snapshot::object::{self, Begins, MAX_HEAD};
use crate::snapshot::pipe::{self, Restoring, Sum};
use crate::snapshot::{Encoding, Kind, Meta, SnapshotInfo, Totals, Unusable};

/// Snapshots up to this size are put in one request, which can claim the name; larger ones get a unique
/// name and are put in parts.
const ONE_REQUEST: usize = 16 << 20;
/// Bytes of a part. S3 takes at most 10,000: 80 GiB in all.
const PART: usize = 8 << 20;
/// Parts that are uploaded at a time.
const PARTS: usize = 2;
/// Most objects with a cursor that are remembered of a list, those with the highest: some 200 bytes each.
/// These are far more than are ever kept, unless others use the prefix. Objects without a cursor do not
/// count.
const MAX_LISTED: usize = 10_000;
/// Objects whose metadata is requested at a time.
const HEADS: usize = 8;
/// Objects that are listed before their metadata is requested.
const LIST_CHUNK: usize = 1000;

/// How far a stream is trimmed after a snapshot was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrimTo {
    /// To the cursor of the oldest snapshot that is kept: any of them can be used.
    Oldest,
    /// To the cursor of the newest one: the others are of no use any more.
    Newest,
}

/// Where the cursor of an object is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CursorIn {
    /// In its name.
    Key,
    /// In its metadata, under this name. Not every store supports metadata; directories do not.
    Metadata(String),
}

/// A place for snapshots.
#[derive(Clone, Debug)]
pub struct External {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    cursor_in: CursorIn,
    keep: usize,
    trim: Option<TrimTo>,
    plain: bool,
    delete_former: bool,
    /// What objects were found to be. Objects never change, so this stays valid.
    known: Arc<Mutex<HashMap<Path, Known>>>,
}

/// What an object means to a follower.
#[derive(Clone, Debug)]
enum Known {
    Described(Box<Meta>),
    Other,
}

/// An object whose cursor is known.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its name.
    pub path: Path,
    /// First sequence number that is not covered.
    pub cursor: u64,
    /// Its size.
    pub bytes: u64,
    /// When it was written, in milliseconds since the epoch.
    pub written_at: u64,
}

impl External {
    /// A place: the objects below a prefix. By default, three snapshots are kept, and the stream is not
    /// trimmed.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: impl Into<Path>) -> External {
        External {
            store,
            prefix: prefix.into(),
            cursor_in: CursorIn::Key,
            keep: 3,
            trim: None,
            plain: false,
            delete_former: false,
            known: Arc::default(),
        }
    }

    /// How many of the newest snapshots are kept: at least 1, by default 3. Older ones of the same fold
    /// and stream are deleted after each put; those of others never are. Once this many are there,
    /// snapshots of the same stream that are of no use any more, because a loss cut off their lineage
    /// before their cursor, are deleted as well.
    #[must_use]
    pub fn keep(self, keep: usize) -> External {
        External {
            keep: keep.max(1),
            ..self
        }
    }

    /// Trims the stream after each put.
    #[must_use]
    pub fn trim(self, to: TrimTo) -> External {
        External {
            trim: Some(to),
            ..self
        }
    }

    /// Where the cursors of objects are found.
    #[must_use]
    pub fn cursor_in(self, cursor_in: CursorIn) -> External {
        External { cursor_in, ..self }
    }

    /// Also deletes snapshots of the same fold that are of an earlier stream, once as many as are kept
    /// are there. Use it only if the place is for streams of one name: a snapshot does not record the
    /// name of its stream.
    #[must_use]
    pub fn delete_former_streams(self) -> External {
        External {
            delete_former: true,
            ..self
        }
    }

    /// Also restores objects that contain nothing but the state's bytes, as other programs write them.
    /// Nothing in them shows of which fold or stream they are, or whether they are whole.
    #[must_use]
    pub fn accept_plain(self) -> External {
        External {
            plain: true,
            ..self
        }
    }

    fn failed(&self, error: &StoreError) -> Error {
        Error::Store {
            place: format!("{}/{}", self.store, self.prefix),
            why: error.to_string(),
        }
    }

    /// All snapshots, the newest first; of more than 10,000, those with the highest cursors.
    ///
    /// # Errors
    ///
    /// [`Error::Store`].
    pub async fn list(&self) -> Result<Vec<Listed>, Error> {
        let mut listing = self.store.list(Some(&self.prefix));
        let mut found = Newest::default();
        let mut chunk = Vec::new();
        while let Some(object) = listing.try_next().await.map_err(|e| self.failed(&e))? {
            match &self.cursor_in {
                CursorIn::Key => {
                    if let Some(cursor) = cursor_of(&self.prefix, &object.location) {
                        found.add(listed((cursor, object)));
                    }
                }
                CursorIn::Metadata(name) => {
                    chunk.push(object);
                    if chunk.len() == LIST_CHUNK {
                        let with = self.with_metadata(std::mem::take(&mut chunk), name).await?;
                        with.into_iter().for_each(|one| found.add(one));
                    }
                }
            }
        }
        if let CursorIn::Metadata(name) = &self.cursor_in {
            let with = self.with_metadata(chunk, name).await?;
            with.into_iter().for_each(|one| found.add(one));
        }
        let (found, left_out) = found.into_sorted();
        if left_out > 0 {
            tracing::warn!(
                place = format!("{}/{}", self.store, self.prefix),
                left_out,
                "there are more than {MAX_LISTED} objects that are named like snapshots; those with the \
                 lowest cursors are left out: use a prefix of its own"
            );
        }
        Ok(found)
    }

    /// Those of some objects that have a cursor in their metadata.
    async fn with_metadata(
        &self,
        objects: Vec<ObjectMeta>,
        name: &str,
    ) -> Result<Vec<Listed>, Error> {
        let heads = objects.into_iter();
        let heads = heads.map(|object| self.cursor_in_metadata(object, name.to_owned()));
        // Built first: the compiler cannot prove that closures in streams live long enough.
        let heads: Vec<_> = heads.collect();
        let heads = futures::stream::iter(heads).buffered(HEADS);
        let heads: Vec<_> = heads.try_collect().await.map_err(|e| self.failed(&e))?;
        Ok(heads.into_iter().flatten().map(listed).collect())
    }

    async fn cursor_in_metadata(
        &self,
        object: ObjectMeta,
        name: String,
    ) -> Result<Option<(u64, ObjectMeta)>, StoreError> {
        let options = GetOptions {
            head: true,
            ..GetOptions::default()
        };
        let got = match self.store.get_opts(&object.location, options).await {
            Ok(got) => got,
            Err(StoreError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let value = got.attributes.get(&Attribute::Metadata(name.into()));
        let cursor = value.and_then(|value| value.parse().ok());
        Ok(cursor.map(|cursor| (cursor, object)))
    }

    /// Restores the first usable snapshot of a list. One whose cursor is beyond `tail` is not usable.
    ///
    /// # Errors
    ///
    /// [`Error::Store`], [`Error::Unusable`].
    pub(crate) async fn find<F: Fold>(
        &self,
        list: &[Listed],
        initial: &F,
        identity: &Identity,
        tail: u64,
        reading: &Reading,
        tried: &mut Vec<String>,
    ) -> Result<Option<(F, SnapshotInfo)>, Error> {
        for listed in list {
            let why = match self.restore(listed, initial, identity, tail).await? {
                Ok(found) => return Ok(Some(found)),
                Err(why) => why,
            };
            if why.wants_a_decision() && !reading.pass_over {
                return Err(Error::Unusable {
                    snapshot: listed.path.to_string(),
                    why,
                });
            }
            tracing::warn!(snapshot = %listed.path, %why, "a snapshot is passed over");
            tried.push(format!("{}: {why}", listed.path));
        }
        Ok(None)
    }

    async fn restore<F: Fold>(
        &self,
        listed: &Listed,
        initial: &F,
        identity: &Identity,
        tail: u64,
    ) -> Result<Result<(F, SnapshotInfo), Unusable>, Error> {
        let mut reading = match Reader::open(self, listed).await? {
            Some(reading) => reading,
            None => return Ok(Err(Unusable::Damaged("it is gone".to_owned()))),
        };
        let first = reading.first().await?;
        let (meta, head) = match object::begins(&first) {
            Begins::With(meta, head) => (Some(meta), head),
            Begins::Otherwise if self.plain => (None, 0),
            Begins::Otherwise => {
                let why = "it has no description; plain ones are accepted if you choose so";
                return Ok(Err(Unusable::Foreign(why.to_owned())));
            }
            Begins::Malformed(why) => return Ok(Err(Unusable::Damaged(why))),
        };
        let encoding = match &meta {
            Some(meta) => {
                if let Err(why) = meta.usable(initial.name(), initial.version(), identity) {
                    return Ok(Err(why));
                }
                if meta.cursor != listed.cursor {
                    return Ok(Err(Unusable::Damaged(format!(
                        "its description says {}, and its name {}",
                        meta.cursor, listed.cursor
                    ))));
                }
                meta.encoding
            }
            None if listed.path.as_ref().ends_with(".zst") => Encoding::Zstd,
            None => Encoding::None,
        };
        // Checked after the description is read: a foreign object may have any number as its name.
        if listed.cursor > tail {
            return Ok(Err(Unusable::BeyondTail {
                cursor: listed.cursor,
                tail,
            }));
        }
        let behind = meta.as_ref().map_or(0, |_| object::tail_len(encoding));
        let mut restoring = match &meta {
            Some(meta) => Restoring::new(initial.clone(), meta),
            None => Restoring::plain(initial.clone(), encoding),
        };
        reading.hold_back(first.slice(head..), behind);
        while let Some(chunk) = reading.body().await? {
            restoring.push(chunk).await;
        }
        let restored = match &meta {
            None => restoring.finish_unchecked().await,
            Some(_) => match object::ends(encoding, &reading.held) {
                Ok(totals) => restoring.finish(&totals).await,
                Err(why) => Err(why),
            },
        };
        Ok(match restored {
            Ok(fold) => Ok((fold, info(listed, meta.as_deref()))),
            Err(why) => Err(Unusable::Damaged(why)),
        })
    }

    /// Reads a snapshot to its end, and checks it.
    pub(crate) async fn check(&self, listed: &Listed) -> Result<Result<Meta, Unusable>, Error> {
        let Some(mut reading) = Reader::open(self, listed).await? else {
            return Ok(Err(Unusable::Damaged("it is gone".to_owned())));
        };
        let first = reading.first().await?;
        let (meta, head) = match object::begins(&first) {
            Begins::With(meta, head) => (meta, head),
            Begins::Otherwise => {
                return Ok(Err(Unusable::Foreign("it has no description".to_owned())));
            }
            Begins::Malformed(why) => return Ok(Err(Unusable::Damaged(why))),
        };
        if meta.cursor != listed.cursor {
            return Ok(Err(Unusable::Damaged(format!(
                "its description says {}, and its name {}",
                meta.cursor, listed.cursor
            ))));
        }
        let mut sum = Sum::of(&meta);
        let behind = object::tail_len(meta.encoding);
        reading.hold_back(first.slice(head..), behind);
        while let Some(chunk) = reading.body().await? {
            sum.update(&chunk);
        }
        Ok(match object::ends(meta.encoding, &reading.held) {
            Ok(totals) if totals == sum.totals() => Ok(*meta),
            Ok(_) => Err(Unusable::Damaged("its checksum differs".to_owned())),
            Err(why) => Err(Unusable::Damaged(why)),
        })
    }

    async fn known(&self, path: &Path) -> Result<Known, Error> {
        if let Some(known) = self.known.lock().get(path) {
            return Ok(known.clone());
        }
        let options = GetOptions {
            range: Some((0..MAX_HEAD as u64).into()),
            ..GetOptions::default()
        };
        let first = match self.store.get_opts(path, options).await {
            Ok(got) => got.bytes().await.map_err(|e| self.failed(&e))?,
            Err(StoreError::NotFound { .. }) => return Ok(Known::Other),
            Err(error) => return Err(self.failed(&error)),
        };
        let known = match object::begins(&first) {
            Begins::With(meta, _) => Known::Described(meta),
            Begins::Otherwise | Begins::Malformed(_) => Known::Other,
        };
        self.known.lock().insert(path.clone(), known.clone());
        Ok(known)
    }
}

/// Collects those with the highest cursors.
#[derive(Default)]
struct Newest {
    found: Vec<Listed>,
    left_out: usize,
}

impl Newest {
    fn add(&mut self, one: Listed) {
        self.found.push(one);
        if self.found.len() == 2 * MAX_LISTED {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let newest_first = |a: &Listed, b: &Listed| (b.cursor, &b.path).cmp(&(a.cursor, &a.path));
        self.found.sort_by(newest_first);
        self.left_out += self.found.len().saturating_sub(MAX_LISTED);
        self.found.truncate(MAX_LISTED);
    }

    fn into_sorted(mut self) -> (Vec<Listed>, usize) {
        self.cut();
        (self.found, self.left_out)
    }
}

/// Whether two are of the same fold, stream and lineage.
fn is_ours(meta: &Meta, ours: &Meta) -> bool {
    meta.fold == ours.fold && meta.created_at == ours.created_at && meta.lineage == ours.lineage
}

fn cursor_of(prefix: &Path, location: &Path) -> Option<u64> {
    let mut below = location.prefix_match(prefix)?;
    let name = below.next()?;
    if below.next().is_some() {
        return None;
    }
    let name = name.as_ref();
    let end = name
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(name.len());
    if !matches!(name[end..].chars().next(), None | Some('.' | '-')) {
        return None;
    }
    name[..end].parse().ok()
}

fn listed((cursor, object): (u64, ObjectMeta)) -> Listed {
    Listed {
        cursor,
        bytes: object.size,
        written_at: object.last_modified.timestamp_millis().max(0) as u64,
        path: object.location,
    }
}

fn info(listed: &Listed, meta: Option<&Meta>) -> SnapshotInfo {
    SnapshotInfo {
        kind: Kind::External,
        place: listed.path.to_string(),
        cursor: listed.cursor,
        bytes: listed.bytes,
        taken_at: Some(meta.map_or(listed.written_at, |meta| meta.taken_at)),
        anchored: false,
    }
}

/// The size of an object.
fn object_bytes(meta: &Meta, totals: &Totals) -> u64 {
    let around = object::head(meta).len() + object::tail_len(meta.encoding);
    totals.bytes + around as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_with_and_without_leading_zeros() {
        let prefix = Path::from("snapshots/orders");
        let cursor = |name: &str| cursor_of(&prefix, &prefix.clone().join(name));
        assert_eq!(cursor("1000.json"), Some(1000));
        assert_eq!(cursor("00000000000000001000.json.zst"), Some(1000));
        assert_eq!(cursor("1000-0123456789ab.json"), Some(1000));
        assert_eq!(cursor("1000"), Some(1000));
        for foreign in [
            "orders.json",
            "1000x.json",
            "-1.json",
            "99999999999999999999.json",
            ".1",
        ] {
            assert_eq!(cursor(foreign), None, "{foreign}");
        }
        let deeper = Path::from("snapshots/orders/old/1000.json");
        assert_eq!(cursor_of(&prefix, &deeper), None);
    }
}
