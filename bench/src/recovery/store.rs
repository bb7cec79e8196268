//! A small S3 server in this process, on a port of the loopback interface, over a directory on disk.
//!
//! It has what a repository asks for: conditional puts, multipart uploads, ranges, lists and bulk
//! deletes. Signatures are not looked at. A body is synced before its request is answered, as a
//! store's is. What there is lives in memory alone: it ends with this program.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    fmt::Write as _,
    fs::File,
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{SinkExt as _, channel::mpsc};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Either, Full, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use time::OffsetDateTime;
use tokio::{net::TcpListener, task::JoinHandle};

/// Keys of one page of a list.
const PAGE: usize = 1000;

/// Bytes that are read at a time to answer a get.
const BLOCK: u64 = 1 << 20;

type Stream = StreamBody<mpsc::Receiver<io::Result<Frame<Bytes>>>>;
type Answer = Response<Either<Full<Bytes>, Stream>>;

/// The running server. Dropping it ends it; its files stay in the directory.
pub struct Store {
    port: u16,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

impl Store {
    /// Starts a store without objects that keeps their bytes in `directory`.
    ///
    /// # Errors
    ///
    /// If there is no port.
    pub async fn start(directory: PathBuf) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(State {
            directory,
            inner: Mutex::default(),
        });
        let served = state.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let Ok((connection, _)) = listener.accept().await else {
                    // Out of descriptors, for instance: others may be closed by then.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let _ = connection.set_nodelay(true);
                let state = served.clone();
                let answer = service_fn(move |request| {
                    let state = state.clone();
                    async move { Ok::<_, Infallible>(state.answer(request).await) }
                });
                // A connection that breaks is its client's affair.
                tokio::spawn(
                    http1::Builder::new().serve_connection(TokioIo::new(connection), answer),
                );
            }
        });
        Ok(Self {
            port,
            state,
            accepting,
        })
    }

    /// What a server has to be told to use it.
    pub fn settings(&self) -> Vec<String> {
        vec![
            "snapshots.destination=s3://bench/esker".to_owned(),
            format!("snapshots.aws-endpoint-url=http://127.0.0.1:{}", self.port),
            "snapshots.aws-allow-http=true".to_owned(),
            "snapshots.aws-region=us-east-1".to_owned(),
            "snapshots.aws-access-key-id=bench".to_owned(),
            "snapshots.aws-secret-access-key=bench".to_owned(),
        ]
    }

    /// What there is now.
    pub fn saved(&self) -> Saved {
        Saved(self.state.inner.lock().objects.clone())
    }

    /// Goes back to that.
    pub fn back_to(&self, saved: &Saved) {
        self.state.inner.lock().objects.clone_from(&saved.0);
    }

    /// Objects and their bytes.
    pub fn size(&self) -> (usize, u64) {
        let inner = self.state.inner.lock();
        let bytes = inner.objects.values().map(Object::size).sum();
        (inner.objects.len(), bytes)
    }
}

/// All objects of a moment.
pub struct Saved(BTreeMap<String, Object>);

impl Drop for Store {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

struct State {
    directory: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    objects: BTreeMap<String, Object>,
    uploads: HashMap<String, BTreeMap<u32, Arc<Piece>>>,
    last_name: u64,
}

/// Bytes on disk, removed with the last object that has them.
struct Piece {
    path: PathBuf,
    size: u64,
}

impl Drop for Piece {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What was put under a key, in one piece or several.
#[derive(Clone)]
struct Object {
    pieces: Vec<Arc<Piece>>,
    etag: String,
    modified: OffsetDateTime,
}

impl Object {
    fn size(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.size).sum()
    }
}

/// A request that is answered with an error.
struct Refusal(StatusCode, &'static str);

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        eprintln!("the store in this process: {error}");
        Self(StatusCode::INTERNAL_SERVER_ERROR, "InternalError")
    }
}

impl From<hyper::Error> for Refusal {
    fn from(_: hyper::Error) -> Self {
        Self(StatusCode::BAD_REQUEST, "IncompleteBody")
    }
}

