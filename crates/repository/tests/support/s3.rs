//! A real S3 server in this process, on a port of the loopback interface, over a temporary directory.
//!
//! `s3s-fs` checks the condition of a put and then writes. So that a conditional put is one step, each
//! request here holds a lock of its key, and bulk deletes and lists hold all of them. The body of a
//! request is read before that, so that a slow client stops nobody.
//!
//! The server counts what is asked of it, and a test can make it fail: see [`super::faults`].

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use esker_repository::destination::{Destination, DestinationOptions, Environment};
use http::{Method, Request, Uri};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpResponse};
use s3s_fs::FileSystem;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{RwLock, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use super::faults::{Access, Faults};

/// The only key that the server knows.
pub const ACCESS_KEY_ID: &str = "AKIATESTESTESTESTEST";
/// Its secret.
pub const SECRET_ACCESS_KEY: &str = "very/secret+very/secret+very/secret+very";

/// Bytes of a request's body, at most.
const LARGEST: usize = 512 * 1024 * 1024;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    Put,
    Get,
    Head,
    Delete,
    BulkDelete,
    List,
    CreateUpload,
    UploadPart,
    CompleteUpload,
    AbortUpload,
    Other,
}

impl Operation {
    fn of(method: &Method, uri: &Uri) -> Operation {
        let query = uri.query().unwrap_or("");
        let has = |name: &str| {
            query
                .split('&')
                .any(|pair| pair.split('=').next() == Some(name))
        };
        let in_bucket = key_of(uri).is_empty();
        match *method {
            Method::PUT if has("partNumber") => Operation::UploadPart,
            Method::PUT if !in_bucket => Operation::Put,
            Method::GET if in_bucket => Operation::List,
            Method::GET => Operation::Get,
            Method::HEAD => Operation::Head,
            Method::DELETE if has("uploadId") => Operation::AbortUpload,
            Method::DELETE => Operation::Delete,
            Method::POST if has("delete") => Operation::BulkDelete,
            Method::POST if has("uploads") => Operation::CreateUpload,
            Method::POST if has("uploadId") => Operation::CompleteUpload,
            _ => Operation::Other,
        }
    }

    /// Whether it needs its key for itself.
    fn changes_key(self) -> bool {
        use Operation as O;
        matches!(
            self,
            O::Put | O::Delete | O::CompleteUpload | O::AbortUpload
        )
    }

    fn reads_key(self) -> bool {
        matches!(self, Operation::Get | Operation::Head)
    }

    /// Whether it needs all keys for itself.
    fn concerns_all(self) -> bool {
        matches!(self, Operation::BulkDelete | Operation::List)
    }
}

/// The key in a path-style URI, still percent-encoded; empty for a bucket.
fn key_of(uri: &Uri) -> &str {
    let path = uri.path().trim_start_matches('/');
    path.split_once('/').map_or("", |(_, key)| key)
}

/// A request that was received.
#[derive(Clone, Debug)]
pub struct Received {
    pub operation: Operation,
    /// Percent-encoded; empty for operations on a bucket.
    pub key: String,
    /// Bytes of its body.
    pub bytes: u64,
    /// `<access key id>/<date>/<region>/s3/aws4_request`.
    pub credential: String,
}

