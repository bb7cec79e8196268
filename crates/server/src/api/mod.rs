//! The S2 API: routes, and what they share.
//!
//! The routes of the admin API and of the state service are added here, outside the layers of the S2 API.
//!
//! Wire types, extractors and framing are those of the `s2-api` crate. `/health` and `/ping` report
//! whether appends are accepted; `/metrics` is for Prometheus.

mod basins;
mod bodies;
mod body_budget;
mod counted_bodies;
mod counted_operations;
mod drain_body;
mod encoded_batches;
mod error;
mod held_answers;
mod locations;
mod ops;
mod records;
pub(crate) mod series;
mod session_inputs;
mod sessions;
mod streams;
mod usage_metrics;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::routing::{any, get};
use axum::{Router, middleware};
use esker_node::Node;
use metrics_exporter_prometheus::PrometheusHandle;
use s2_common::location::LocationName;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{NotForContentType, Predicate as _, SizeAbove};
use tower_http::decompression::RequestDecompressionLayer;

pub use bodies::Bodies;
pub use error::{CODES, ServiceError};

use crate::answers::Answers;
use crate::config::LimitsConfig;
use crate::traces::{self, Traces};
use crate::usage::Usage;
use encoded_batches::EncodedBatches;

/// Answers with fewer bytes are not compressed: they would hardly shrink.
const COMPRESS_ABOVE: u64 = 1024;

/// Most bytes of the body of a gRPC call: a message and its prefix.
const MAX_MESSAGE: usize = crate::state::MAX_REQUEST + 5;

/// What handlers need.
#[derive(Clone)]
pub struct App {
    /// The node that does the work.
    pub node: Node,
    /// Renders the metrics.
    pub metrics: PrometheusHandle,
    /// Sizes.
    pub limits: Arc<Limits>,
    /// Traces of requests.
    pub traces: Traces,
    /// The one location that this server is.
    pub location: LocationName,
    /// What is used of the S2 API.
    pub usage: Usage,
}

/// Sizes that handlers keep to.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a request's body, decompressed.
    pub request_body: usize,
    /// Bytes in flight of one append session.
    pub append_session_inflight: usize,
    /// What bodies of all requests may hold.
    pub bodies: Bodies,
    /// What answers may hold.
    pub(crate) answers: Answers,
    /// What many followers of a stream get.
    pub(crate) encoded: EncodedBatches,
}

impl Limits {
    /// The limits of a configuration.
    pub fn new(config: &LimitsConfig) -> Limits {
        Limits {
            request_body: config.request_body.as_usize(),
            append_session_inflight: config.append_session_inflight.as_usize(),
            bodies: Bodies::new(
                config.request_bodies.as_usize(),
                config.request_body.as_usize().max(MAX_MESSAGE),
                config.header_timeout.as_duration(),
            ),
            answers: Answers::new(config.stall_timeout.as_duration()),
            encoded: EncodedBatches::default(),
        }
    }
}

impl Limits {
    /// Sets the gauges of what is held now.
    pub(crate) fn publish(&self) {
        metrics::gauge!("esker_request_bodies_bytes").set(self.bodies.held() as f64);
        metrics::gauge!("esker_request_bodies_waiting").set(self.bodies.waiting() as f64);
        self.answers.publish();
    }
}

/// The routes of the state service's own listener: the service and the health check.
pub fn state_router(app: App) -> Router {
    let answers = app.limits.answers.clone();
    Router::new()
        .route("/health", get(ops::health))
        .route("/health/live", get(ops::live))
        .route("/health/ready", get(ops::ready))
        .route("/ping", get(ops::health))
        .merge(crate::state::router(&app.node, &answers).route_layer(
            middleware::from_fn_with_state(app.limits.bodies.clone(), bodies::admit),
        ))
        .route_layer(middleware::from_fn(ops::count))
        .route_layer(middleware::from_fn_with_state(
            app.traces.clone(),
            traces::trace,
        ))
        .fallback(ops::no_route)
        .method_not_allowed_fallback(ops::no_method)
        .with_state(app)
}

/// All routes.
pub fn router(app: App) -> Router {
    let answers = app.limits.answers.clone();
    let compress = SizeAbove::new(COMPRESS_ABOVE)
        .and(NotForContentType::SSE)
        .and(NotForContentType::const_new("s2s/proto"));
    let v1 = Router::new()
        .route("/basins", get(basins::list).post(basins::create))
        .route(
            "/basins/{basin}",
            get(basins::config)
                .put(basins::ensure)
                .patch(basins::reconfigure)
                .delete(basins::delete),
        )
        .route("/streams", get(streams::list).post(streams::create))
        .route(
            "/streams/{stream}",
            get(streams::config)
                .put(streams::ensure)
                .patch(streams::reconfigure)
                .delete(streams::delete),
        )
        .route(
            "/streams/{stream}/records",
            get(records::read).post(records::append),
        )
        .route("/streams/{stream}/records/tail", get(records::check_tail))
        .route("/access-tokens", any(ops::not_implemented))
        .route("/access-tokens/{id}", any(ops::not_implemented))
        .route("/metrics", get(usage_metrics::account))
        .route("/metrics/{basin}", get(usage_metrics::basin))
        .route("/metrics/{basin}/{stream}", get(usage_metrics::stream))
        .route("/locations", get(locations::list))
        .route(
            "/locations/default",
            get(locations::default).put(locations::set_default),
        )
        .route_layer(middleware::from_fn_with_state(
            app.usage.clone(),
            counted_operations::count,
        ))
        .route_layer(middleware::from_fn_with_state(
            answers.clone(),
            held_answers::hold,
        ))
        // The body after decompression is counted, because that is what is held.
        .route_layer(middleware::from_fn_with_state(
            app.limits.bodies.clone(),
            bodies::admit,
        ))
        .route_layer((
            CompressionLayer::new().compress_when(compress),
            RequestDecompressionLayer::new(),
            DefaultBodyLimit::max(app.limits.request_body),
        ))
        .route_layer(middleware::map_response(ops::explain_unsupported))
        .route_layer(middleware::from_fn(drain_body::read_on));
    Router::new()
        .route("/health", get(ops::health))
        .route("/health/live", get(ops::live))
        .route("/health/ready", get(ops::ready))
        .route("/ping", get(ops::health))
        .route("/metrics", get(ops::metrics))
        .nest("/v1", v1)
        .merge(
            crate::admin::router(app.node.clone()).route_layer(middleware::from_fn_with_state(
                app.limits.bodies.clone(),
                bodies::admit,
            )),
        )
        .merge(crate::state::router(&app.node, &answers).route_layer(
            middleware::from_fn_with_state(app.limits.bodies.clone(), bodies::admit),
        ))
        .route_layer(middleware::from_fn(ops::count))
        .route_layer(middleware::from_fn_with_state(
            app.traces.clone(),
            traces::trace,
        ))
        .fallback(ops::no_route)
        .method_not_allowed_fallback(ops::no_method)
        .with_state(app)
}