const NO_SUCH_KEY: Refusal = Refusal(StatusCode::NOT_FOUND, "NoSuchKey");
const NO_SUCH_UPLOAD: Refusal = Refusal(StatusCode::NOT_FOUND, "NoSuchUpload");
const PRECONDITION_FAILED: Refusal = Refusal(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
const NOT_IMPLEMENTED: Refusal = Refusal(StatusCode::NOT_IMPLEMENTED, "NotImplemented");

/// Under which condition an object is put.
enum Condition {
    None,
    Absent,
    Is(String),
}

impl Condition {
    fn of(request: &Request<Incoming>) -> Self {
        let value = |name| request.headers().get(name).and_then(|v| v.to_str().ok());
        match (value(header::IF_NONE_MATCH), value(header::IF_MATCH)) {
            (Some(_), _) => Self::Absent,
            (None, Some(etag)) => Self::Is(etag.to_owned()),
            (None, None) => Self::None,
        }
    }
}

impl State {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        match self.perform(request).await {
            Ok(answer) => answer,
            Err(Refusal(status, code)) => {
                let text = format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>");
                with(status, text)
            }
        }
    }

    async fn perform(&self, request: Request<Incoming>) -> Result<Answer, Refusal> {
        let path = decoded(request.uri().path());
        let query = request.uri().query().unwrap_or_default();
        let query: HashMap<String, String> = query
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (decoded(name), decoded(value)))
            .collect();
        let (_bucket, key) = path
            .trim_start_matches('/')
            .split_once('/')
            .unwrap_or((&path, ""));
        let key = key.to_owned();
        let condition = Condition::of(&request);
        let upload = query.get("uploadId");
        match (request.method().clone(), upload) {
            (Method::GET, _) if query.contains_key("list-type") => Ok(self.list(&query)),
            (Method::GET | Method::HEAD, _) => self.get(&key, &request),
            (Method::PUT, None) => {
                let piece = self.receive(request).await?;
                self.put(key, vec![piece], &condition).map(|etag| {
                    let mut answer = with(StatusCode::OK, String::new());
                    tag(&mut answer, &etag);
                    answer
                })
            }
            (Method::PUT, Some(upload)) => {
                let number = query.get("partNumber").and_then(|n| n.parse().ok());
                let number: u32 = number.ok_or(NOT_IMPLEMENTED)?;
                let piece = self.receive(request).await?;
                let mut inner = self.inner.lock();
                let parts = inner.uploads.get_mut(upload).ok_or(NO_SUCH_UPLOAD)?;
                parts.insert(number, piece);
                let mut answer = with(StatusCode::OK, String::new());
                tag(&mut answer, &format!("\"part-{number}\""));
                Ok(answer)
            }
            (Method::POST, None) if query.contains_key("uploads") => {
                let upload = self.name();
                self.inner
                    .lock()
                    .uploads
                    .insert(upload.clone(), BTreeMap::new());
                Ok(with(
                    StatusCode::OK,
                    format!(
                        "<InitiateMultipartUploadResult><Bucket>bench</Bucket><Key>{key}</Key>\
                         <UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
                    ),
                ))
            }
            (Method::POST, Some(upload)) => {
                request.into_body().collect().await?;
                let parts = self.inner.lock().uploads.remove(upload);
                let parts = parts.ok_or(NO_SUCH_UPLOAD)?;
                let etag = self.put(key.clone(), parts.into_values().collect(), &condition)?;
                Ok(with(
                    StatusCode::OK,
                    format!(
                        "<CompleteMultipartUploadResult><Bucket>bench</Bucket><Key>{key}</Key>\
                         <ETag>{}</ETag></CompleteMultipartUploadResult>",
                        etag.replace('"', "&quot;")
                    ),
                ))
            }
            (Method::POST, None) if query.contains_key("delete") => {
                let body = request.into_body().collect().await?.to_bytes();
                let body = String::from_utf8_lossy(&body).into_owned();
                let mut text = "<DeleteResult>".to_owned();
                let keys = body.split("<Key>").skip(1);
                for key in keys.filter_map(|rest| rest.split_once("</Key>")) {
                    self.inner.lock().objects.remove(key.0);
                    // Writing to a string cannot fail.
                    let _ = write!(text, "<Deleted><Key>{}</Key></Deleted>", key.0);
                }
                text.push_str("</DeleteResult>");
                Ok(with(StatusCode::OK, text))
            }
            (Method::DELETE, Some(upload)) => {
                self.inner.lock().uploads.remove(upload);
                Ok(with(StatusCode::NO_CONTENT, String::new()))
            }
            (Method::DELETE, None) => {
                self.inner.lock().objects.remove(&key);
                Ok(with(StatusCode::NO_CONTENT, String::new()))
            }
            _ => Err(NOT_IMPLEMENTED),
        }
    }

    fn name(&self) -> String {
        let mut inner = self.inner.lock();
        inner.last_name += 1;
        format!("{:08}", inner.last_name)
    }

    /// Writes a request's body to a file of its own.
    async fn receive(&self, request: Request<Incoming>) -> Result<Arc<Piece>, Refusal> {
        let path = self.directory.join(self.name());
        let body = request.into_body().collect().await?.to_bytes();
        let written = tokio::task::spawn_blocking(move || {
            let mut file = File::create(&path)?;
            file.write_all(&body)?;
            file.sync_data()?;
            Ok::<_, io::Error>(Piece {
                path,
                size: body.len() as u64,
            })
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
        let mut inner = self.inner.lock();
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
            modified: OffsetDateTime::now_utc(),
        };
        inner.objects.insert(key, object);
        Ok(etag)
    }

    fn get(&self, key: &str, request: &Request<Incoming>) -> Result<Answer, Refusal> {
        let object = self.inner.lock().objects.get(key).cloned();
        let object = object.ok_or(NO_SUCH_KEY)?;
        let size = object.size();
        let range = request.headers().get(header::RANGE);
        let range = range.and_then(|range| range.to_str().ok()?.strip_prefix("bytes="));
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
            true => Either::Left(Full::default()),
            false => Either::Right(StreamBody::new(send(object, wanted))),
        };
        answer.body(body).map_err(|_| NOT_IMPLEMENTED)
    }

    fn list(&self, query: &HashMap<String, String>) -> Answer {
        let value = |name: &str| query.get(name).map_or("", String::as_str);
        let (prefix, delimiter) = (value("prefix"), value("delimiter"));
        let after = value("start-after")
            .max(value("continuation-token"))
            .to_owned();
        let inner = self.inner.lock();
        let mut text = format!("<ListBucketResult><Name>bench</Name><Prefix>{prefix}</Prefix>");
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
        with(StatusCode::OK, text)
    }
}

