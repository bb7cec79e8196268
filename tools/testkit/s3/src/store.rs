//! What a server needs of a store.

use bytes::Bytes;
use http::Request;
use s3s::HttpResponse;

use crate::request::Operation;

/// What keeps the objects.
pub trait Store: Send + Sync + 'static {
    /// Does what a request asks for.
    fn apply(
        &self,
        operation: Operation,
        request: Request<Bytes>,
    ) -> impl Future<Output = HttpResponse> + Send;
}
