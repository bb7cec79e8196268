//! The S2 API: routes, and what they share.
//!
//! The routes of the admin API and of the state service are added here, outside the layers of the S2 API.
//!
//! Wire types, extractors and framing are those of the `s2-api` crate. `/health` and `/ping` report
//! whether appends are accepted; `/metrics` is for Prometheus.

mod access_tokens;
mod append_body;
mod basins;
mod begun_body;
mod bodies;
mod body_budget;
mod coded_bodies;
mod counted_bodies;
mod counted_operations;
mod drain_body;
mod error;
mod held_answers;
mod hidden_prefix;
mod locations;
mod ops;
mod read_frames;
mod records;
mod routes;
pub(crate) mod series;
mod session_inputs;
mod sessions;
mod streams;
mod token_scope;
mod usage_metrics;

use std::ops::Deref;
use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::{Router, middleware};
use esker_node::{Node, StateStore};
use metrics_exporter_prometheus::PrometheusHandle;
use s2_common::location::LocationName;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{NotForContentType, Predicate as _, SizeAbove};

#[cfg(test)]
pub(crate) use append_body::AppendBody;
pub use bodies::Bodies;
pub(crate) use bodies::Kept;
pub(crate) use coded_bodies::Coding;
pub use error::{CODES, ServiceError};

use crate::answers::Answers;
use crate::auth::Guarded;
use crate::config::LimitsConfig;
use crate::forward::{Forwarder, forward};
use crate::identification::{gate, read_while_valid};
use crate::sample_history::History;
use crate::shared_service::ShareLayer;
use crate::state::StateTurns;
use crate::traces::{self, Traces};
use crate::turns::Turns;
use crate::usage::Usage;
use coded_bodies::CodedBodies;

use routes::Method::{Delete, Get, Patch, Post, Put};
use routes::Routes;

/// Answers with fewer bytes are not compressed: they would hardly shrink.
const COMPRESS_ABOVE: u64 = 1024;

/// Most bytes of the body of a gRPC call: a message and its prefix.
const MAX_MESSAGE: usize = crate::state::MAX_REQUEST + 5;

/// What handlers need. It is cloned several times for each request, so that has to be cheap.
#[derive(Clone)]
pub struct App(Arc<AppParts>);

/// What an [`App`] consists of.
pub struct AppParts {
    /// The node that does the work.
    pub(crate) node: Guarded<Node>,
    /// Its state store.
    pub(crate) state: Guarded<StateStore>,
    /// The number of its partitions, with the catalog.
    pub(crate) partitions: u64,
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
    /// Turns of the requests for that.
    pub(crate) readings: Turns,
    /// Lists of streams, in turns.
    pub(crate) lists: Turns,
    /// Turns of what waits for a disk in the state store.
    pub(crate) state_turns: StateTurns,
    /// What the node did lately.
    pub(crate) history: History,
    /// What sends requests to the nodes that answer them; `None` outside of a cluster.
    pub(crate) forwarder: Option<Forwarder>,
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
}

impl Deref for App {
    type Target = AppParts;

    fn deref(&self) -> &AppParts {
        &self.0
    }
}

impl From<AppParts> for App {
    fn from(parts: AppParts) -> App {
        App(Arc::new(parts))
    }
}

impl AppParts {
    /// What handlers need. They reach the node with a permission alone.
    pub fn new(
        node: Node,
        metrics: PrometheusHandle,
        limits: Limits,
        location: LocationName,
    ) -> AppParts {
        let forwarder = Forwarder::of(&node, &limits.bodies);
        AppParts {
            state: Guarded::new(node.state().clone()),
            partitions: u64::from(node.identity().partitions) + 1,
            node: Guarded::new(node),
            metrics,
            limits: Arc::new(limits),
            traces: Traces::default(),
            location,
            usage: Usage::default(),
            readings: Turns::of_metrics(),
            lists: Turns::of_lists(),
            state_turns: StateTurns::default(),
            history: History::default(),
            forwarder,
        }
    }
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
    let state = crate::state::router(&app.state, &answers, &app.state_turns).route_layer(
        middleware::from_fn_with_state(app.limits.bodies.clone(), bodies::admit),
    );
    finished(open_routes().router.merge(state), app)
}

/// Routes that need no token.
fn open_routes() -> Routes<App> {
    Routes::new()
        .at(Get, "/health", ops::health)
        .at(Get, "/health/live", ops::live)
        .at(Get, "/health/ready", ops::ready)
        .at(Get, "/ping", ops::health)
}

