//! Snapshots as objects beside the stream: in a bucket, or in a directory.
//!
//! An object is called `<prefix>/<cursor>.<extension>`, `snapshots/orders/1000.json.zst` for instance.
//! Leading zeros are read, too, and so is whatever follows the cursor's digits after a `.` or a `-`. An
//! object is written once and never changed; what it is, [`object`](crate::snapshot::object) says.
//! Objects that are called otherwise are left alone.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, Error as StoreError, GetOptions, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMode, PutMultipartOptions, PutOptions, PutPayload, WriteMultipart,
};
use parking_lot::Mutex;

use crate::endpoint::Identity;
use crate::error::Error;
use crate::fold::Fold;
use crate::options::Reading;
use crate::snapshot::object::{self, Begins, MOST_HEAD};
use crate::snapshot::pipe::{self, Restoring, Sum};
use crate::snapshot::{Encoding, Kind, Meta, SnapshotInfo, Totals, Unusable};

/// Snapshots up to this size are put in one request, so that the name can be claimed by it; larger ones
/// get a name of their own and are put in parts.
const ONE_REQUEST: usize = 16 << 20;
/// Bytes of a part. S3 takes at most 10,000: 80 GiB in all.
const PART: usize = 8 << 20;
/// Parts on their way at a time.
const PARTS: usize = 2;
/// Most objects below a prefix: all are listed whenever a snapshot is looked for. Far more than are
/// ever kept, unless the prefix is somebody else's.
const MOST_OBJECTS: usize = 10_000;
/// Objects whose metadata is asked for at a time.
const HEADS: usize = 8;

/// How far a stream is trimmed after a snapshot was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrimTo {
    /// To the cursor of the oldest snapshot that is kept: any of them can be used.
    Oldest,
    /// To the cursor of the newest one: the others are of no use any more.
    Newest,
}

/// Where an object says up to where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CursorIn {
    /// In its name.
    Key,
    /// In its metadata, under this name. Not every store has such a thing; directories have not.
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
    /// What objects were found to be: they never change.
    known: Arc<Mutex<HashMap<Path, Known>>>,
}