/// A running server. It stops when dropped, and its objects are gone.
pub struct S3Server {
    address: SocketAddr,
    root: tempfile::TempDir,
    faults: Faults,
    log: Arc<Mutex<Vec<Received>>>,
    service: Arc<Service>,
    task: JoinHandle<()>,
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl S3Server {
    /// Starts one on a free port of its own.
    pub async fn start() -> S3Server {
        let root = tempfile::tempdir().unwrap();
        let faults = Faults::default();
        let log = Arc::default();
        let mut builder = S3ServiceBuilder::new(FileSystem::new(root.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY_ID, SECRET_ACCESS_KEY));
        builder.set_access(Access(faults.clone()));
        let service = Arc::new(Service {
            s3: builder.build(),
            faults: faults.clone(),
            log: Arc::clone(&log),
            all: RwLock::new(()),
            keys: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = service.clone();
        let task = tokio::spawn(async move {
            // Connections end with it.
            let mut connections = JoinSet::new();
            loop {
                let Ok((socket, _)) = listener.accept().await else {
                    continue;
                };
                connections.spawn(connection(serving.clone(), socket, false));
                while connections.try_join_next().is_some() {}
            }
        });
        S3Server {
            address,
            root,
            faults,
            log,
            service,
            task,
        }
    }

    /// Opens a way in for one client alone, and says how it reaches a bucket, or a prefix in it.
    pub async fn door(&self, place: &str) -> (Destination, Door) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (close, mut closing) = oneshot::channel::<()>();
        let service = self.service.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        if let Ok((socket, _)) = accepted {
                            connections.spawn(connection(service.clone(), socket, true));
                        }
                    }
                    _ = &mut closing => break,
                }
            }
            // Those that have come and were not let in yet.
            let listener = listener.into_std().unwrap();
            while let Ok((socket, _)) = listener.accept() {
                socket.set_nonblocking(true).unwrap();
                let socket = TcpStream::from_std(socket).unwrap();
                connections.spawn(connection(service.clone(), socket, true));
            }
            while connections.join_next().await.is_some() {}
        });
        let bucket = place.split('/').next().unwrap();
        let options = DestinationOptions {
            aws_endpoint_url: Some(format!("http://{address}")),
            ..self.options(bucket)
        };
        let destination = Destination::open(&format!("s3://{place}"), &options).unwrap();
        (destination, Door { close, task })
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes a bucket, if need be.
    pub fn bucket(&self, name: &str) -> PathBuf {
        let dir = self.root.path().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// Makes a bucket, if need be, and says how to reach it.
    pub fn options(&self, bucket: &str) -> DestinationOptions {
        self.bucket(bucket);
        DestinationOptions {
            aws_access_key_id: Some(ACCESS_KEY_ID.to_owned()),
            aws_secret_access_key: Some(SECRET_ACCESS_KEY.to_owned()),
            aws_endpoint_url: Some(self.endpoint()),
            aws_allow_http: Some(true),
            environment: Environment::empty(),
            ..DestinationOptions::default()
        }
    }

    /// A bucket, made if need be, or a prefix in it: `bucket/prefix`.
    pub fn destination(&self, place: &str) -> Destination {
        let bucket = place.split('/').next().unwrap();
        Destination::open(&format!("s3://{place}"), &self.options(bucket)).unwrap()
    }

    /// Where an object's content is on disk, for reading and for damaging it behind the server's back.
    pub fn file(&self, bucket: &str, key: &str) -> PathBuf {
        self.root.path().join(bucket).join(key)
    }

    /// The directory of all buckets.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// What is to go wrong.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// What was asked since the start or the last [`forget`](S3Server::forget), failed requests included.
    pub fn log(&self) -> Vec<Received> {
        self.log.lock().unwrap().clone()
    }

    /// Begins to count anew.
    pub fn forget(&self) {
        self.log.lock().unwrap().clear();
    }

    /// Requests of one operation.
    pub fn requests(&self, operation: Operation) -> usize {
        let log = self.log.lock().unwrap();
        log.iter().filter(|r| r.operation == operation).count()
    }

    /// All requests.
    pub fn total(&self) -> usize {
        self.log.lock().unwrap().len()
    }

    /// Bytes of the bodies of puts and parts.
    pub fn uploaded(&self) -> u64 {
        let uploads = [Operation::Put, Operation::UploadPart];
        let log = self.log.lock().unwrap();
        log.iter()
            .filter(|r| uploads.contains(&r.operation))
            .map(|r| r.bytes)
            .sum()
    }

    /// Uploads in parts that were begun and neither completed nor aborted.
    pub fn unfinished_uploads(&self) -> usize {
        let entries = std::fs::read_dir(self.root.path()).unwrap();
        entries
            .filter(|entry| {
                let name = entry.as_ref().unwrap().file_name();
                let name = name.to_str().unwrap();
                name.starts_with(".upload-") && name.ends_with(".json")
            })
            .count()
    }
}

