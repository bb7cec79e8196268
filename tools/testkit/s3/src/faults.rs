//! Faults of an S3 server, under a test's control.
//!
//! A *fault* affects the next requests that match, or all of them; a *lie* is a promise of S3 that the server
//! breaks until the faults are cleared. Faults are at the level of HTTP, so that the client under test is the
//! real one. Lies about conditions and deletes need a server that is started with
//! [`S3Server::start`](crate::S3Server::start).

use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};
use hyper::body::{Frame, SizeHint};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use s3s::access::{S3Access, S3AccessContext};
use s3s::dto::{DeleteObjectsInput, PutObjectInput};
use s3s::{Body, HttpResponse, S3Request, S3Result};
use tokio::sync::oneshot;

use crate::request::{Operation, Received};

/// Longest time that a put waits for the other one of its pair.
const RIVAL_WITHIN: Duration = Duration::from_secs(10);

/// The treatment of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The request is not executed, and this is answered: a status, with a code of S3 that belongs to it.
    Status(u16),
    /// The request is executed, and this is answered.
    AppliedThen(u16),
    /// The request is neither executed nor answered, until the client disconnects.
    Silence,
    /// The request is executed and not answered.
    AppliedThenSilence,
    /// The request is executed, and the connection breaks off after half of the answer's body (or before it,
    /// if it has none).
    BrokenBody,
    /// The request is executed, and the body of the answer ends after its first half, as if it were complete.
    ShortBody,
    /// The request is executed, and the byte in the middle of the answer's body is changed.
    FlippedBit,
    /// The request is executed after this delay.
    Late(Duration),
    /// The request is executed when the test releases it: see [`Faults::held`] and [`Faults::release`].
    Held,
    /// The request is not executed, and the connection breaks off without an answer.
    Disconnect,
    /// At random: a quarter of the requests is not executed, another quarter is executed, and both are
    /// answered with 503; the others succeed.
    Overloaded,
}

/// A promise of S3 that the server breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lie {
    /// Puts with `If-None-Match: *` replace existing objects.
    IgnoresIfNoneMatch,
    /// Puts with `If-Match` replace any version.
    IgnoresIfMatch,
    /// Puts with `If-Match` are refused.
    RefusesIfMatch,
    /// Two concurrent puts with the same `If-Match` both replace. A put with the ETag that an update was
    /// answered with waits for another one: a probe sends those in pairs.
    RacyIfMatch,
    /// Lists lack objects that were written since this began.
    StaleLists,
    /// Reads return what they first returned since this began.
    StaleReads,
    /// Deletes are answered with success and not executed.
    KeepsDeleted,
}

/// A selection of requests.
#[derive(Clone, Debug, Default)]
pub struct Matching {
    operation: Option<Operation>,
    part_of_key: Option<String>,
}

impl Matching {
    /// All requests.
    pub fn any() -> Matching {
        Matching::default()
    }

    /// The requests of one operation.
    pub fn operation(operation: Operation) -> Matching {
        Matching {
            operation: Some(operation),
            part_of_key: None,
        }
    }

    /// Restricts the selection to keys (percent-encoded) that contain `part`.
    pub fn key(mut self, part: &str) -> Matching {
        self.part_of_key = Some(part.to_owned());
        self
    }

    fn matches(&self, received: &Received) -> bool {
        self.operation.is_none_or(|o| o == received.operation)
            && self
                .part_of_key
                .as_ref()
                .is_none_or(|part| received.key.contains(part))
    }
}

/// The control of faults. Clones share their state.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    lies: HashSet<Lie>,
    /// Keys written since lists became stale.
    unlisted: HashSet<String>,
    /// What reads first returned since they became stale.
    first_reads: HashMap<String, (http::response::Parts, Bytes)>,
    /// Conditional puts under way, by key and ETag, and those that met another.
    racing: HashMap<(String, HeaderValue), usize>,
    met: HashSet<(String, String)>,
    /// Keys and ETags that updates were answered with.
    updated: HashSet<(String, HeaderValue)>,
    /// Requests that are held: a drop of the sender releases them.
    held: Vec<oneshot::Sender<()>>,
    /// Parts of keys that bulk deletes refuse, and the keys that the last one refused.
    kept: Vec<String>,
    refused: Vec<String>,
    /// Requests that came while the store was overloaded.
    overloaded: u64,
}

