//! The layers that find out who sends a request, and whether its route is for them.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use esker_node::{Client, FairBudget, Node, SharePolicy};

use crate::auth::operation::Effect;
use crate::auth::rules::Rule;
use crate::auth::{Access, AccessError, Authority, PeerAddress, Principal, error, token};
use crate::client::{client, of_address};
use crate::forward::Forwarder;
use crate::request_guard::is_grpc;
use crate::state;
use crate::windows::Window;

/// Requests with unknown tokens that wait for the catalog at one time; one round answers all of them.
const MAX_LEARNING: usize = 64;
/// How long one more waits for its turn, which goes by address: nothing else is known of it.
const TURN_TIMEOUT: Duration = Duration::from_secs(2);

/// A router that answers everybody, as a server does for which no authentication is configured.
pub fn without_authentication(router: Router, node: &Node) -> Router {
    let authority = Arc::new(Authority::new(None, node.tokens()));
    router.layer(from_fn_with_state(authority, identify))
}

/// A router that answers those with a valid token, as a server does that has this root token.
pub fn with_root_token(router: Router, node: &Node, text: &str) -> Router {
    let authority = Authority::new(Some(token::hash(text)), node.tokens());
    router.layer(from_fn_with_state(Arc::new(authority), identify))
}

/// Puts [`Principal`] and [`Access`] of the sender into the request's extensions. Without a valid token, only
/// open paths are answered.
pub(crate) async fn identify(
    State(authority): State<Arc<Authority>>,
    mut request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<PeerAddress>().copied();
    let principal = match is_open(&request) && authority.is_on() {
        // A failed attempt is none here: whoever sends one learns nothing from the answer.
        true => Principal::unauthenticated(peer.as_ref()),
        false => {
            let headers = request.headers();
            let find = || authority.identify(headers, peer.as_ref());
            let found = match needs_admin_read(&request) {
                true => find(),
                false => authority.find_current(find).await,
            };
            match found {
                Ok(principal) => principal,
                Err(error) => return refused(request, error),
            }
        }
    };
    let is_known = !matches!(principal, Principal::Unauthenticated(_));
    let extensions = request.extensions_mut();
    extensions.insert(principal.clone());
    extensions.insert(Access::new(authority, principal));
    let extensions = request.extensions();
    if is_known && let Some(window) = extensions.get::<Arc<Window>>() {
        window.identified(|| client(extensions));
    }
    next.run(request).await
}

/// What [`learn`] needs.
#[derive(Clone)]
pub(crate) struct Learning {
    /// Knows the tokens of the catalog as this node has applied it.
    pub(crate) authority: Arc<Authority>,
    /// The cluster.
    pub(crate) forwarder: Forwarder,
    turns: FairBudget,
}

impl Learning {
    pub(crate) fn new(authority: Arc<Authority>, forwarder: Forwarder) -> Learning {
        Learning {
            authority,
            forwarder,
            turns: FairBudget::new(MAX_LEARNING, SharePolicy::All),
        }
    }
}

/// Before identification, on a node of a cluster: a token that is unknown may have been issued since what this node
/// has applied of the catalog, which it then waits for.
pub(crate) async fn learn(
    State(learning): State<Learning>,
    request: Request,
    next: Next,
) -> Response {
    if is_open(&request) || !learning.authority.is_unknown(request.headers()) {
        return next.run(request).await;
    }
    // Whoever has failed too often is refused before anything is done for it, also with a token that was issued a
    // moment ago.
    let peer = request.extensions().get::<PeerAddress>().copied();
    if let Err(limited) = learning.authority.check_failures(peer.as_ref()) {
        return refused(request, limited);
    }
    let read = async {
        // Whoever has no valid token must not pile up here.
        let client = peer.map_or_else(Client::default, |peer| of_address(peer.0.ip()));
        let turn = learning.turns.take(client, 1, TURN_TIMEOUT).await;
        let _turn = turn.map_err(|_| "too many unknown tokens wait for the catalog".to_owned())?;
        learning.forwarder.read_index(0).await
    };
    match read.await {
        Ok(()) => next.run(request).await,
        Err(why) => refused(request, AccessError::Unavailable(why)),
    }
}

/// Refuses requests of senders who do not have what the route needs, before a body is read. A route without a
/// rule is refused to everybody.
pub(crate) async fn gate(request: Request, next: Next) -> Response {
    match check(&request) {
        Ok(()) => next.run(request).await,
        Err(error) => refused(request, error),
    }
}

