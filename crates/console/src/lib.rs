//! The console: pages for the operator who would rather look than read.
//!
//! One glance answers whether everything is healthy, how long a recovery would take now, what the snapshots cost
//! and what changed. The pages change nothing: each shows the command that does what one might want to do next.
//!
//! | module | what it holds |
//! |---|---|
//! | [`pages`] | the pages, one module each |
//! | `api_client` | requests to the APIs of the same server, with the token of whoever looks |
//! | `sessions` | who is signed in |
//! | `access` | the checks before a page, and the headers of each answer |
//! | `live` | what changes while somebody looks, as server-sent events |
//! | `viewers` | who may have how many live pages |
//! | `layout` | what all pages have in common |
//! | `ruler`, `plot` | pictures, as SVG |
//! | `words` | numbers, sizes and times as people read them |
//! | `shell` | commands to copy, with names as a shell reads them |
//! | `assets` | the style sheet and the script |
//!
//! # Flow
//!
//! A page asks the admin API and the S2 API for what it shows, in the same process, through the same router that
//! clients use, with the token of the session: so it shows what the token's scopes permit, and in a cluster the
//! answer comes from the node that has it. Then it renders HTML. Everything that comes from outside is escaped by
//! the templates. There is no inline script and no external resource.
//!
//! This crate knows nothing of nodes, partitions and databases: what it shows, the APIs have.

#![warn(missing_docs)]

mod access;
mod api_client;
mod assets;
mod layout;
mod live;
mod pages;
mod plot;
mod ruler;
mod sessions;
mod shell;
mod viewers;
mod words;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use esker_server::front::FrontParts;
use tokio_util::sync::CancellationToken;

use api_client::ApiClient;
use sessions::Sessions;
use viewers::Viewers;

/// What handlers need.
#[derive(Clone)]
struct Console {
    api: ApiClient,
    sessions: Sessions,
    rules: Arc<access::Rules>,
    viewers: Viewers,
    stop: CancellationToken,
}

/// The router of a listener with the console in front of its APIs.
pub fn front(parts: FrontParts) -> Router {
    let FrontParts {
        api,
        guard,
        address,
        needs_token,
        has_tls,
        stop,
    } = parts;
    let console = Console {
        api: ApiClient::new(api.clone()),
        sessions: Sessions::default(),
        rules: Arc::new(access::Rules::new(guard, address, needs_token, has_tls)),
        viewers: Viewers::default(),
        stop,
    };
    Router::new()
        .route("/", get(pages::overview::page))
        .route("/dashboard", get(pages::overview::page))
        .route("/dashboard/snapshots", get(pages::snapshots::page))
        .route("/dashboard/snapshot", get(pages::snapshot::page))
        .route("/dashboard/why", get(pages::why::page))
        .route("/dashboard/prune", get(pages::prune::page))
        .route("/dashboard/streams", get(pages::streams::page))
        .route("/dashboard/stream", get(pages::stream::page))
        .route("/dashboard/record", get(pages::record::page))
        .route("/dashboard/state", get(pages::state::page))
        .route("/dashboard/key", get(pages::key::page))
        .route("/dashboard/cluster", get(pages::cluster::page))
        .route("/dashboard/live/overview", get(pages::overview::live))
        .route("/dashboard/live/cluster", get(pages::cluster::live))
        .route("/dashboard/live/commits", get(pages::state::live))
        .route("/dashboard/live/records", get(pages::stream::live))
        .route(
            "/dashboard/sign-in",
            get(pages::sign_in::page)
                .post(pages::sign_in::sign_in)
                .layer(DefaultBodyLimit::max(pages::sign_in::MAX_FORM_BYTES)),
        )
        .route("/dashboard/sign-out", post(pages::sign_in::sign_out))
        .route("/dashboard/assets/{name}", get(assets::asset))
        .route_layer(from_fn_with_state(console.clone(), access::check))
        .with_state(console)
        .fallback_service(api)
}