#[derive(Debug)]
struct Rule {
    matching: Matching,
    fault: Fault,
    /// Matching requests that pass before the fault begins.
    spare: usize,
    left: usize,
}

impl Faults {
    /// The fault affects the next `count` matching requests.
    pub fn next(&self, count: usize, matching: Matching, fault: Fault) {
        self.after(0, count, matching, fault);
    }

    /// The fault affects `count` requests after the first `spare` matching ones.
    pub fn after(&self, spare: usize, count: usize, matching: Matching, fault: Fault) {
        self.state().rules.push(Rule {
            matching,
            fault,
            spare,
            left: count,
        });
    }

    /// The fault affects all matching requests from now on.
    pub fn always(&self, matching: Matching, fault: Fault) {
        self.next(usize::MAX, matching, fault);
    }

    /// The server breaks this promise from now on.
    pub fn lie(&self, lie: Lie) {
        self.state().lies.insert(lie);
    }

    /// Bulk deletes succeed as a whole, but refuse the keys that contain this.
    pub fn keep(&self, part_of_key: &str) {
        self.state().kept.push(part_of_key.to_owned());
    }

    /// Removes all faults and lies.
    pub fn clear(&self) {
        *self.state() = State::default();
    }

    /// The number of requests that faults still affect, without unlimited ones.
    pub fn pending(&self) -> usize {
        let state = self.state();
        let rules = state.rules.iter().filter(|rule| rule.left < usize::MAX / 2);
        rules.map(|rule| rule.left).sum()
    }

    /// The number of requests that are held now.
    pub fn held(&self) -> usize {
        let state = self.state();
        let waiting = state.held.iter().filter(|held| !held.is_closed());
        waiting.count()
    }

    /// Releases the held requests.
    pub fn release(&self) {
        self.state().held.clear();
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn lies(&self, lie: Lie) -> bool {
        self.state().lies.contains(&lie)
    }

    /// Decides about a request of an overloaded store: 0 to 3, the same at each run for the same number of requests
    /// before it.
    fn overload(&self) -> u32 {
        let mut state = self.state();
        state.overloaded += 1;
        StdRng::seed_from_u64(state.overloaded).random_range(0..4)
    }

    fn take(&self, received: &Received) -> Option<Fault> {
        let mut state = self.state();
        let rule = state
            .rules
            .iter_mut()
            .filter(|rule| rule.left > 0 && rule.matching.matches(received))
            .find(|rule| rule.spare == 0);
        let taken = rule.map(|rule| {
            rule.left -= 1;
            rule.fault
        });
        for rule in &mut state.rules {
            if rule.matching.matches(received) {
                rule.spare = rule.spare.saturating_sub(1);
            }
        }
        taken
    }

    /// Serves a request with the faults that match it.
    pub(crate) async fn around(
        &self,
        received: &Received,
        if_match: Option<HeaderValue>,
        apply: impl Future<Output = HttpResponse>,
    ) -> Result<HttpResponse, Broken> {
        let apply = self.lying(received, if_match, apply);
        let fault = match self.take(received) {
            Some(Fault::Overloaded) => match self.overload() {
                0 => Some(Fault::Status(503)),
                1 => Some(Fault::AppliedThen(503)),
                _ => None,
            },
            fault => fault,
        };
        Ok(match fault {
            None => apply.await,
            Some(Fault::Disconnect) => return Err(Broken),
            Some(Fault::Status(status)) => answer(status, code(status, received), "on purpose"),
            Some(Fault::AppliedThen(status)) => {
                apply.await;
                answer(
                    status,
                    code(status, received),
                    "on purpose, after it was done",
                )
            }
            Some(Fault::Silence) => std::future::pending().await,
            Some(Fault::AppliedThenSilence) => {
                apply.await;
                std::future::pending().await
            }
            Some(Fault::Late(time)) => {
                tokio::time::sleep(time).await;
                apply.await
            }
            Some(Fault::Held) => {
                let (hold, released) = oneshot::channel();
                self.state().held.push(hold);
                let _ = released.await;
                apply.await
            }
            Some(fault) => damage(apply.await, fault).await,
        })
    }

    async fn lying(
        &self,
        received: &Received,
        if_match: Option<HeaderValue>,
        apply: impl Future<Output = HttpResponse>,
    ) -> HttpResponse {
        use Operation as O;
        match received.operation {
            O::Put if if_match.is_some() && self.lies(Lie::RefusesIfMatch) => {
                answer(412, "PreconditionFailed", "as always")
            }
            O::Put if self.lies(Lie::RacyIfMatch) => match if_match {
                Some(etag) => self.race((received.key.clone(), etag), apply).await,
                None => apply.await,
            },
            O::Put | O::CompleteUpload => {
                if self.lies(Lie::StaleLists) {
                    self.state().unlisted.insert(received.key.clone());
                }
                apply.await
            }
            O::List => {
                let response = apply.await;
                let unlisted = self.state().unlisted.clone();
                if unlisted.is_empty() {
                    return response;
                }
                without_keys(response, &unlisted).await
            }
            O::Get if self.lies(Lie::StaleReads) => {
                let first = self.state().first_reads.get(&received.key).cloned();
                if let Some((head, body)) = first {
                    return Response::from_parts(head, Body::from(body));
                }
                let (head, body) = collect(apply.await).await;
                if head.status.is_success() {
                    let first = (head.clone(), body.clone());
                    self.state().first_reads.insert(received.key.clone(), first);
                }
                Response::from_parts(head, Body::from(body))
            }
            O::Delete if self.lies(Lie::KeepsDeleted) => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::NO_CONTENT;
                response
            }
            O::BulkDelete if self.lies(Lie::KeepsDeleted) => {
                let body = "<DeleteResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
                            <Deleted><Key>some</Key></Deleted></DeleteResult>";
                Response::new(Body::from(body.to_owned()))
            }
            O::BulkDelete => {
                let response = apply.await;
                let refused = std::mem::take(&mut self.state().refused);
                if refused.is_empty() {
                    return response;
                }
                with_refusals(response, &refused).await
            }
            _ => apply.await,
        }
    }

