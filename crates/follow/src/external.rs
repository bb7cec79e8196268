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
                    // The object is another snapshotter's, or our own if the answer was lost. If it is
                    // something else, or not whole, ours needs another name.
                    match self.known(&path).await? {
                        Known::Described(other)
                            if is_as_good(&other, meta) && self.is_whole(&path, meta).await? =>
                        {
                            return Ok(path);
                        }
                        _ => path = self.apart(meta.cursor, extension),
                    }
                }
                Err(error) => return Err(self.failed(&error)),
            }
        }
    }

    /// Whether the object that is there has all its bytes: its description does not prove that.
    async fn is_whole(&self, path: &Path, meta: &Meta) -> Result<bool, Error> {
        let listed = Listed {
            path: path.clone(),
            cursor: meta.cursor,
            bytes: 0,
            written_at: 0,
        };
        Ok(self.check(&listed).await?.is_ok())
    }

    /// A name that no other object has.
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

    /// Deletes snapshots that are no longer kept. Returns up to where the stream may be trimmed, if it is
    /// to be. Of those that are there, only the one at `place` is known to be whole: it stays, and the
    /// stream is never trimmed beyond it.
    pub(crate) async fn retain(
        &self,
        newest: &Meta,
        place: &str,
        identity: &Identity,
    ) -> Result<Option<u64>, Error> {
        let listed = self.list().await?;
        {
            let paths: HashSet<&Path> = listed.iter().map(|one| &one.path).collect();
            let mut known = self.known.lock();
            known.retain(|path, _| paths.contains(path));
        }
        let mut kept: Vec<u64> = Vec::new();
        let mut former = Vec::new();
        for one in listed {
            let Known::Described(meta) = self.known(&one.path).await? else {
                continue;
            };
            match self.relation(&meta, newest, identity) {
                Relation::Ours if kept.len() < self.keep || one.path.as_ref() == place => {
                    kept.push(one.cursor);
                }
                Relation::Ours => self.delete(&one.path).await?,
                Relation::Former => former.push(one.path),
                Relation::Foreign => {}
            }
        }
        // They are of no use to a follower, but may be all that is left of what was lost. They stay until
        // as many current ones as are kept are there.
        if kept.len() >= self.keep {
            for path in former {
                self.delete(&path).await?;
            }
        }
        let to = match self.trim {
            None => None,
            Some(TrimTo::Oldest) => kept.last().copied(),
            Some(TrimTo::Newest) => kept.first().copied(),
        };
        Ok(to.map(|to| to.min(newest.cursor)))
    }

    async fn delete(&self, path: &Path) -> Result<(), Error> {
        match self.store.delete(path).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => {
                tracing::debug!(snapshot = %path, "a snapshot is kept no more");
                Ok(())
            }
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn relation(&self, meta: &Meta, newest: &Meta, identity: &Identity) -> Relation {
        if meta.fold != newest.fold {
            return Relation::Foreign;
        }
        if meta.created_at != newest.created_at {
            let is_former = self.delete_former
                && matches!(
                    (created(&meta.created_at), created(&newest.created_at)),
                    (Some(then), Some(now)) if then < now
                );
            return if is_former {
                Relation::Former
            } else {
                Relation::Foreign
            };
        }
        if meta.of_stream(identity).is_ok() {
            return Relation::Ours;
        }
        // Nothing is known of a lineage that is not in the past of this one.
        let lineage = meta.lineage.as_deref();
        match lineage.and_then(|lineage| identity.shares(lineage)) {
            Some(_) => Relation::Former,
            None => Relation::Foreign,
        }
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

/// How a snapshot that is there relates to the one that was taken.
enum Relation {
    /// Of the same fold and stream, and of use.
    Ours,
    /// Of the same fold, and of a history that no longer exists.
    Former,
    /// Any other.
    Foreign,
}

fn created(at: &Option<String>) -> Option<time::OffsetDateTime> {
    let format = &time::format_description::well_known::Rfc3339;
    time::OffsetDateTime::parse(at.as_deref()?, format).ok()
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

/// The size of an object.
fn object_bytes(meta: &Meta, totals: &Totals) -> u64 {
    let around = object::head(meta).len() + object::tail_len(meta.encoding);
    totals.bytes + around as u64
}

/// Reads an object, from its beginning to its end.
struct Reader<'a> {
    place: &'a External,
    stream: futures::stream::BoxStream<'static, object_store::Result<Bytes>>,
    /// Bytes that were read and not returned yet.
    held: BytesMut,
    /// How many of the object's last bytes are held back.
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
        while first.len() < MAX_HEAD {
            match self.next().await? {
                Some(chunk) => first.extend_from_slice(&chunk),
                None => break,
            }
        }
        Ok(first.freeze())
    }

    /// Holds back the object's last `behind` bytes from here on.
    fn hold_back(&mut self, first: Bytes, behind: usize) {
        self.held = BytesMut::from(&first[..]);
        self.behind = behind;
    }

    /// The next bytes, up to those that are held back.
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
