//! The layer around every call.
//!
//! A call is counted when it has ended, which for streams is the end of the stream. A call that the
//! client ended first counts as `CANCELLED`.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use esker_node::Client;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tonic::{Code, Status};

use super::status::{no_access, refused, too_large};
use crate::answers::{Answers, AtStall, EndFrame, Exhausted, Scanned};
use crate::auth::operation::Effect;
use crate::auth::rules::Rule;
use crate::auth::{Access, AccessError, error};
use crate::client::client;

/// The beginning of the message of `tonic` for a request that is too large. Its code means something
/// else.
const TOO_LARGE: &str = "Error, decoded message length too large";

/// Counts the call, corrects the code of a request that is too large, and holds the answer to a read as
/// bytes. What changes nothing is not answered once the token of its sender has been revoked or has expired, however
/// long it waits for its turn.
pub(super) async fn watched(
    State(answers): State<Answers>,
    request: Request,
    next: Next,
) -> Response {
    let is_read = READS.contains(&request.uri().path());
    let client = client(request.extensions());
    let mut call = Call::of(request.uri().path());
    let lease = Access::of(request.extensions()).ok().map(|it| it.lease());
    let changes_nothing = Rule::of_call(request.uri().path()) == Some(Rule::State(Effect::Read));
    let answer = async {
        let response = next.run(request).await;
        let response = match refusal(response.headers()) {
            Some(refusal) => refusal.into_http(),
            None => response,
        };
        match is_read && code(response.headers()).is_none() {
            true => held(response, &answers, client).await,
            false => response,
        }
    };
    let answered = match &lease {
        Some(lease) if changes_nothing => lease.while_valid(answer).await,
        _ => Ok(answer.await),
    };
    let mut response = answered.unwrap_or_else(|refusal| {
        error::count_refusal(&refusal);
        no_access(&refusal).into_http()
    });
    // An answer without a body has its status in its head.
    if let Some(code) = code(response.headers()) {
        call.end(code);
        return response;
    }
    let stalled = AtStall::End(EndFrame::Trailers(trailers(refused(Exhausted::Stalled))));
    response.extensions_mut().insert(stalled);
    let ended = lease.map(|lease| {
        // Without a token that could end, nothing is asked.
        async move { lease.ended().await }.boxed()
    });
    response.map(|body| Body::new(Counted { body, call, ended }))
}

/// The answer as bytes. The tree of messages is dropped.
async fn held(mut response: Response, answers: &Answers, client: Client) -> Response {
    let scanned = response.extensions_mut().remove::<Scanned>();
    let (head, body) = response.into_parts();
    let Ok(body) = body.collect().await else {
        return Status::internal("the answer could not be encoded").into_http();
    };
    let trailers = body.trailers().cloned();
    let bytes = body.to_bytes();
    let memory = scanned.and_then(|scanned| scanned.end(bytes.len()));
    let permit = match memory {
        Some(memory) => Ok(memory),
        None => answers.hold(client, bytes.len()),
    };
    match permit {
        Ok(permit) => Response::from_parts(head, answers.body(bytes, trailers, permit)),
        Err(error) => refused(error).into_http(),
    }
}

/// A status as trailers after messages.
fn trailers(status: Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // If the message cannot be a header, only the code is sent.
    if status.add_header(&mut trailers).is_err() {
        trailers.insert(Status::GRPC_STATUS, (status.code() as i32).into());
    }
    trailers
}

fn code(headers: &HeaderMap) -> Option<Code> {
    let code = headers.get(Status::GRPC_STATUS)?;
    Some(Code::from_bytes(code.as_bytes()))
}

fn refusal(headers: &HeaderMap) -> Option<Status> {
    if code(headers)? != Code::OutOfRange {
        return None;
    }
    let refused = Status::from_header_map(headers)?;
    refused.message().starts_with(TOO_LARGE).then(too_large)
}

/// A call that has not been counted yet.
struct Call {
    method: &'static str,
    begun: Instant,
    counted: bool,
}

impl Call {
    /// Only what the protocol files name becomes a label: the number of labels is bounded.
    fn of(path: &str) -> Call {
        let known = METHODS.iter().find(|known| **known == path);
        Call {
            method: known.map_or("none", |path| &path[1..]),
            begun: Instant::now(),
            counted: false,
        }
    }

