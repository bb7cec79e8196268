//! The admin API, below `/esker/v1`: the status of a node, positions of streams, and partition snapshots.
//!
//! | module | what it holds |
//! |---|---|
//! | [`status`] | `GET /status` |
//! | [`streams`] | everything below `/streams/{stream}` |
//! | [`access_tokens`] | everything below `/access-tokens` |
//! | [`basins`] | everything below `/basins/{basin}` |
//! | [`snapshots`] | everything below `/partitions/{partition}` |
//! | [`cluster`], [`replicas`] | everything below `/cluster` |
//! | [`state`] | everything below `/state` |
//! | [`history`] | `GET /history` |
//! | [`long_operations`] | turns of what takes long |
//! | [`request`] | paths, headers, queries and bodies, and how they are refused |
//! | [`error`] | codes |
//!
//! Routes and document are generated from the same annotations, so `/esker/v1/openapi.json` lists exactly
//! the operations that exist. A test calls each operation and checks its answer against the schema.
//!
//! Bounds: a request body has at most [`BODY`] bytes. Of the long operations (proving, verifying,
//! pruning) one runs per partition at a time; others wait for 10 s, in turns by principal, and are then refused as `busy`.
//! An operation continues when its client disconnects.

pub mod access_tokens;
pub mod basins;
pub mod cluster;
pub mod error;
pub mod history;
mod long_operations;
mod replicas;
mod request;
pub mod snapshots;
pub mod state;
pub mod status;
pub mod streams;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::IntoResponse;
use esker_node::Node;
use http::header;
use time::OffsetDateTime;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Guarded;
use crate::sample_history::History;
use crate::turns::Turns;
use crate::usage::Usage;

pub use error::{AdminError, CODES, PROBLEMS};
use long_operations::LongOperations;

/// Most bytes of a request's body.
pub const BODY: usize = 64 * 1024;

/// What the document says beside the operations.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Esker admin API",
        description = "Where a node and its streams stand, and its partition snapshots."
    ),
    tags(
        (name = "status", description = "Where a node stands"),
        (name = "streams", description = "Where a stream stands"),
        (name = "access tokens", description = "What the S2 API has no operations for"),
        (name = "cluster", description = "The nodes of the cluster, and who leads what"),
        (name = "state", description = "What the state store has"),
        (name = "snapshots", description = "The partitions' snapshots in the repository"),
    )
)]
struct Document;

/// What handlers need.
#[derive(Clone)]
struct Admin {
    node: Guarded<Node>,
    long: LongOperations,
    /// Turns for reading pages of the state store.
    pages: Turns,
    /// Turns for reading the repository.
    repository: Turns,
    /// Turns for reading the status.
    status: Turns,
    history: History,
    usage: Usage,
    started_at: OffsetDateTime,
    document: Arc<str>,
}

impl Admin {
    fn new(
        node: Guarded<Node>,
        partitions: u64,
        (history, usage): (History, Usage),
        document: String,
    ) -> Admin {
        Admin {
            started_at: OffsetDateTime::now_utc(),
            usage,
            node,
            long: LongOperations::new(partitions),
            pages: Turns::of_pages(),
            repository: Turns::of_repository(),
            status: Turns::of_status(),
            history,
            document: document.into(),
        }
    }
}

/// All routes, for a node with so many partitions, with the catalog, and what the server has measured.
pub(crate) fn router<S: Clone + Send + Sync + 'static>(
    node: Guarded<Node>,
    partitions: u64,
    measured: (History, Usage),
) -> Router<S> {
    let (router, document) = open_api().split_for_parts();
    // The document is built from constants, so this cannot fail: a test builds it too.
    let document = document.to_pretty_json().unwrap_or_default();
    router
        .layer(DefaultBodyLimit::max(BODY))
        .with_state(Admin::new(node, partitions, measured, document))
}

/// This document.
#[utoipa::path(
    get,
    path = "/esker/v1/openapi.json",
    operation_id = "openapi",
    tag = "status",
    responses((status = 200, description = "OpenAPI 3.1", body = Object))
)]
async fn openapi(State(admin): State<Admin>) -> impl IntoResponse {
    let json = [(header::CONTENT_TYPE, "application/json")];
    (json, admin.document.to_string())
}

/// Path and method of every operation.
pub(crate) fn operations() -> impl Iterator<Item = (String, &'static str)> {
    let paths = open_api().split_for_parts().1.paths.paths.into_iter();
    paths.flat_map(|(path, item)| {
        let methods = [
            ("GET", item.get.is_some()),
            ("POST", item.post.is_some()),
            ("PUT", item.put.is_some()),
            ("PATCH", item.patch.is_some()),
            ("DELETE", item.delete.is_some()),
        ];
        let methods = methods.into_iter().filter(|(_, there)| *there);
        methods.map(move |(method, _)| (path.clone(), method))
    })
}

fn open_api() -> OpenApiRouter<Admin> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(openapi))
        .routes(routes!(status::status))
        .routes(routes!(history::history))
        .routes(routes!(streams::position))
        .routes(routes!(streams::activity))
        .routes(routes!(state::status))
        .routes(routes!(state::agents))
        .routes(routes!(state::keys))
        .routes(routes!(state::value))
        .routes(routes!(state::versions))
        .routes(routes!(state::commits))
        .routes(routes!(basins::adopt))
        .routes(routes!(access_tokens::confirm))
        .routes(routes!(cluster::show))
        .routes(routes!(cluster::remove))
        .routes(routes!(cluster::drain))
        .routes(routes!(cluster::activate))
        .routes(routes!(cluster::transfer_leader))
        .routes(routes!(cluster::check))
        .routes(routes!(cluster::trust))
        .routes(routes!(snapshots::list, snapshots::create))
        .routes(routes!(snapshots::show))
        .routes(routes!(snapshots::files))
        .routes(routes!(snapshots::last_sweep))
        .routes(routes!(snapshots::diff))
        .routes(routes!(snapshots::verify))
        .routes(routes!(snapshots::prove))
        .routes(routes!(snapshots::why))
        .routes(routes!(snapshots::prune))
}
