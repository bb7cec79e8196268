//! The node, the routes, and how a request gets there.
//!
//! There is no network: a request is handed to the routes as the listener would do it, its body
//! arriving in whatever pieces the case wants.

use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use esker_node::{Node, NodeOptions, StoreOptions};
use esker_server::api::{self, AppParts, Limits};
use esker_server::config::Config;
use esker_server::{identification, telemetry};
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::BodyExt as _;
use tempfile::TempDir;
use tower::ServiceExt as _;

use crate::wire;

const MIB: u64 = 1024 * 1024;

/// An answer takes this long at most. It is far more than any needs: a busy machine must not look
/// like a fault.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// The root token. A request without a token is sent with it.
pub const ROOT_TOKEN: &str = "fuzz-0123456789abcdef0123456789abcdef";

/// Most bytes of a request's body, decompressed: the default.
pub const REQUEST_BODY: usize = 4 * MIB as usize;

/// The default, but for the bytes in flight of an append session: the smallest that the configuration
/// takes, so that sessions wait for it.
fn limits() -> Limits {
    let mut limits = Limits::new(&Config::default().limits);
    limits.request_body = REQUEST_BODY;
    limits.append_session_inflight = 2 * MIB as usize;
    limits
}

/// A running node with its routes.
pub struct World {
    node: Node,
    router: Router,
    directory: TempDir,
}

impl World {
    /// Starts a new node.
    pub async fn start() -> World {
        World::open(tempfile::tempdir().unwrap()).await
    }

    /// Stops the node and starts another on what it left.
    pub async fn restart(self) -> World {
        self.node.stop(WAIT_TIMEOUT).await;
        let World {
            node,
            router,
            directory,
        } = self;
        drop((node, router));
        World::open(directory).await
    }

    /// Stops the node.
    pub async fn stop(self) {
        self.node.stop(WAIT_TIMEOUT).await;
    }

    async fn open(directory: TempDir) -> World {
        let node = Node::start(options(directory.path())).await.unwrap();
        let location = "fuzz:local".parse().unwrap();
        let app = AppParts::new(node.clone(), telemetry::metrics(), limits(), location);
        let router = identification::with_root_token(api::router(app.into()), &node, ROOT_TOKEN);
        World {
            node,
            router,
            directory,
        }
    }

    /// The answer's head, and its body as it comes.
    pub async fn open_request(&self, mut request: Request<Body>) -> Response<Body> {
        let headers = request.headers_mut();
        headers
            .entry(header::AUTHORIZATION)
            .or_insert_with(|| HeaderValue::try_from(format!("Bearer {ROOT_TOKEN}")).unwrap());
        let what = format!("{} {}", request.method(), request.uri());
        let answer = tokio::time::timeout(WAIT_TIMEOUT, self.router.clone().oneshot(request)).await;
        match answer {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            Err(_) => panic!("{what}: no answer within {WAIT_TIMEOUT:?}"),
        }
    }

    /// The whole answer.
    pub async fn send(&self, request: Request<Body>) -> Answer {
        let what = format!("{} {}", request.method(), request.uri());
        let (parts, body) = self.open_request(request).await.into_parts();
        let body = match tokio::time::timeout(WAIT_TIMEOUT, body.collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => panic!("{what}: the answer broke off: {error}"),
            Err(_) => panic!("{what}: the answer did not end within {WAIT_TIMEOUT:?}"),
        };
        let coding = parts.headers.get("content-encoding");
        let body = match coding.map(|c| c.to_str().unwrap().to_owned()) {
            Some(coding) => wire::decompress(&coding, &body).await.unwrap().into(),
            None => body,
        };
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
        }
    }

    /// The bytes that the node keeps on its disk.
    pub fn disk(&self) -> u64 {
        fn size(path: &Path) -> u64 {
            // Files go away while one looks.
            let Ok(entries) = std::fs::read_dir(path) else {
                return 0;
            };
            let of = |entry: std::fs::DirEntry| match entry.metadata() {
                Ok(meta) if meta.is_dir() => size(&entry.path()),
                Ok(meta) => meta.len(),
                Err(_) => 0,
            };
            entries.flatten().map(of).sum()
        }
        size(self.directory.path())
    }
}

/// Few partitions and small buffers: what fills up, spills or wraps must do so within seconds.
fn options(directory: &Path) -> NodeOptions {
    NodeOptions {
        partitions: 3,
        log_segment_size: MIB,
        log_purge_threshold: 4 * MIB,
        flush_after: 2 * MIB,
        store: StoreOptions {
            block_cache: 4 * MIB as usize,
            write_buffer: 4 * MIB as usize,
            write_buffers_total: 16 * MIB as usize,
            max_open_files: 64,
            background_jobs: 1,
            ..StoreOptions::default()
        },
        append_inflight: 4 * MIB as usize,
        follower_buffer: 64 * 1024,
        follower_buffers_total: 256 * 1024,
        retention_interval: Duration::from_millis(100),
        compact_garbage: 8 * MIB,
        ..NodeOptions::new(directory)
    }
}

/// An answer, decompressed.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        match serde_json::from_slice(&self.body) {
            Ok(json) => json,
            Err(error) => panic!("{}: not JSON: {error}: {:?}", self.status, self.body),
        }
    }

    /// The error that it is.
    #[track_caller]
    pub fn fault(&self) -> wire::Fault {
        wire::Fault::new(self.status, std::str::from_utf8(&self.body).unwrap_or("?"))
    }
}