/// Routes below `/v1`.
fn v1_routes() -> Routes<App> {
    Routes::new()
        .at(Get, "/basins", basins::list)
        .at(Post, "/basins", basins::create)
        .at(Get, "/basins/{basin}", basins::config)
        .at(Put, "/basins/{basin}", basins::ensure)
        .at(Patch, "/basins/{basin}", basins::reconfigure)
        .at(Delete, "/basins/{basin}", basins::delete)
        .at(Get, "/streams", streams::list)
        .at(Post, "/streams", streams::create)
        .at(Get, "/streams/{stream}", streams::config)
        .at(Put, "/streams/{stream}", streams::ensure)
        .at(Patch, "/streams/{stream}", streams::reconfigure)
        .at(Delete, "/streams/{stream}", streams::delete)
        .at(Get, "/streams/{stream}/records", records::read)
        .at(Post, "/streams/{stream}/records", records::append)
        .at(Get, "/streams/{stream}/records/tail", records::check_tail)
        .at(Get, "/access-tokens", access_tokens::list)
        .at(Post, "/access-tokens", access_tokens::issue)
        .at(Delete, "/access-tokens/{id}", access_tokens::revoke)
        .at(Get, "/metrics", usage_metrics::account)
        .at(Get, "/metrics/{basin}", usage_metrics::basin)
        .at(Get, "/metrics/{basin}/{stream}", usage_metrics::stream)
        .at(Get, "/locations", locations::list)
        .at(Get, "/locations/default", locations::default)
        .at(Put, "/locations/default", locations::set_default)
}

/// What is added to all routes of a listener.
fn finished(router: Router<App>, app: App) -> Router {
    let router = match &app.forwarder {
        // Behind the gate, and before anything that reads a body or holds an answer.
        Some(forwarder) => router.route_layer((
            middleware::from_fn_with_state(forwarder.clone(), forward),
            ShareLayer,
        )),
        None => router,
    };
    // One service for three layers: a route boxes and clones its service for each request, so each call of
    // `route_layer` costs as much as a layer.
    let router = router.route_layer((
        middleware::from_fn(ops::count),
        ShareLayer,
        middleware::from_fn(drain_body::read_on),
        ShareLayer,
        // Every route is behind it.
        middleware::from_fn(gate),
        ShareLayer,
    ));
    let router = match app.traces.is_on() {
        true => router.route_layer((
            middleware::from_fn_with_state(
                (app.traces.clone(), app.forwarder.is_some()),
                traces::trace,
            ),
            ShareLayer,
        )),
        false => router,
    };
    router
        .fallback(ops::no_route)
        .method_not_allowed_fallback(ops::no_method)
        .with_state(app)
}

/// All routes.
pub fn router(app: App) -> Router {
    let answers = app.limits.answers.clone();
    let compress = SizeAbove::new(COMPRESS_ABOVE)
        .and(held_answers::OfKnownSize)
        .and(NotForContentType::SSE)
        .and(NotForContentType::const_new("s2s/proto"));
    let coded = CodedBodies::new(app.limits.bodies.clone(), app.limits.request_body);
    let v1 = v1_routes()
        .router
        .route_layer((
            middleware::from_fn(hidden_prefix::hide),
            ShareLayer,
            middleware::from_fn(read_while_valid),
            ShareLayer,
        ))
        .route_layer((
            CompressionLayer::new().compress_when(compress),
            DefaultBodyLimit::max(app.limits.request_body),
            middleware::from_fn_with_state(app.usage.clone(), counted_operations::count),
            ShareLayer,
        ))
        .route_layer((
            middleware::from_fn_with_state(app.limits.bodies.clone(), bodies::admit),
            ShareLayer,
            middleware::from_fn_with_state(coded, coded_bodies::decode),
            ShareLayer,
            // What is compressed is held as it is sent, and needs no encoder any longer.
            middleware::from_fn_with_state(answers.clone(), held_answers::hold),
            ShareLayer,
        ));
    let admitted = (
        middleware::from_fn_with_state(app.limits.bodies.clone(), bodies::admit),
        ShareLayer,
    );
    let routes = open_routes().at(Get, "/metrics", ops::metrics);
    let router = routes
        .router
        .nest("/v1", v1)
        .merge(
            crate::admin::router(
                app.node.clone(),
                app.partitions,
                (app.history.clone(), app.usage.clone()),
            )
            .route_layer((
                admitted.clone(),
                middleware::from_fn(read_while_valid),
                ShareLayer,
            )),
        )
        .merge(crate::state::router(&app.state, &answers, &app.state_turns).route_layer(admitted));
    finished(router, app)
}

#[cfg(test)]
mod access_table;
