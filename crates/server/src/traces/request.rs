//! The layer around requests.
//!
//! A request is a span of the kind *server*, named by its method and route, a child of the span that a
//! `traceparent` header names. Its children are what a command of it passed: `admission` (from the beginning
//! of the request until it had its part of the budgets), `log` (until it was durable and committed) and
//! `apply` (until it was applied and answered). In a cluster, a request that another node answers is a span of that
//! node, too, below the one of the node that forwards it. The span ends with the head of the answer: a session is as
//! long as its beginning.

use std::time::SystemTime;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use esker_node::{Stage, Stages};
use http::{HeaderMap, HeaderValue};
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{
    Span as _, SpanContext, SpanKind, Status, TraceContextExt as _, Tracer as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;

use super::Traces;

/// Makes the spans of a request, if it is sampled. If the node `forwards` requests, this one has the span as its parent
/// from then on, also if it is not sampled: the node that answers it neither begins another trace nor samples by itself.
pub(crate) async fn trace(
    State((traces, forwards)): State<(Traces, bool)>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(running) = traces.running() else {
        return next.run(request).await;
    };
    let tracer = &running.tracer;
    let parent = TraceContextPropagator::new()
        .extract_with_context(&Context::new(), &Headers(request.headers()));
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map_or("none", MatchedPath::as_str).to_owned();
    // Only methods of HTTP itself: clients can invent others.
    let method = match request.method().as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS") => {
            known.to_owned()
        }
        _ => "_OTHER".to_owned(),
    };
    let begun = SystemTime::now();
    let mut span = tracer
        .span_builder(format!("{method} {route}"))
        .with_kind(SpanKind::Server)
        .with_start_time(begun)
        .start_with_context(tracer, &parent);
    if forwards && let Some(parent) = traceparent(span.span_context()) {
        request.headers_mut().insert(TRACEPARENT, parent);
    }
    if !span.is_recording() {
        return next.run(request).await;
    }
    span.set_attribute(KeyValue::new("http.request.method", method));
    span.set_attribute(KeyValue::new("http.route", route));
    let version = match request.version() {
        http::Version::HTTP_2 => "2",
        http::Version::HTTP_11 => "1.1",
        _ => "1.0",
    };
    span.set_attribute(KeyValue::new("network.protocol.version", version));
    // If the client disconnects, the span is dropped, and ends, without a status.
    let stages = Stages::default();
    let response = stages.watch(next.run(request)).await;
    let status = response.status();
    span.set_attribute(KeyValue::new(
        "http.response.status_code",
        i64::from(status.as_u16()),
    ));
    if let Some(code) = response
        .headers()
        .get("grpc-status")
        .and_then(|code| code.to_str().ok())
    {
        span.set_attribute(KeyValue::new("rpc.grpc.status_code", code.to_owned()));
    }
    if status.is_server_error() {
        span.set_status(Status::error(""));
    }
    let within = Context::new().with_remote_span_context(span.span_context().clone());
    for (name, from, to) in [
        ("admission", Some(begun), stages.time_of(Stage::Admitted)),
        (
            "log",
            stages.time_of(Stage::Proposed),
            stages.time_of(Stage::Committed),
        ),
        (
            "apply",
            stages.time_of(Stage::Committed),
            stages.time_of(Stage::Applied),
        ),
    ] {
        if let (Some(from), Some(to)) = (from, to) {
            // The clock may have been set back meanwhile.
            tracer
                .span_builder(name)
                .with_start_time(from)
                .start_with_context(tracer, &within)
                .end_with_timestamp(to.max(from));
        }
    }
    span.end();
    response
}

/// The header with the parent. `tracestate`, which the format allows beside it, is of any length and is left
/// out: a span has to be small.
struct Headers<'a>(&'a HeaderMap);

const TRACEPARENT: &str = "traceparent";

/// The header that names a span as the parent; `None` if it is none.
fn traceparent(of: &SpanContext) -> Option<HeaderValue> {
    let (trace, span, flags) = (of.trace_id(), of.span_id(), of.trace_flags().to_u8());
    let value = format!("00-{trace}-{span}-{flags:02x}");
    let value = HeaderValue::try_from(value).ok();
    value.filter(|_| of.is_valid())
}

impl Extractor for Headers<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        match name {
            TRACEPARENT => self.0.get(name)?.to_str().ok(),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT]
    }
}