    fn end(&mut self, code: Code) {
        if std::mem::replace(&mut self.counted, true) {
            return;
        }
        count(self.method, code, 1);
        metrics::histogram!("esker_state_request_seconds", "method" => self.method)
            .record(self.begun.elapsed().as_secs_f64());
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// A body that reports its end.
struct Counted {
    body: Body,
    call: Call,
    /// Is done when the token has been revoked or has expired; none once the end has been sent.
    ended: Option<BoxFuture<'static, AccessError>>,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Some(ended) = &mut self.ended
            && let Poll::Ready(error) = ended.as_mut().poll(context)
        {
            let status = no_access(&error);
            self.ended = None;
            self.body = Body::empty();
            self.call.end(status.code());
            return Poll::Ready(Some(Ok(Frame::trailers(trailers(status)))));
        }
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(code) = frame.trailers_ref().and_then(code) {
                    self.call.end(code);
                }
            }
            Poll::Ready(Some(Err(_))) => self.call.end(Code::Unknown),
            Poll::Ready(None) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn count(method: &'static str, code: Code, calls: u64) {
    metrics::counter!("esker_state_requests_total", "method" => method, "code" => name(code))
        .increment(calls);
}

/// Codes that the service answers, or that a call ends with.
const ANSWERED: [Code; 14] = [
    Code::Ok,
    Code::Cancelled,
    Code::Unknown,
    Code::InvalidArgument,
    Code::DeadlineExceeded,
    Code::NotFound,
    Code::PermissionDenied,
    Code::ResourceExhausted,
    Code::FailedPrecondition,
    Code::Aborted,
    Code::OutOfRange,
    Code::Internal,
    Code::Unavailable,
    Code::Unauthenticated,
];

/// Registers all series, so that an alert on an increase sees the first failure.
pub(crate) fn register() {
    for method in METHODS {
        for code in ANSWERED {
            count(&method[1..], code, 0);
        }
    }
}

/// The code's name in the protocol.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Paths of all methods.
pub(crate) const METHODS: &[&str] = &[
    "/statehouse.v1.StatehouseService/Health",
    "/statehouse.v1.StatehouseService/Version",
    "/statehouse.v1.StatehouseService/BeginTransaction",
    "/statehouse.v1.StatehouseService/Write",
    "/statehouse.v1.StatehouseService/Delete",
    "/statehouse.v1.StatehouseService/Commit",
    "/statehouse.v1.StatehouseService/Abort",
    "/statehouse.v1.StatehouseService/GetState",
    "/statehouse.v1.StatehouseService/GetStateAtVersion",
    "/statehouse.v1.StatehouseService/ListKeys",
    "/statehouse.v1.StatehouseService/ScanPrefix",
    "/statehouse.v1.StatehouseService/Replay",
    "/esker.state.v1.StateService/BeginTransaction",
    "/esker.state.v1.StateService/Write",
    "/esker.state.v1.StateService/Delete",
    "/esker.state.v1.StateService/Commit",
    "/esker.state.v1.StateService/Abort",
    "/esker.state.v1.StateService/GetState",
    "/esker.state.v1.StateService/GetStateAt",
    "/esker.state.v1.StateService/Scan",
    "/esker.state.v1.StateService/Replay",
    "/esker.state.v1.StateService/Watch",
    "/esker.state.v1.StateService/Snapshot",
    "/esker.state.v1.StateService/ListSnapshots",
    "/esker.state.v1.StateService/Export",
    "/esker.state.v1.StateService/Import",
    "/esker.state.v1.StateService/Verify",
    "/esker.state.v1.StateService/Status",
];

/// Methods that read and answer once. The others write, and their answers are small and never refused, or
/// they stream.
const READS: &[&str] = &[
    "/statehouse.v1.StatehouseService/GetState",
    "/statehouse.v1.StatehouseService/GetStateAtVersion",
    "/statehouse.v1.StatehouseService/ListKeys",
    "/statehouse.v1.StatehouseService/ScanPrefix",
    "/esker.state.v1.StateService/GetState",
    "/esker.state.v1.StateService/GetStateAt",
    "/esker.state.v1.StateService/ListSnapshots",
];

#[cfg(test)]
mod tests {
    use esker_proto::{DESCRIPTORS, FileDescriptorSet};
    use prost::Message as _;

    use super::*;

    #[test]
    fn every_method_of_the_protocol_files_is_counted_under_its_name() {
        let files = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
        let mut found = Vec::new();
        for file in &files.file {
            for service in &file.service {
                for method in &service.method {
                    found.push(format!(
                        "/{}.{}/{}",
                        file.package(),
                        service.name(),
                        method.name()
                    ));
                }
            }
        }
        let mut listed: Vec<_> = METHODS.iter().map(|it| it.to_string()).collect();
        listed.sort();
        found.sort();
        assert_eq!(listed, found);
    }

    #[test]
    fn a_request_that_is_too_large_is_refused_with_the_code_for_it() {
        let theirs = Status::out_of_range(format!("{TOO_LARGE}: found 5 bytes"));
        let refusal = refusal(theirs.into_http::<Body>().headers()).expect("a refusal");
        assert_eq!(refusal.code(), Code::ResourceExhausted);
        assert!(refusal.message().contains("4 MiB"), "{refusal:?}");

        let another = Status::out_of_range("history begins at commit_ts 7");
        assert!(super::refusal(another.into_http::<Body>().headers()).is_none());
    }
}
