//! A small S3 server in the tests' own process: one bucket, in memory, as much of the protocol as a
//! repository of small files needs, with conditional puts.
//!
//! It has moods: a test can make it vanish, fall silent, be slow or fail, and be well again. (The full
//! server, with faults for single requests, is with the repository's own tests.)

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

/// The only bucket.
pub const BUCKET: &str = "bucket";

/// How it behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// As it should.
    Well,
    /// Connections break off at once.
    Gone,
    /// Nothing is answered.
    Silent,
    /// Everything is answered so much later.
    Slow(Duration),
    /// Half of the requests are answered with 503, half of those after they were done.
    Failing,
}

#[derive(Clone)]
struct Object {
    etag: String,
    content: Bytes,
}

struct State {
    objects: Mutex<BTreeMap<String, Object>>,
    mood: Mutex<Mood>,
    /// Objects of which the key contains it are not given to anybody.
    denied: Mutex<Option<String>>,
    /// Requests and versions so far.
    count: AtomicU64,
}

/// A running server. It stops when dropped, and its objects are gone.
pub struct S3 {
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl S3 {
    /// Starts one on a free loopback port.
    pub async fn start() -> S3 {
        let state = Arc::new(State {
            objects: Mutex::default(),
            mood: Mutex::new(Mood::Well),
            denied: Mutex::default(),
            count: AtomicU64::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(serve(listener, state.clone()));
        S3 {
            address,
            state,
            task,
        }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on.
    pub fn be(&self, mood: Mood) {
        *self.state.mood.lock().unwrap() = mood;
    }

    /// From now on, nobody may read objects of which the key contains this; `None` ends that. Lists show them.
    #[allow(dead_code)]
    pub fn deny(&self, part: Option<&str>) {
        *self.state.denied.lock().unwrap() = part.map(str::to_owned);
    }

    /// Requests so far, failed ones included.
    pub fn requests(&self) -> u64 {
        self.state.count.load(Ordering::Relaxed)
    }

    /// All keys.
    pub fn keys(&self) -> Vec<String> {
        self.state.objects.lock().unwrap().keys().cloned().collect()
    }

    /// An object's content.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        let objects = self.state.objects.lock().unwrap();
        objects.get(key).map(|object| object.content.to_vec())
    }

    /// Replaces an object behind the writers' backs.
    pub fn put(&self, key: &str, content: Vec<u8>) {
        self.state.insert(key, content.into());
    }

    /// Removes one.
    pub fn remove(&self, key: &str) {
        self.state.objects.lock().unwrap().remove(key);
    }
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    // Connections end with it.
    let mut connections = JoinSet::new();
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            continue;
        };
        let _ = socket.set_nodelay(true);
        let state = state.clone();
        connections.spawn(async move {
            let service = service_fn(|request| state.answer(request));
            let connection = hyper::server::conn::http1::Builder::new();
            // Broken off by a client, or on purpose.
            let _ = connection
                .serve_connection(TokioIo::new(socket), service)
                .await;
        });
        while connections.try_join_next().is_some() {}
    }
}

type Answer = Response<Full<Bytes>>;

/// A connection that is to break off.
#[derive(Debug)]
struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("on purpose")
    }
}

impl std::error::Error for Broken {}

impl State {
    fn mood(&self) -> Mood {
        *self.mood.lock().unwrap()
    }

    fn insert(&self, key: &str, content: Bytes) -> String {
        let etag = format!("\"{}\"", self.count.fetch_add(1, Ordering::Relaxed));
        let object = Object {
            etag: etag.clone(),
            content,
        };
        self.objects.lock().unwrap().insert(key.to_owned(), object);
        etag
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Answer, Broken> {
        self.count.fetch_add(1, Ordering::Relaxed);
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| Broken)?.to_bytes();
        let request = Request::from_parts(head, body);
        let key = decode(request.uri().path());
        let denied = self.denied.lock().unwrap().clone();
        if denied.is_some_and(|part| key.contains(&part)) && request.method() == Method::GET {
            return Ok(error(StatusCode::FORBIDDEN, "AccessDenied"));
        }
        let busy = || error(StatusCode::SERVICE_UNAVAILABLE, "SlowDown");
        match self.mood() {
            Mood::Well => Ok(self.apply(&request)),
            Mood::Gone => Err(Broken),
            Mood::Silent => std::future::pending().await,
            Mood::Slow(time) => {
                tokio::time::sleep(time).await;
                Ok(self.apply(&request))
            }
            Mood::Failing => match rand::random_range(0..4) {
                0 => Ok(busy()),
                1 => {
                    self.apply(&request);
                    Ok(busy())
                }
                _ => Ok(self.apply(&request)),
            },
        }
    }