/// Reads a part of an object and passes it on, as fast as it is taken.
fn send(object: Object, wanted: std::ops::Range<u64>) -> mpsc::Receiver<io::Result<Frame<Bytes>>> {
    let (mut sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut begin = 0;
        for piece in &object.pieces {
            let end = begin + piece.size;
            let mut at = wanted.start.max(begin);
            while at < wanted.end.min(end) {
                let length = BLOCK.min(wanted.end.min(end) - at);
                let (path, offset) = (piece.path.clone(), at - begin);
                let read = tokio::task::spawn_blocking(move || read(&path, offset, length)).await;
                let block = read.unwrap_or_else(|error| Err(io::Error::other(error)));
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

fn read(path: &Path, offset: u64, length: u64) -> io::Result<Bytes> {
    let mut block = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    File::open(path)?.read_exact_at(&mut block, offset)?;
    Ok(block.into())
}

fn with(status: StatusCode, text: String) -> Answer {
    let mut answer = Response::new(Either::Left(Full::from(text)));
    *answer.status_mut() = status;
    answer
}

fn tag(answer: &mut Answer, etag: &str) {
    if let Ok(etag) = etag.parse() {
        answer.headers_mut().insert(header::ETAG, etag);
    }
}

/// As HTTP writes it: `Sat, 21 Nov 2026 13:35:07 GMT`.
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

/// Without percent-encoding.
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
