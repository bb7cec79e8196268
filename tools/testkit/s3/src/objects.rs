//! Objects of one bucket, in memory or synced to disk: the operations of S3 that a repository uses, and no
//! others.
//!
//! These are conditional puts, multipart uploads, ranges, lists and bulk deletes. Signatures are not checked.
//! On disk, a body is synced before its request is answered, as an object store does. The list of objects is
//! kept in memory alone.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures::{SinkExt as _, channel::mpsc};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::StreamBody;
use hyper::body::Frame;
use s3s::{Body, HttpResponse};
use time::OffsetDateTime;

use crate::request::Operation;
use crate::store::Store;

/// The only bucket.
pub const BUCKET: &str = "bucket";

/// Keys of one page of a list.
const PAGE: usize = 1000;

/// Bytes that are read at a time to answer a get.
const BLOCK: u64 = 1 << 20;

/// The date of objects in memory, in seconds: the first of January 2022.
const LONG_AGO: i64 = 1_640_995_200;

/// The store.
pub struct Objects {
    /// The directory for the bytes of objects; without one they are in memory.
    directory: Option<PathBuf>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    objects: BTreeMap<String, Object>,
    uploads: HashMap<String, BTreeMap<u32, Arc<Piece>>>,
    last_name: u64,
    /// Before the next list of keys below the first, the object with the second key is removed.
    removed_at_list: Option<(String, String)>,
    /// The object that was removed in that way.
    removed: Option<Object>,
}

/// All objects as of a moment.
pub struct Saved(BTreeMap<String, Object>);

/// Bytes of a put, or of a part of an upload.
enum Piece {
    Memory(Bytes),
    /// Removed with the last object that has it.
    File {
        path: PathBuf,
        size: u64,
    },
}

impl Piece {
    fn size(&self) -> u64 {
        match self {
            Piece::Memory(bytes) => bytes.len() as u64,
            Piece::File { size, .. } => *size,
        }
    }

    /// Reads `length` bytes from `offset` on, which must exist.
    fn read(&self, offset: u64, length: u64) -> io::Result<Bytes> {
        let (begin, length) = (index(offset)?, index(length)?);
        match self {
            Piece::Memory(bytes) => Ok(bytes.slice(begin..begin + length)),
            Piece::File { path, .. } => {
                let mut block = vec![0; length];
                File::open(path)?.read_exact_at(&mut block, offset)?;
                Ok(block.into())
            }
        }
    }
}

fn index(number: u64) -> io::Result<usize> {
    usize::try_from(number).map_err(io::Error::other)
}

impl Drop for Piece {
    fn drop(&mut self) {
        if let Piece::File { path, .. } = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The object of a key, in one piece or several.
#[derive(Clone)]
struct Object {
    pieces: Vec<Arc<Piece>>,
    etag: String,
    modified: OffsetDateTime,
}

impl Object {
    fn size(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.size()).sum()
    }

    fn content(&self) -> Vec<u8> {
        let pieces = self.pieces.iter();
        pieces
            .flat_map(|piece| piece.read(0, piece.size()).unwrap())
            .collect()
    }
}

/// A request that is answered with an error.
struct Refusal(StatusCode, &'static str);

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        eprintln!("the S3 server in this process: {error}");
        Self(StatusCode::INTERNAL_SERVER_ERROR, "InternalError")
    }
}