    fn apply(&self, request: &Request<Bytes>) -> Answer {
        let path = decode(request.uri().path());
        let path = path.trim_start_matches('/');
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        if bucket != BUCKET {
            return error(StatusCode::NOT_FOUND, "NoSuchBucket");
        }
        let query = request.uri().query().unwrap_or_default();
        match *request.method() {
            Method::GET if key.is_empty() => self.list(query),
            Method::GET => self.read(key, request, true),
            Method::HEAD => self.read(key, request, false),
            Method::PUT if query.is_empty() => self.write(key, request),
            Method::DELETE if query.is_empty() => {
                self.objects.lock().unwrap().remove(key);
                empty(StatusCode::NO_CONTENT)
            }
            Method::POST
                if query
                    .split('&')
                    .any(|q| q.trim_end_matches('=') == "delete") =>
            {
                self.delete(request.body())
            }
            _ => error(StatusCode::NOT_IMPLEMENTED, "NotImplemented"),
        }
    }

    fn read(&self, key: &str, request: &Request<Bytes>, with_body: bool) -> Answer {
        let Some(object) = self.objects.lock().unwrap().get(key).cloned() else {
            return error(StatusCode::NOT_FOUND, "NoSuchKey");
        };
        let header = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok());
        if header("if-match").is_some_and(|wanted| wanted != object.etag) {
            return error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
        }
        let size = object.content.len();
        let mut answer = Response::builder()
            .header("etag", &object.etag)
            .header("last-modified", "Sat, 01 Jan 2022 00:00:00 GMT");
        let range = header("range").and_then(|range| {
            let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
            let first: usize = first.parse().ok()?;
            let last = last.parse().unwrap_or(usize::MAX);
            (first < size).then_some((first, last.min(size - 1)))
        });
        let mut content = object.content;
        if let Some((first, last)) = range {
            content = content.slice(first..=last);
            answer = answer
                .status(StatusCode::PARTIAL_CONTENT)
                .header("content-range", format!("bytes {first}-{last}/{size}"));
        }
        answer = answer.header("content-length", content.len());
        if !with_body {
            content = Bytes::new();
        }
        answer.body(content.into()).unwrap()
    }

    fn write(&self, key: &str, request: &Request<Bytes>) -> Answer {
        let mut objects = self.objects.lock().unwrap();
        let there = objects.get(key);
        let refused = match (
            request.headers().get("if-none-match"),
            request.headers().get("if-match"),
        ) {
            (Some(_), _) => there.is_some(),
            (None, Some(wanted)) => there.is_none_or(|object| *wanted != *object.etag),
            (None, None) => false,
        };
        if refused {
            return error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
        }
        let etag = format!("\"{}\"", self.count.fetch_add(1, Ordering::Relaxed));
        let object = Object {
            etag: etag.clone(),
            content: request.body().clone(),
        };
        objects.insert(key.to_owned(), object);
        Response::builder()
            .header("etag", etag)
            .body(Full::default())
            .unwrap()
    }

    fn list(&self, query: &str) -> Answer {
        let parameter = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, v)| decode(v))
        };
        let prefix = parameter("prefix").unwrap_or_default();
        let delimiter = parameter("delimiter");
        let after = parameter("start-after").unwrap_or_default();
        let mut contents = String::new();
        let mut prefixes: Vec<String> = Vec::new();
        let objects = self.objects.lock().unwrap();
        let wanted = |key: &&String| key.starts_with(&prefix) && **key > after;
        for key in objects.keys().filter(wanted) {
            let below = &key[prefix.len()..];
            let cut = delimiter.as_ref().and_then(|d| below.find(d.as_str()));
            if let Some(cut) = cut {
                let common = key[..=prefix.len() + cut].to_owned();
                if prefixes.last() != Some(&common) {
                    prefixes.push(common);
                }
                continue;
            }
            let object = &objects[key];
            let size = object.content.len();
            let etag = object.etag.trim_matches('"');
            write!(
                contents,
                "<Contents><Key>{key}</Key><LastModified>2022-01-01T00:00:00.000Z</LastModified>\
                 <ETag>{etag}</ETag><Size>{size}</Size></Contents>"
            )
            .unwrap();
        }
        for common in prefixes {
            write!(
                contents,
                "<CommonPrefixes><Prefix>{common}</Prefix></CommonPrefixes>"
            )
            .unwrap();
        }
        xml(&format!(
            "<ListBucketResult><Name>{BUCKET}</Name><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
        ))
    }

    fn delete(&self, body: &Bytes) -> Answer {
        let text = String::from_utf8_lossy(body);
        let mut done = String::new();
        let mut objects = self.objects.lock().unwrap();
        for part in text.split("<Key>").skip(1) {
            let key = part.split("</Key>").next().unwrap();
            objects.remove(key);
            write!(done, "<Deleted><Key>{key}</Key></Deleted>").unwrap();
        }
        xml(&format!("<DeleteResult>{done}</DeleteResult>"))
    }
}

fn empty(status: StatusCode) -> Answer {
    Response::builder()
        .status(status)
        .body(Full::default())
        .unwrap()
}

fn xml(body: &str) -> Answer {
    let body = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>{body}");
    Response::builder()
        .header("content-type", "application/xml")
        .body(Full::from(body))
        .unwrap()
}

fn error(status: StatusCode, code: &str) -> Answer {
    let mut answer = xml(&format!(
        "<Error><Code>{code}</Code><Message>on purpose</Message></Error>"
    ));
    *answer.status_mut() = status;
    answer
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = (*first == b'%').then(|| after.get(..2)).flatten();
        let byte = digits
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8(bytes).unwrap()
}
