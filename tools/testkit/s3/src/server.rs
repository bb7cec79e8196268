//! An S3 server in this process, on a port of the loopback interface.
//!
//! The body of a request is read before the request is executed, so that a slow client blocks no other. The
//! server counts requests, and a test can make it fail: see [`crate::faults`].

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use s3s::{Body, HttpResponse};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

use crate::faults::{Broken, Fault, Faults, Matching, answer};
use crate::files::Files;
use crate::objects::{BUCKET, Objects, Saved};
use crate::request::{Operation, Received, credential, key_of};
use crate::store::Store;

/// Bytes of a request's body, at most.
const MAX_BODY_BYTES: usize = 512 * 1024 * 1024;

/// Pause after a connection could not be accepted, for instance because no descriptor was free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A running server. It stops when dropped.
pub struct S3Server<S = Files> {
    address: SocketAddr,
    service: Arc<Service<S>>,
    task: JoinHandle<()>,
}

impl<S> Drop for S3Server<S> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl S3Server<Files> {
    /// Starts a server that checks signatures, with its objects in a temporary directory.
    pub async fn start() -> S3Server {
        let faults = Faults::default();
        S3Server::serve(Files::new(&faults), faults, true)
            .await
            .unwrap()
    }

    /// Creates a bucket if necessary. Returns its directory.
    pub fn bucket(&self, name: &str) -> PathBuf {
        let dir = self.root().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// The file with an object's content, which tests read and damage without the server's knowledge.
    pub fn file(&self, bucket: &str, key: &str) -> PathBuf {
        self.root().join(bucket).join(key)
    }

    /// The directory of all buckets.
    pub fn root(&self) -> &Path {
        self.service.store.root()
    }

    /// Uploads in parts that were begun and neither completed nor aborted.
    pub fn unfinished_uploads(&self) -> usize {
        let entries = std::fs::read_dir(self.root()).unwrap();
        entries
            .filter(|entry| {
                let name = entry.as_ref().unwrap().file_name();
                let name = name.to_str().unwrap();
                name.starts_with(".upload-") && name.ends_with(".json")
            })
            .count()
    }
}

impl S3Server<Objects> {
    /// Starts a server with a single bucket, [`BUCKET`], in memory. Its objects are dated long ago, so that
    /// none is too young to be swept. It checks no signatures.
    pub async fn in_memory() -> S3Server<Objects> {
        S3Server::serve(Objects::in_memory(), Faults::default(), true)
            .await
            .unwrap()
    }

    /// Starts a server for measurements: like [`S3Server::in_memory`], but the bytes of objects are in
    /// `directory` and are synced before a put is answered, and it keeps no log of requests. The list of
    /// objects ends with the server.
    ///
    /// # Errors
    ///
    /// If no port is free.
    pub async fn on_disk(directory: PathBuf) -> std::io::Result<S3Server<Objects>> {
        S3Server::serve(Objects::on_disk(directory), Faults::default(), false).await
    }

    /// The settings of an Esker server that puts its snapshots here, `key=value` each.
    pub fn settings(&self) -> Vec<String> {
        vec![
            format!("snapshots.destination=s3://{BUCKET}/esker"),
            format!("snapshots.aws-endpoint-url={}", self.endpoint()),
            "snapshots.aws-allow-http=true".to_owned(),
            "snapshots.aws-region=us-east-1".to_owned(),
            "snapshots.aws-access-key-id=AKIATEST".to_owned(),
            "snapshots.aws-secret-access-key=secret".to_owned(),
        ]
    }

    /// All keys.
    pub fn keys(&self) -> Vec<String> {
        self.service.store.keys()
    }

    /// An object's content.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.service.store.content(key)
    }

    /// Replaces an object without a request.
    pub fn put(&self, key: &str, content: Vec<u8>) {
        self.service.store.insert(key, content.into());
    }

    /// Removes an object.
    pub fn remove(&self, key: &str) {
        self.service.store.remove(key);
    }

    /// Removes an object when keys that begin with `prefix` are listed next, before the list is made.
    pub fn remove_at_list(&self, prefix: &str, key: &str) {
        self.service.store.remove_at_list(prefix, key);
    }

    /// The content of the object that was removed in that way.
    pub fn removed(&self) -> Option<Vec<u8>> {
        self.service.store.removed()
    }

    /// The present objects.
    pub fn saved(&self) -> Saved {
        self.service.store.saved()
    }

    /// Restores saved objects.
    pub fn back_to(&self, saved: &Saved) {
        self.service.store.back_to(saved);
    }

    /// The number of objects and their bytes.
    pub fn size(&self) -> (usize, u64) {
        self.service.store.size()
    }
}