/// A way in for one client. What comes through it is done, also when the client has gone meanwhile.
pub struct Door {
    close: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Door {
    /// Waits until everything is done that came in. The client must be gone, with its connections.
    pub async fn close(self) {
        let _ = self.close.send(());
        let closed = tokio::time::timeout(Duration::from_secs(60), self.task).await;
        closed.expect("what came in is done").unwrap();
    }
}

/// Serves a connection; if need be to the end of a request whose client has gone.
async fn connection(service: Arc<Service>, socket: TcpStream, to_the_end: bool) {
    // Head and body of an answer are two writes: the second must not wait for an ACK.
    let _ = socket.set_nodelay(true);
    let serve = service_fn(move |request| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(service.serve(request).await) }
    });
    let mut connection = hyper::server::conn::http1::Builder::new();
    connection.half_close(to_the_end);
    // Broken off by a client, or on purpose.
    let _ = connection
        .serve_connection(TokioIo::new(socket), serve)
        .await;
}

struct Service {
    s3: S3Service,
    faults: Faults,
    log: Arc<Mutex<Vec<Received>>>,
    all: RwLock<()>,
    keys: Mutex<HashMap<String, Weak<RwLock<()>>>>,
}

impl Service {
    async fn serve(&self, request: Request<Incoming>) -> HttpResponse {
        let (head, body) = request.into_parts();
        let operation = Operation::of(&head.method, &head.uri);
        let key = key_of(&head.uri).to_owned();
        let bytes = match Body::from(body).store_all_limited(LARGEST).await {
            Ok(bytes) => bytes,
            Err(error) => return super::faults::answer(400, "IncompleteBody", &error.to_string()),
        };
        let received = Received {
            operation,
            key,
            bytes: bytes.len() as u64,
            credential: credential(&head.headers),
        };
        self.log.lock().unwrap().push(received.clone());
        let if_match = head.headers.get("if-match").cloned();
        let request = Request::from_parts(head, Body::from(bytes));
        let apply = self.apply(operation, request);
        self.faults.around(&received, if_match, apply).await
    }

    async fn apply(&self, operation: Operation, request: Request<Body>) -> HttpResponse {
        let path = request.uri().path().to_owned();
        let conditions = operation.reads_key().then(|| request.headers().clone());
        let call = async || match self.s3.call(request).await {
            Ok(response) => conditional(response, conditions),
            Err(error) => super::faults::answer(500, "InternalError", &format!("{error:?}")),
        };
        if operation.concerns_all() {
            let _all = self.all.write().await;
            return call().await;
        }
        let _all = self.all.read().await;
        let lock = self.lock(path);
        if operation.changes_key() {
            let _key = lock.write().await;
            call().await
        } else {
            let _key = lock.read().await;
            call().await
        }
    }

    fn lock(&self, path: String) -> Arc<RwLock<()>> {
        let mut keys = self.keys.lock().unwrap();
        if keys.len() > 10_000 {
            keys.retain(|_, lock| lock.strong_count() > 0);
        }
        let entry = keys.entry(path).or_default();
        entry.upgrade().unwrap_or_else(|| {
            let lock = Arc::default();
            *entry = Arc::downgrade(&lock);
            lock
        })
    }
}

/// The answer to a read whose conditions `s3s-fs` does not know.
fn conditional(response: HttpResponse, conditions: Option<http::HeaderMap>) -> HttpResponse {
    let (Some(conditions), Some(etag)) = (conditions, response.headers().get("etag")) else {
        return response;
    };
    if conditions
        .get("if-match")
        .is_some_and(|wanted| wanted != etag)
    {
        return super::faults::answer(412, "PreconditionFailed", "the ETag is another");
    }
    if conditions.get("if-none-match") == Some(etag) {
        let mut response = HttpResponse::new(Body::empty());
        *response.status_mut() = http::StatusCode::NOT_MODIFIED;
        return response;
    }
    response
}

fn credential(headers: &http::HeaderMap) -> String {
    let text = headers.get("authorization").and_then(|v| v.to_str().ok());
    let after = text.and_then(|text| text.split_once("Credential="));
    let credential = after.and_then(|(_, rest)| rest.split(',').next());
    credential.unwrap_or_default().to_owned()
}
