//! The interface between a server and a store.

use bytes::Bytes;
use http::Request;
use s3s::HttpResponse;

use crate::request::Operation;

/// A store of objects.
pub trait Store: Send + Sync + 'static {
    /// Executes a request.
    fn apply(
        &self,
        operation: Operation,
        request: Request<Bytes>,
    ) -> impl Future<Output = HttpResponse> + Send;
}
