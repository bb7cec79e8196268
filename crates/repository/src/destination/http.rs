//! Sends requests to S3 for `object_store`, with deadlines that progress extends.
//!
//! The client of `object_store` limits the time from the beginning of a request to its answer, so a body
//! that takes longer than that can never be sent. Here a body is sent in pieces, and each piece counts as
//! progress; see [`crate::watchdog`].

// Only real sockets are used here, and their silence is measured by the real clock. A simulation provides a
// store of its own, which sends no requests.
#![allow(clippy::disallowed_methods)]

use std::error::Error as StdError;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
    HttpResponse, HttpResponseBody, HttpService,
};
use tokio::time::{Instant, Sleep};

use super::send_rate::{Schedule, SendRate};
use crate::env::System;
use crate::watchdog::{Ticks, within_ticks};

/// Bytes of a body that are passed on at a time; small enough that a slow network takes one piece within a
/// few seconds.
const PIECE: usize = 64 * 1024;

/// Time limit for opening a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Creates HTTP clients.
#[derive(Debug)]
pub(super) struct Connector {
    /// Time without progress after which a request fails.
    pub silence: Duration,
    /// Whether requests may be sent without TLS.
    pub allow_http: bool,
    /// How fast bodies are sent.
    pub send_rate: SendRate,
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        // The settings of `object_store`'s own client that matter here.
        let client = reqwest::Client::builder()
            .user_agent(concat!("esker/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .http1_only()
            .https_only(!self.allow_http)
            .build();
        let client = client.map_err(|source| object_store::Error::Generic {
            store: "S3",
            source: source.into(),
        })?;
        Ok(HttpClient::new(Service {
            client,
            silence: self.silence,
            send_rate: self.send_rate.clone(),
        }))
    }
}

#[derive(Debug)]
struct Service {
    client: reqwest::Client,
    silence: Duration,
    send_rate: SendRate,
}

#[derive(Debug, thiserror::Error)]
#[error("nothing was taken or sent for {} s", .0.as_secs_f64())]
struct Silent(Duration);

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let url = parts.uri.to_string().parse();
        let url = url.map_err(|e| HttpError::new::<url::ParseError>(HttpErrorKind::Request, e))?;
        let mut request = reqwest::Request::new(parts.method, url);
        *request.headers_mut() = parts.headers;
        let ticks = Ticks::of_task();
        if body.content_length() > 0 {
            *request.body_mut() = Some(reqwest::Body::wrap(Pieces {
                body,
                left: Bytes::new(),
                ticks: ticks.clone(),
                schedule: Schedule::new(self.send_rate.clone()),
                began: Instant::now(),
                pause: None,
            }));
        }
        let sent = self.client.execute(request);
        let Some(response) = within_ticks(&System, self.silence, &ticks, sent).await else {
            return Err(HttpError::new(HttpErrorKind::Timeout, Silent(self.silence)));
        };
        let response: http::Response<reqwest::Body> = response.map_err(failed)?.into();
        let (parts, body) = response.into_parts();
        let body = Timed {
            body,
            silence: self.silence,
            until: Box::pin(tokio::time::sleep(self.silence)),
        };
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)))
    }
}

/// Converts an error, and removes the URL, which may contain a signature.
fn failed(error: reqwest::Error) -> HttpError {
    let kind = if error.is_timeout() {
        HttpErrorKind::Timeout
    } else if error.is_connect() {
        HttpErrorKind::Connect
    } else if error.is_decode() {
        HttpErrorKind::Decode
    } else {
        HttpErrorKind::Interrupted
    };
    HttpError::new(kind, error.without_url())
}

/// A request's body, in pieces.
struct Pieces {
    body: HttpRequestBody,
    left: Bytes,
    ticks: Ticks,
    schedule: Schedule,
    began: Instant,
    /// Until the next piece is due.
    pause: Option<Pin<Box<Sleep>>>,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Box<dyn StdError + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        // The connection polls for the next piece when it has space for it.
        self.ticks.tick();
        let due = self.began + self.schedule.due();
        if self.pause.is_none() && Instant::now() < due {
            self.pause = Some(Box::pin(tokio::time::sleep_until(due)));
        }
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(context));
            self.pause = None;
        }
        while self.left.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                None => {
                    self.ticks.sent();
                    return Poll::Ready(None);
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                Some(Ok(frame)) => self.left = frame.into_data().unwrap_or_default(),
            }
        }
        let piece = PIECE.min(self.left.len());
        let piece = self.left.split_to(piece);
        let now = self.began.elapsed();
        self.schedule.sent(piece.len(), now);
        // If the length is known, the body is not polled again after its last piece.
        if self.size_hint().exact() == Some(0) {
            self.ticks.sent();
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn size_hint(&self) -> SizeHint {
        let below = self.body.size_hint().exact().unwrap_or(0);
        SizeHint::with_exact(below + self.left.len() as u64)
    }
}

/// An answer's body that fails if no byte arrives for too long.
struct Timed {
    body: reqwest::Body,
    silence: Duration,
    until: Pin<Box<Sleep>>,
}

impl Body for Timed {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let this = &mut *self;
        match Pin::new(&mut this.body).poll_frame(context) {
            Poll::Ready(frame) => {
                this.until.as_mut().reset(Instant::now() + this.silence);
                Poll::Ready(frame.map(|frame| frame.map_err(failed)))
            }
            Poll::Pending => {
                ready!(this.until.as_mut().poll(context));
                let silent = HttpError::new(HttpErrorKind::Timeout, Silent(this.silence));
                Poll::Ready(Some(Err(silent)))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