/// Around the handlers: a request that changes nothing is not answered once the token of its sender has been revoked or
/// has expired, however long it waits for its turn. Handlers of changes look at the token when their turn has come.
pub(crate) async fn read_while_valid(request: Request, next: Next) -> Response {
    let lease = match Access::of(request.extensions()) {
        Ok(access) if request.method().is_safe() && !needs_admin_read(&request) => access.lease(),
        _ => return next.run(request).await,
    };
    match lease.while_valid(next.run(request)).await {
        Ok(response) => response,
        Err(refusal) => {
            error::count_refusal(&refusal);
            refusal.into_response()
        }
    }
}

fn check(request: &Request) -> Result<(), AccessError> {
    let access = Access::of(request.extensions())?;
    let path = request.uri().path();
    let rule = match is_grpc(path) {
        // A method that does not exist is answered as such, to those who have a token.
        true => Rule::of_call(path).unwrap_or(Rule::Valid),
        false => {
            let route = request.extensions().get::<MatchedPath>();
            let route = route.map_or("", MatchedPath::as_str);
            match Rule::of(request.method().as_str(), route) {
                Some(rule) => rule,
                // The router refuses the method.
                None if Rule::has_path(route) => Rule::Valid,
                None => {
                    return Err(AccessError::Forbidden(format!(
                        "{route}, which has no rule"
                    )));
                }
            }
        }
    };
    rule.check(&access)
}

fn is_open(request: &Request) -> bool {
    let path = request.uri().path();
    let rule = match is_grpc(path) {
        true => Rule::of_call(path),
        false => Rule::of(request.method().as_str(), path),
    };
    rule == Some(Rule::Open)
}

/// Whether a request needs `admin.read`, for which it does not matter whether the catalog here is current.
fn needs_admin_read(request: &Request) -> bool {
    let path = request.uri().path();
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map_or(path, MatchedPath::as_str);
    let rule = Rule::of(request.method().as_str(), route);
    rule == Some(Rule::Admin(Effect::Read))
}

fn refused(request: Request, refusal: AccessError) -> Response {
    error::count_refusal(&refusal);
    match is_grpc(request.uri().path()) {
        true => state::status::no_access(&refusal).into_http(),
        false => refusal.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::middleware;
    use axum::routing::get;
    use esker_node::{HostProblems, TokenScope};
    use http::{StatusCode, header};
    use tower::ServiceExt as _;

    use super::*;
    use crate::auth::CatalogCheck;
    use crate::auth::authority::tests::{Issued, authority, stored};

    #[tokio::test(start_paused = true)]
    async fn without_contact_with_the_catalog_an_issued_token_looks_at_the_server_and_does_nothing_else()
     {
        let scope = TokenScope {
            admin_read: true,
            ..TokenScope::default()
        };
        let issued = Issued::new(vec![stored("monitor", scope)]);
        let catalog = CatalogCheck::new(
            || async { Err("no majority".to_owned()) },
            HostProblems::default(),
        );
        let on = authority(Some("a root token of this test"), &issued).in_cluster(catalog);
        let answer = get(async || "answered").post(async || "answered");
        let snapshot = "/esker/v1/partitions/{partition}/snapshots/{snapshot}";
        let router = Router::new()
            .route("/metrics", answer.clone())
            .route("/esker/v1/status", answer.clone())
            .route("/esker/v1/cluster", answer.clone())
            .route("/esker/v1/state", answer.clone())
            .route("/esker/v1/partitions/{partition}/snapshots", answer.clone())
            .route(snapshot, answer.clone())
            .route("/v1/basins", answer)
            .layer(middleware::from_fn_with_state(Arc::new(on), identify));
        let ask = async |method: &str, path: &str, token: &str| {
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header(header::AUTHORIZATION, format!("Bearer {token}"))
                .body(Body::empty())
                .unwrap();
            router.clone().oneshot(request).await.unwrap().status()
        };
        for path in [
            "/metrics",
            "/esker/v1/status",
            "/esker/v1/cluster",
            "/esker/v1/partitions/1/snapshots",
            "/esker/v1/partitions/1/snapshots/2",
        ] {
            assert_eq!(ask("GET", path, "monitor").await, StatusCode::OK, "{path}");
            let unknown = ask("GET", path, "unknown").await;
            assert_eq!(unknown, StatusCode::UNAUTHORIZED, "{path}");
        }
        for (method, path) in [
            ("GET", "/v1/basins"),
            ("GET", "/esker/v1/state"),
            ("POST", "/esker/v1/partitions/1/snapshots"),
        ] {
            let refused = ask(method, path, "monitor").await;
            assert_eq!(refused, StatusCode::SERVICE_UNAVAILABLE, "{method} {path}");
        }
    }
}