    /// Gives another put time to arrive, and lets both succeed if one does.
    async fn race(
        &self,
        put: (String, HeaderValue),
        apply: impl Future<Output = HttpResponse>,
    ) -> HttpResponse {
        let etag = put.1.to_str().unwrap().trim_matches('"').to_owned();
        let met = (put.0.clone(), etag);
        *self.state().racing.entry(put.clone()).or_default() += 1;
        let began = Instant::now();
        while !self.meets(&put, &met) && began.elapsed() < RIVAL_WITHIN {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let response = apply.await;
        let mut state = self.state();
        *state.racing.get_mut(&put).unwrap() -= 1;
        if response.status().is_success()
            && let Some(etag) = response.headers().get("etag")
        {
            state.updated.insert((put.0, etag.clone()));
        }
        response
    }

    /// Whether a put need not wait for another one: that one is under way, or was, or none is expected.
    fn meets(&self, put: &(String, HeaderValue), met: &(String, String)) -> bool {
        let mut state = self.state();
        if state.racing[put] > 1 {
            state.met.insert(met.clone());
        }
        state.met.contains(met) || !state.updated.contains(put)
    }
}

/// Changes requests after their signature was checked: strips conditions from puts, and keys from bulk
/// deletes.
pub(crate) struct Access(pub(crate) Faults);

#[async_trait::async_trait]
impl S3Access for Access {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        match cx.credentials() {
            Some(_) => Ok(()),
            None => Err(s3s::s3_error!(AccessDenied, "Signature is required")),
        }
    }

    async fn put_object(&self, request: &mut S3Request<PutObjectInput>) -> S3Result<()> {
        let state = self.0.state();
        let input = &mut request.input;
        if state.lies.contains(&Lie::IgnoresIfNoneMatch) {
            input.if_none_match = None;
        }
        let etag = input
            .if_match
            .as_ref()
            .and_then(|condition| condition.as_etag())
            .map(|etag| etag.value().to_owned());
        let both_win = etag.is_some_and(|etag| {
            // Keys of tests with lies need no escapes.
            state.met.contains(&(input.key.clone(), etag))
        });
        if both_win || state.lies.contains(&Lie::IgnoresIfMatch) {
            input.if_match = None;
        }
        Ok(())
    }