impl<S: Store> S3Server<S> {
    async fn serve(store: S, faults: Faults, keeps_log: bool) -> std::io::Result<S3Server<S>> {
        let service = Arc::new(Service {
            store,
            faults,
            log: keeps_log.then(Mutex::default),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let serving = service.clone();
        let task = tokio::spawn(async move {
            // Connections end with the server.
            let mut connections = JoinSet::new();
            loop {
                let Ok((socket, _)) = listener.accept().await else {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                };
                connections.spawn(connection(serving.clone(), socket, false));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(S3Server {
            address,
            service,
            task,
        })
    }

    /// Opens a listener for one client alone; its endpoint is `http://127.0.0.1:port`.
    pub async fn door(&self) -> Door {
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
            // Connections that have arrived and were not accepted yet.
            let listener = listener.into_std().unwrap();
            while let Ok((socket, _)) = listener.accept() {
                socket.set_nonblocking(true).unwrap();
                let socket = TcpStream::from_std(socket).unwrap();
                connections.spawn(connection(service.clone(), socket, true));
            }
            while connections.join_next().await.is_some() {}
        });
        Door {
            address,
            close,
            task,
        }
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The control of faults.
    pub fn faults(&self) -> &Faults {
        &self.service.faults
    }

    /// From now on, this fault and no other affects every request.
    pub fn fail(&self, fault: Fault) {
        self.faults().clear();
        self.faults().always(Matching::any(), fault);
    }

    /// Removes all faults.
    pub fn heal(&self) {
        self.faults().clear();
    }

    /// The requests since the start or the last [`forget`](S3Server::forget), failed ones included.
    pub fn log(&self) -> Vec<Received> {
        self.service.log().lock().unwrap().clone()
    }

    /// Clears the log of requests.
    pub fn forget(&self) {
        self.service.log().lock().unwrap().clear();
    }

    /// The number of requests of one operation.
    pub fn requests(&self, operation: Operation) -> usize {
        let log = self.service.log().lock().unwrap();
        log.iter().filter(|r| r.operation == operation).count()
    }

    /// The number of all requests.
    pub fn total(&self) -> usize {
        self.service.log().lock().unwrap().len()
    }

    /// Bytes of the bodies of puts and parts.
    pub fn uploaded(&self) -> u64 {
        let uploads = [Operation::Put, Operation::UploadPart];
        let log = self.service.log().lock().unwrap();
        log.iter()
            .filter(|r| uploads.contains(&r.operation))
            .map(|r| r.bytes)
            .sum()
    }
}

/// A listener for one client. Requests that arrive through it are executed, even if the client has
/// disconnected meanwhile.
pub struct Door {
    address: SocketAddr,
    close: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Door {
    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits until all requests are executed. The client must have closed its connections.
    pub async fn close(self) {
        let _ = self.close.send(());
        let closed = tokio::time::timeout(Duration::from_secs(60), self.task).await;
        closed.expect("what came in is done").unwrap();
    }
}

/// Serves a connection; with `to_the_end`, up to the end of a request whose client has disconnected.
async fn connection<S: Store>(service: Arc<Service<S>>, socket: TcpStream, to_the_end: bool) {
    // Head and body of an answer are two writes, and the second must not wait for an ACK.
    let _ = socket.set_nodelay(true);
    let serve = service_fn(move |request| {
        let service = service.clone();
        async move { service.serve(request).await }
    });
    let mut connection = hyper::server::conn::http1::Builder::new();
    connection.half_close(to_the_end);
    // An error here is a connection that the client or a fault broke off.
    let _ = connection
        .serve_connection(TokioIo::new(socket), serve)
        .await;
}

struct Service<S> {
    store: S,
    faults: Faults,
    log: Option<Mutex<Vec<Received>>>,
}

impl<S: Store> Service<S> {
    fn log(&self) -> &Mutex<Vec<Received>> {
        self.log.as_ref().expect("this server keeps no log")
    }

    async fn serve(&self, request: Request<Incoming>) -> Result<HttpResponse, Broken> {
        let (head, body) = request.into_parts();
        let operation = Operation::of(&head.method, &head.uri);
        let key = key_of(&head.uri).to_owned();
        let bytes = match Body::from(body).store_all_limited(MAX_BODY_BYTES).await {
            Ok(bytes) => bytes,
            Err(error) => return Ok(answer(400, "IncompleteBody", &error.to_string())),
        };
        let received = Received {
            operation,
            key,
            bytes: bytes.len() as u64,
            credential: credential(&head.headers),
        };
        if let Some(log) = &self.log {
            log.lock().unwrap().push(received.clone());
        }
        let if_match = head.headers.get("if-match").cloned();
        let request = Request::from_parts(head, bytes);
        let apply = self.store.apply(operation, request);
        self.faults.around(&received, if_match, apply).await
    }
}
