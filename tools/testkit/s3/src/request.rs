//! The operation, the key and the credential of a request to an S3 server.

use http::{HeaderMap, Method, Uri};

/// The operation of a request.
#[allow(missing_docs, reason = "the names are S3's")]
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
    pub(crate) fn of(method: &Method, uri: &Uri) -> Operation {
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
}

/// The key in a path-style URI, still percent-encoded; empty for a bucket.
pub(crate) fn key_of(uri: &Uri) -> &str {
    let path = uri.path().trim_start_matches('/');
    path.split_once('/').map_or("", |(_, key)| key)
}

/// A request that was received.
#[derive(Clone, Debug)]
pub struct Received {
    /// The operation.
    pub operation: Operation,
    /// The key, percent-encoded; empty for operations on a bucket.
    pub key: String,
    /// Bytes of its body.
    pub bytes: u64,
    /// `<access key id>/<date>/<region>/s3/aws4_request`.
    pub credential: String,
}

/// The credential that a request was signed with; empty if it was not signed.
pub(crate) fn credential(headers: &HeaderMap) -> String {
    let text = headers.get("authorization").and_then(|v| v.to_str().ok());
    let after = text.and_then(|text| text.split_once("Credential="));
    let credential = after.and_then(|(_, rest)| rest.split(',').next());
    credential.unwrap_or_default().to_owned()
}