const NO_SUCH_BUCKET: Refusal = Refusal(StatusCode::NOT_FOUND, "NoSuchBucket");
const NO_SUCH_KEY: Refusal = Refusal(StatusCode::NOT_FOUND, "NoSuchKey");
const NO_SUCH_UPLOAD: Refusal = Refusal(StatusCode::NOT_FOUND, "NoSuchUpload");
const PRECONDITION_FAILED: Refusal = Refusal(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
const NOT_IMPLEMENTED: Refusal = Refusal(StatusCode::NOT_IMPLEMENTED, "NotImplemented");

/// The condition of a put.
enum Condition {
    None,
    Absent,
    Is(String),
}

impl Condition {
    fn of(request: &Request<Bytes>) -> Self {
        match (
            text(request, header::IF_NONE_MATCH),
            text(request, header::IF_MATCH),
        ) {
            (Some(_), _) => Self::Absent,
            (None, Some(etag)) => Self::Is(etag.to_owned()),
            (None, None) => Self::None,
        }
    }
}

/// A header's value.
fn text(request: &Request<Bytes>, name: header::HeaderName) -> Option<&str> {
    request.headers().get(name).and_then(|v| v.to_str().ok())
}

impl Store for Objects {
    async fn apply(&self, operation: Operation, request: Request<Bytes>) -> HttpResponse {
        match self.perform(operation, request).await {
            Ok(response) => response,
            Err(Refusal(status, code)) => {
                crate::faults::answer(status.as_u16(), code, "the store refuses it")
            }
        }
    }
}

impl Objects {
    pub(crate) fn in_memory() -> Objects {
        Objects {
            directory: None,
            inner: Mutex::default(),
        }
    }

    pub(crate) fn on_disk(directory: PathBuf) -> Objects {
        Objects {
            directory: Some(directory),
            inner: Mutex::default(),
        }
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.inner().objects.keys().cloned().collect()
    }

    pub(crate) fn content(&self, key: &str) -> Option<Vec<u8>> {
        let object = self.inner().objects.get(key).cloned()?;
        Some(object.content())
    }

    pub(crate) fn remove_at_list(&self, prefix: &str, key: &str) {
        self.inner().removed_at_list = Some((prefix.to_owned(), key.to_owned()));
    }

    pub(crate) fn removed(&self) -> Option<Vec<u8>> {
        let removed = self.inner().removed.clone()?;
        Some(removed.content())
    }

    pub(crate) fn insert(&self, key: &str, content: Bytes) {
        let piece = Arc::new(Piece::Memory(content));
        let inserted = self.put(key.to_owned(), vec![piece], &Condition::None);
        assert!(
            inserted.is_ok(),
            "a put without a condition is never refused"
        );
    }

    pub(crate) fn remove(&self, key: &str) {
        self.inner().objects.remove(key);
    }

    pub(crate) fn saved(&self) -> Saved {
        Saved(self.inner().objects.clone())
    }

    pub(crate) fn back_to(&self, saved: &Saved) {
        self.inner().objects.clone_from(&saved.0);
    }

    pub(crate) fn size(&self) -> (usize, u64) {
        let inner = self.inner();
        let bytes = inner.objects.values().map(Object::size).sum();
        (inner.objects.len(), bytes)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    async fn perform(
        &self,
        operation: Operation,
        request: Request<Bytes>,
    ) -> Result<HttpResponse, Refusal> {
        use Operation as O;
        let path = decoded(request.uri().path());
        let path = path.trim_start_matches('/');
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        if bucket != BUCKET {
            return Err(NO_SUCH_BUCKET);
        }
        let query = request.uri().query().unwrap_or_default();
        let query: HashMap<String, String> = query
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (decoded(name), decoded(value)))
            .collect();
        let upload = query.get("uploadId").ok_or(NO_SUCH_UPLOAD);
        let key = key.to_owned();
        let condition = Condition::of(&request);
        match operation {
            O::List => Ok(self.list(&query)),
            O::Get | O::Head => self.get(&key, &request),
            O::Put => {
                let piece = self.receive(request).await?;
                let etag = self.put(key, vec![piece], &condition)?;
                Ok(tagged(&etag))
            }
            O::UploadPart => {
                let number = query.get("partNumber").and_then(|n| n.parse().ok());
                let number: u32 = number.ok_or(NOT_IMPLEMENTED)?;
                let piece = self.receive(request).await?;
                let mut inner = self.inner();
                let parts = inner.uploads.get_mut(upload?).ok_or(NO_SUCH_UPLOAD)?;
                parts.insert(number, piece);
                Ok(tagged(&format!("\"part-{number}\"")))
            }
            O::CreateUpload => {
                let upload = self.name();
                self.inner().uploads.insert(upload.clone(), BTreeMap::new());
                Ok(xml(format!(
                    "<InitiateMultipartUploadResult><Bucket>{BUCKET}</Bucket><Key>{key}</Key>\
                     <UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
                )))
            }
            O::CompleteUpload => {
                let parts = self.inner().uploads.remove(upload?);
                let parts = parts.ok_or(NO_SUCH_UPLOAD)?;
                let etag = self.put(key.clone(), parts.into_values().collect(), &condition)?;
                Ok(xml(format!(
                    "<CompleteMultipartUploadResult><Bucket>{BUCKET}</Bucket><Key>{key}</Key>\
                     <ETag>{}</ETag></CompleteMultipartUploadResult>",
                    etag.replace('"', "&quot;")
                )))
            }
            O::BulkDelete => {
                let body = String::from_utf8_lossy(request.body());
                let mut text = "<DeleteResult>".to_owned();
                let keys = body.split("<Key>").skip(1);
                for (key, _) in keys.filter_map(|rest| rest.split_once("</Key>")) {
                    self.remove(key);
                    // Writing to a string cannot fail.
                    let _ = write!(text, "<Deleted><Key>{key}</Key></Deleted>");
                }
                text.push_str("</DeleteResult>");
                Ok(xml(text))
            }
            O::AbortUpload => {
                self.inner().uploads.remove(upload?);
                Ok(with(StatusCode::NO_CONTENT, Body::empty()))
            }
            O::Delete => {
                self.remove(&key);
                Ok(with(StatusCode::NO_CONTENT, Body::empty()))
            }
            O::Other => Err(NOT_IMPLEMENTED),
        }
    }

    fn name(&self) -> String {
        let mut inner = self.inner();
        inner.last_name += 1;
        format!("{:08}", inner.last_name)
    }

    /// Stores a request's body; on disk in its own file, synced.
    async fn receive(&self, request: Request<Bytes>) -> Result<Arc<Piece>, Refusal> {
        let body = request.into_body();
        let Some(directory) = &self.directory else {
            return Ok(Arc::new(Piece::Memory(body)));
        };
        let path = directory.join(self.name());
        let written = tokio::task::spawn_blocking(move || {
            let mut file = File::create(&path)?;
            file.write_all(&body)?;
            file.sync_data()?;
            let size = body.len() as u64;
            Ok::<_, io::Error>(Piece::File { path, size })
        });
        Ok(Arc::new(written.await.map_err(io::Error::other)??))
    }

    fn put(
        &self,
        key: String,
        pieces: Vec<Arc<Piece>>,
        condition: &Condition,
    ) -> Result<String, Refusal> {
        let etag = format!("\"{}\"", self.name());
        let mut inner = self.inner();
        let there = inner.objects.get(&key);
        match (condition, there) {
            (Condition::Is(_), None) => return Err(NO_SUCH_KEY),
            (Condition::Absent, Some(_)) => return Err(PRECONDITION_FAILED),
            (Condition::Is(wanted), Some(object)) if *wanted != object.etag => {
                return Err(PRECONDITION_FAILED);
            }
            _ => {}
        }
        let object = Object {
            pieces,
            etag: etag.clone(),
            modified: match self.directory {
                Some(_) => OffsetDateTime::now_utc(),
                None => OffsetDateTime::from_unix_timestamp(LONG_AGO).unwrap(),
            },
        };
        inner.objects.insert(key, object);
        Ok(etag)
    }

    fn get(&self, key: &str, request: &Request<Bytes>) -> Result<HttpResponse, Refusal> {
        let object = self.inner().objects.get(key).cloned();
        let object = object.ok_or(NO_SUCH_KEY)?;
        if text(request, header::IF_MATCH).is_some_and(|wanted| wanted != object.etag) {
            return Err(PRECONDITION_FAILED);
        }
        if text(request, header::IF_NONE_MATCH).is_some_and(|known| known == object.etag) {
            return Ok(with(StatusCode::NOT_MODIFIED, Body::empty()));
        }
        let size = object.size();
        let range = text(request, header::RANGE).and_then(|range| range.strip_prefix("bytes="));
        let wanted = match range.and_then(|range| range.split_once('-')) {
            None => 0..size,
            Some(("", last)) => size.saturating_sub(last.parse().unwrap_or(0))..size,
            Some((first, last)) => {
                let end = last.parse().map_or(size, |last: u64| (last + 1).min(size));
                first.parse().unwrap_or(0)..end
            }
        };
        if range.is_some() && wanted.start >= wanted.end {
            return Err(Refusal(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange"));
        }
        let mut answer = Response::builder()
            .header(header::CONTENT_LENGTH, wanted.end - wanted.start)
            .header(header::LAST_MODIFIED, http_date(object.modified))
            .header(header::ETAG, &object.etag);
        if range.is_some() {
            answer = answer.status(StatusCode::PARTIAL_CONTENT).header(
                header::CONTENT_RANGE,
                format!("bytes {}-{}/{size}", wanted.start, wanted.end - 1),
            );
        }
        let body = match *request.method() == Method::HEAD {
            true => Body::empty(),
            false => Body::http_body_unsync(StreamBody::new(send(object, wanted))),
        };
        answer.body(body).map_err(|_| NOT_IMPLEMENTED)
    }

    fn list(&self, query: &HashMap<String, String>) -> HttpResponse {
        let value = |name: &str| query.get(name).map_or("", String::as_str);
        let (prefix, delimiter) = (value("prefix"), value("delimiter"));
        let after = value("start-after")
            .max(value("continuation-token"))
            .to_owned();
        let mut inner = self.inner();
        let removed = inner
            .removed_at_list
            .take_if(|(below, _)| prefix.starts_with(&**below));
        if let Some((_, key)) = removed {
            inner.removed = inner.objects.remove(&key);
        }
        let mut text = format!("<ListBucketResult><Name>{BUCKET}</Name><Prefix>{prefix}</Prefix>");
        let (mut listed, mut folder, mut last) = (0, None, None);
        let mut more = false;
        for (key, object) in inner.objects.range(prefix.to_owned()..) {
            let Some(rest) = key.strip_prefix(prefix) else {
                break;
            };
            if *key <= after || (after.ends_with('/') && key.starts_with(&after)) {
                continue;
            }
            if listed == PAGE {
                more = true;
                break;
            }
            let cut = match delimiter {
                "" => None,
                delimiter => rest.find(delimiter),
            };
            if let Some(cut) = cut {
                let common = &key[..prefix.len() + cut + delimiter.len()];
                if folder.as_deref() == Some(common) {
                    continue;
                }
                folder = Some(common.to_owned());
                last = Some(common.to_owned());
                let _ = write!(
                    text,
                    "<CommonPrefixes><Prefix>{common}</Prefix></CommonPrefixes>"
                );
            } else {
                last = Some(key.clone());
                let at = object.modified;
                let _ = write!(
                    text,
                    "<Contents><Key>{key}</Key><LastModified>{}T{:02}:{:02}:{:02}.000Z</LastModified>\
                     <ETag>{}</ETag><Size>{}</Size></Contents>",
                    at.date(),
                    at.hour(),
                    at.minute(),
                    at.second(),
                    object.etag.replace('"', "&quot;"),
                    object.size()
                );
            }
            listed += 1;
        }
        let _ = write!(
            text,
            "<KeyCount>{listed}</KeyCount><IsTruncated>{more}</IsTruncated>"
        );
        if let Some(last) = last.filter(|_| more) {
            let _ = write!(
                text,
                "<NextContinuationToken>{last}</NextContinuationToken>"
            );
        }
        text.push_str("</ListBucketResult>");
        xml(text)
    }
}

/// Reads a part of an object and sends it, as fast as the receiver takes it.
fn send(object: Object, wanted: std::ops::Range<u64>) -> mpsc::Receiver<io::Result<Frame<Bytes>>> {
    let (mut sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut begin = 0;
        for piece in &object.pieces {
            let end = begin + piece.size();
            let mut at = wanted.start.max(begin);
            while at < wanted.end.min(end) {
                let length = BLOCK.min(wanted.end.min(end) - at);
                let (from, offset) = (piece.clone(), at - begin);
                let block = match **piece {
                    Piece::Memory(_) => from.read(offset, length),
                    Piece::File { .. } => {
                        tokio::task::spawn_blocking(move || from.read(offset, length))
                            .await
                            .unwrap_or_else(|error| Err(io::Error::other(error)))
                    }
                };
                if sender.send(block.map(Frame::data)).await.is_err() {
                    return;
                }
                at += length;
            }
            begin = end;
        }
    });
    receiver
}

fn with(status: StatusCode, body: Body) -> HttpResponse {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

fn xml(text: String) -> HttpResponse {
    let mut response = with(StatusCode::OK, Body::from(text));
    let xml = header::HeaderValue::from_static("application/xml");
    response.headers_mut().insert(header::CONTENT_TYPE, xml);
    response
}

fn tagged(etag: &str) -> HttpResponse {
    let mut response = with(StatusCode::OK, Body::empty());
    response
        .headers_mut()
        .insert(header::ETAG, etag.parse().unwrap());
    response
}

/// A date in the form of HTTP: `Sat, 21 Nov 2026 13:35:07 GMT`.
fn http_date(at: OffsetDateTime) -> String {
    let (weekday, month) = (at.weekday().to_string(), at.month().to_string());
    format!(
        "{}, {:02} {} {} {:02}:{:02}:{:02} GMT",
        &weekday[..3],
        at.day(),
        &month[..3],
        at.year(),
        at.hour(),
        at.minute(),
        at.second()
    )
}

/// The text without percent-encoding.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, others @ ..] = rest {
        let code = match (first, others) {
            (b'%', [a, b, ..]) => std::str::from_utf8(&[*a, *b])
                .ok()
                .and_then(|digits| u8::from_str_radix(digits, 16).ok()),
            _ => None,
        };
        bytes.push(code.unwrap_or(*first));
        rest = &others[if code.is_some() { 2 } else { 0 }..];
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_encoding_is_undone() {
        assert_eq!(decoded("esker%2F0%2Fssts"), "esker/0/ssts");
        assert_eq!(decoded("100%"), "100%");
    }

    #[test]
    fn a_date_is_written_as_http_writes_it() {
        let at = OffsetDateTime::UNIX_EPOCH;
        assert_eq!(http_date(at), "Thu, 01 Jan 1970 00:00:00 GMT");
    }
}