/// What an object is to a follower.
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
    /// A place: objects below a prefix. Three snapshots are kept; the stream is not trimmed.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: impl Into<Path>) -> External {
        External {
            store,
            prefix: prefix.into(),
            cursor_in: CursorIn::Key,
            keep: 3,
            trim: None,
            plain: false,
            known: Arc::default(),
        }
    }

    /// How many of the newest snapshots are kept, at least 1; 3 otherwise. Older ones of the same fold and
    /// stream are deleted after each put; those of others never.
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

    /// Where objects say up to where they go.
    #[must_use]
    pub fn cursor_in(self, cursor_in: CursorIn) -> External {
        External { cursor_in, ..self }
    }

    /// Restores objects that have nothing but the state's bytes in them, too: as other programs write
    /// them. Nothing tells of which fold or stream they are, or whether they are whole.
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

    /// All snapshots, the newest one first.
    ///
    /// # Errors
    ///
    /// [`Error::Store`]; also if there are more than 10,000 objects.
    pub async fn list(&self) -> Result<Vec<Listed>, Error> {
        let mut listing = self.store.list(Some(&self.prefix));
        let mut objects = Vec::new();
        while let Some(object) = listing.try_next().await.map_err(|e| self.failed(&e))? {
            if objects.len() == MOST_OBJECTS {
                return Err(Error::Store {
                    place: format!("{}/{}", self.store, self.prefix),
                    why: format!("more than {MOST_OBJECTS} objects: use a prefix of its own"),
                });
            }
            objects.push(object);
        }
        let mut found: Vec<Listed> = match &self.cursor_in {
            CursorIn::Key => objects
                .into_iter()
                .filter_map(|object| Some((cursor_of(&self.prefix, &object.location)?, object)))
                .map(listed)
                .collect(),
            CursorIn::Metadata(name) => {
                let heads = objects.into_iter();
                let heads = heads.map(|object| self.cursor_in_metadata(object, name.clone()));
                // Made first: closures in streams are not proven to live long enough.
                let heads: Vec<_> = heads.collect();
                let heads = futures::stream::iter(heads).buffered(HEADS);
                let heads: Vec<_> = heads.try_collect().await.map_err(|e| self.failed(&e))?;
                heads.into_iter().flatten().map(listed).collect()
            }
        };
        found.sort_by(|a, b| (b.cursor, &b.path).cmp(&(a.cursor, &a.path)));
        Ok(found)
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

    /// The first usable snapshot of a list, restored. A cursor beyond `tail` is not.
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
        // Only now: a foreign object may have any number for a name.
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

    /// Puts a snapshot of a state.
    pub(crate) async fn put<F: Fold>(&self, fold: F, meta: &Meta) -> Result<SnapshotInfo, Error> {
        let zst = match meta.encoding {
            Encoding::Zstd => ".zst",
            Encoding::None => "",
        };
        let extension = format!("{}{zst}", fold.extension());
        let mut chunks = pipe::write(fold, meta);
        let fold_failed = |error| Error::NotTaken(format!("the fold: {error}"));
        let mut small = vec![object::head(meta)];
        let mut bytes = small[0].len();
        while bytes <= ONE_REQUEST {
            let Some(chunk) = chunks.next().await else {
                let totals = chunks.totals().await.map_err(fold_failed)?;
                small.push(object::tail(meta.encoding, &totals));
                let path = self.put_small(meta, &extension, small).await?;
                return Ok(taken(&path, meta, &totals));
            };
            bytes += chunk.len();
            small.push(chunk);
        }
        let path = self.apart(meta.cursor, &extension);
        let options = PutMultipartOptions {
            attributes: self.attributes(meta.cursor),
            ..PutMultipartOptions::default()
        };
        let upload = self.store.put_multipart_opts(&path, options).await;
        let upload = upload.map_err(|e| self.failed(&e))?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PART);
        let mut small = small.into_iter();
        loop {
            let chunk = match small.next() {
                Some(chunk) => chunk,
                None => match chunks.next().await {
                    Some(chunk) => chunk,
                    None => break,
                },
            };
            let ready = upload.wait_for_capacity(PARTS).await;
            if let Err(error) = ready {
                let _ = upload.abort().await;
                return Err(self.failed(&error));
            }
            upload.put(chunk);
        }
        match chunks.totals().await {
            Ok(totals) => {
                upload.put(object::tail(meta.encoding, &totals));
                upload.finish().await.map_err(|e| self.failed(&e))?;
                Ok(taken(&path, meta, &totals))
            }
            Err(error) => {
                let _ = upload.abort().await;
                Err(fold_failed(error))
            }
        }
    }

    async fn put_small(
        &self,
        meta: &Meta,
        extension: &str,
        parts: Vec<Bytes>,
    ) -> Result<Path, Error> {
        let payload: PutPayload = parts.into_iter().collect();
        let name = format!("{}.{extension}", meta.cursor);
        let mut path = self.prefix.clone().join(name);
        loop {
            let options = PutOptions {
                mode: PutMode::Create,
                attributes: self.attributes(meta.cursor),
                ..PutOptions::default()
            };
            match self.store.put_opts(&path, payload.clone(), options).await {
                Ok(_) => return Ok(path),
                Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
                    // Another snapshotter's, or our own of which the answer was lost. If it is something
                    // else, ours needs another name.
                    match self.known(&path).await? {
                        Known::Described(other) if is_as_good(&other, meta) => return Ok(path),
                        _ => path = self.apart(meta.cursor, extension),
                    }
                }
                Err(error) => return Err(self.failed(&error)),
            }
        }
    }

    /// A name that nobody else has.
    fn apart(&self, cursor: u64, extension: &str) -> Path {
        let id = uuid::Uuid::new_v4().simple().to_string();
        self.prefix
            .clone()
            .join(format!("{cursor}-{}.{extension}", &id[..12]))
    }

    fn attributes(&self, cursor: u64) -> Attributes {
        match &self.cursor_in {
            CursorIn::Key => Attributes::new(),
            CursorIn::Metadata(name) => {
                let name = Attribute::Metadata(name.clone().into());
                Attributes::from_iter([(name, cursor.to_string())])
            }
        }
    }

    /// Deletes snapshots that are kept no more; returns up to where the stream may be trimmed, if it is to
    /// be.
    pub(crate) async fn retain(&self, newest: &Meta) -> Result<Option<u64>, Error> {
        let listed = self.list().await?;
        self.known
            .lock()
            .retain(|path, _| listed.iter().any(|one| one.path == *path));
        let mut kept: Vec<u64> = Vec::new();
        for one in listed {
            let ours = match self.known(&one.path).await? {
                Known::Described(meta) => is_ours(&meta, newest),
                Known::Other => false,
            };
            if !ours {
                continue;
            }
            if kept.len() < self.keep {
                kept.push(one.cursor);
                continue;
            }
            match self.store.delete(&one.path).await {
                Ok(()) | Err(StoreError::NotFound { .. }) => {
                    tracing::debug!(snapshot = %one.path, "a snapshot is kept no more");
                }
                Err(error) => return Err(self.failed(&error)),
            }
        }
        Ok(match self.trim {
            None => None,
            Some(TrimTo::Oldest) => kept.last().copied(),
            Some(TrimTo::Newest) => kept.first().copied(),
        })
    }

    async fn known(&self, path: &Path) -> Result<Known, Error> {
        if let Some(known) = self.known.lock().get(path) {
            return Ok(known.clone());
        }
        let options = GetOptions {
            range: Some((0..MOST_HEAD as u64).into()),
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

/// Whether two are of the same fold and stream.
fn is_ours(meta: &Meta, ours: &Meta) -> bool {
    meta.fold == ours.fold && meta.created_at == ours.created_at && meta.lineage == ours.lineage
}

fn is_as_good(meta: &Meta, ours: &Meta) -> bool {
    is_ours(meta, ours) && meta.cursor == ours.cursor && meta.fold_version == ours.fold_version
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

fn taken(path: &Path, meta: &Meta, totals: &Totals) -> SnapshotInfo {
    SnapshotInfo {
        kind: Kind::External,
        place: path.to_string(),
        cursor: meta.cursor,
        bytes: object_bytes(meta, totals),
        taken_at: Some(meta.taken_at),
        anchored: false,
    }
}

/// How large an object is.
fn object_bytes(meta: &Meta, totals: &Totals) -> u64 {
    let around = object::head(meta).len() + object::tail_len(meta.encoding);
    totals.bytes + around as u64
}

/// An object, from its beginning to its end.
struct Reader<'a> {
    place: &'a External,
    stream: futures::stream::BoxStream<'static, object_store::Result<Bytes>>,
    /// What was read and not given away.
    held: BytesMut,
    /// How much of it is the end of the object.
    behind: usize,
    is_over: bool,
}

impl<'a> Reader<'a> {
    /// `None` if it is not there.
    async fn open(place: &'a External, listed: &Listed) -> Result<Option<Reader<'a>>, Error> {
        match place.store.get(&listed.path).await {
            Ok(got) => Ok(Some(Reader {
                place,
                stream: got.into_stream(),
                held: BytesMut::new(),
                behind: 0,
                is_over: false,
            })),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(place.failed(&error)),
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let next = self.stream.try_next().await;
        next.map_err(|error| self.place.failed(&error))
    }

    /// The first bytes: enough for a description.
    async fn first(&mut self) -> Result<Bytes, Error> {
        let mut first = BytesMut::new();
        while first.len() < MOST_HEAD {
            match self.next().await? {
                Some(chunk) => first.extend_from_slice(&chunk),
                None => break,
            }
        }
        Ok(first.freeze())
    }

    /// From here on the object's last bytes, so many, are held back.
    fn hold_back(&mut self, first: Bytes, behind: usize) {
        self.held = BytesMut::from(&first[..]);
        self.behind = behind;
    }

    /// What comes next, up to what is held back.
    async fn body(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if self.held.len() > self.behind {
                let more = self.held.len() - self.behind;
                return Ok(Some(self.held.split_to(more).freeze()));
            }
            if self.is_over {
                return Ok(None);
            }
            match self.next().await? {
                Some(chunk) => self.held.extend_from_slice(&chunk),
                None => self.is_over = true,
            }
        }
    }
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