    async fn delete_objects(&self, request: &mut S3Request<DeleteObjectsInput>) -> S3Result<()> {
        let mut state = self.0.state();
        let State { kept, refused, .. } = &mut *state;
        request.input.delete.objects.retain(|object| {
            let keep = kept.iter().any(|part| object.key.contains(part));
            if keep {
                refused.push(object.key.clone());
            }
            !keep
        });
        Ok(())
    }
}

/// An answer with an error, in S3's form.
pub(crate) fn answer(status: u16, code: &str, message: &str) -> HttpResponse {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
         <Error><Code>{code}</Code><Message>{message}</Message></Error>"
    );
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    let xml = HeaderValue::from_static("application/xml");
    response.headers_mut().insert("content-type", xml);
    response
}

fn code(status: u16, received: &Received) -> &'static str {
    match status {
        403 => "AccessDenied",
        404 if received.key.is_empty() => "NoSuchBucket",
        404 => "NoSuchKey",
        409 => "ConditionalRequestConflict",
        412 => "PreconditionFailed",
        503 => "SlowDown",
        _ => "InternalError",
    }
}

async fn collect(response: HttpResponse) -> (http::response::Parts, Bytes) {
    let (head, mut body) = response.into_parts();
    let bytes = body.store_all_limited(usize::MAX).await.unwrap();
    (head, bytes)
}

async fn damage(response: HttpResponse, fault: Fault) -> HttpResponse {
    let (mut head, body) = collect(response).await;
    let middle = body.len() / 2;
    let body = match fault {
        Fault::BrokenBody => {
            let length = HeaderValue::from(body.len().max(1));
            head.headers.insert("content-length", length);
            Body::http_body(BrokenBody(
                Some(body.slice(..middle)),
                body.len().max(1) as u64,
            ))
        }
        Fault::ShortBody => {
            head.headers
                .insert("content-length", HeaderValue::from(middle));
            Body::from(body.slice(..middle))
        }
        Fault::FlippedBit => {
            let mut body = body.to_vec();
            if let Some(byte) = body.get_mut(middle) {
                *byte ^= 1;
            }
            Body::from(body)
        }
        _ => Body::from(body),
    };
    Response::from_parts(head, body)
}

/// The error that breaks a connection off.
#[derive(Debug)]
pub(crate) struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("broken off on purpose")
    }
}

impl std::error::Error for Broken {}

/// A body that breaks off after its first bytes.
struct BrokenBody(Option<Bytes>, u64);

impl hyper::body::Body for BrokenBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        Poll::Ready(Some(
            match self.0.take().filter(|bytes| !bytes.is_empty()) {
                Some(bytes) => Ok(Frame::data(bytes)),
                None => Err(std::io::Error::other("broken off on purpose")),
            },
        ))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.1)
    }
}

/// A list without some keys.
async fn without_keys(response: HttpResponse, keys: &HashSet<String>) -> HttpResponse {
    let (mut head, body) = collect(response).await;
    let text = String::from_utf8(body.to_vec()).unwrap();
    let mut pieces = text.split("<Contents>");
    let mut left = pieces.next().unwrap().to_owned();
    for piece in pieces {
        let key = piece
            .split_once("<Key>")
            .and_then(|(_, rest)| rest.split_once("</Key>"))
            .map_or("", |(key, _)| key);
        if keys.contains(key) {
            left.push_str(piece.split_once("</Contents>").map_or("", |(_, rest)| rest));
        } else {
            left.push_str("<Contents>");
            left.push_str(piece);
        }
    }
    head.headers.remove("content-length");
    Response::from_parts(head, Body::from(left))
}

/// The answer to a bulk delete that did not delete all keys.
async fn with_refusals(response: HttpResponse, keys: &[String]) -> HttpResponse {
    let (mut head, body) = collect(response).await;
    let text = String::from_utf8(body.to_vec()).unwrap();
    let mut errors = String::new();
    for key in keys {
        errors.push_str(&format!(
            "<Error><Key>{key}</Key><Code>AccessDenied</Code><Message>on purpose</Message></Error>"
        ));
    }
    let text = if text.contains("</DeleteResult>") {
        text.replace("</DeleteResult>", &format!("{errors}</DeleteResult>"))
    } else {
        format!("<DeleteResult>{errors}</DeleteResult>")
    };
    head.headers.remove("content-length");
    Response::from_parts(head, Body::from(text))
}
