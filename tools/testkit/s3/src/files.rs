//! Objects stored by `s3s-fs` in a temporary directory, one directory per bucket. `s3s`, an independent
//! implementation, checks signatures and the form of requests.
//!
//! `s3s-fs` checks the condition of a put and then writes. To make a conditional put atomic, each request
//! here holds a lock of its key, and bulk deletes and lists hold all locks.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use http::{HeaderMap, Request};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpResponse};
use s3s_fs::FileSystem;
use tokio::sync::RwLock;

use crate::faults::{Access, Faults, answer};
use crate::request::Operation;
use crate::store::Store;

/// The only access key that the server accepts.
pub const ACCESS_KEY_ID: &str = "AKIATESTESTESTESTEST";
/// Its secret.
pub const SECRET_ACCESS_KEY: &str = "very/secret+very/secret+very/secret+very";

/// The store. Its directory is removed when it is dropped.
pub struct Files {
    root: tempfile::TempDir,
    s3: S3Service,
    all: RwLock<()>,
    keys: Mutex<HashMap<String, Weak<RwLock<()>>>>,
}

impl Files {
    pub(crate) fn new(faults: &Faults) -> Files {
        let root = tempfile::tempdir().unwrap();
        let mut builder = S3ServiceBuilder::new(FileSystem::new(root.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY_ID, SECRET_ACCESS_KEY));
        builder.set_access(Access(faults.clone()));
        Files {
            root,
            s3: builder.build(),
            all: RwLock::new(()),
            keys: Mutex::default(),
        }
    }

    pub(crate) fn root(&self) -> &Path {
        self.root.path()
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

impl Store for Files {
    async fn apply(&self, operation: Operation, request: Request<Bytes>) -> HttpResponse {
        use Operation as O;
        let request = request.map(Body::from);
        let path = request.uri().path().to_owned();
        let is_read = matches!(operation, O::Get | O::Head);
        let conditions = is_read.then(|| request.headers().clone());
        let call = async || match self.s3.call(request).await {
            Ok(response) => conditional(response, conditions),
            Err(error) => answer(500, "InternalError", &format!("{error:?}")),
        };
        if matches!(operation, O::BulkDelete | O::List) {
            let _all = self.all.write().await;
            return call().await;
        }
        let _all = self.all.read().await;
        let lock = self.lock(path);
        if matches!(
            operation,
            O::Put | O::Delete | O::CompleteUpload | O::AbortUpload
        ) {
            let _key = lock.write().await;
            call().await
        } else {
            let _key = lock.read().await;
            call().await
        }
    }
}

/// The answer to a read with conditions that `s3s-fs` does not support.
fn conditional(response: HttpResponse, conditions: Option<HeaderMap>) -> HttpResponse {
    let (Some(conditions), Some(etag)) = (conditions, response.headers().get("etag")) else {
        return response;
    };
    if conditions
        .get("if-match")
        .is_some_and(|wanted| wanted != etag)
    {
        return answer(412, "PreconditionFailed", "the ETag is another");
    }
    if conditions.get("if-none-match") == Some(etag) {
        let mut response = HttpResponse::new(Body::empty());
        *response.status_mut() = http::StatusCode::NOT_MODIFIED;
        return response;
    }
    response
}
