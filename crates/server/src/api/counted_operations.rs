//! Counts the operations of the account and of basins as usage.
//!
//! Appends and reads are counted where their bytes are known; metrics of the account and of basins have them
//! by minutes, not by requests.

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::Method;
use s2_common::access::Operation;

use crate::forwarded::is_forwarded;
use crate::usage::Usage;

/// Whose operation a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// The account's.
    Account,
    /// That of the basin in the header.
    Basin,
}

/// The operation of a route and a method, if it is counted by requests.
fn operation(route: &str, method: &Method) -> Option<(Operation, Scope)> {
    use Operation as Op;
    use Scope::{Account, Basin};
    let route = route.strip_prefix("/v1").unwrap_or(route);
    Some(match (route, method.as_str()) {
        ("/basins", "GET") => (Op::ListBasins, Account),
        ("/basins", "POST") | ("/basins/{basin}", "PUT") => (Op::CreateBasin, Account),
        ("/basins/{basin}", "GET") => (Op::GetBasinConfig, Account),
        ("/basins/{basin}", "PATCH") => (Op::ReconfigureBasin, Account),
        ("/basins/{basin}", "DELETE") => (Op::DeleteBasin, Account),
        ("/access-tokens", "GET") => (Op::ListAccessTokens, Account),
        ("/access-tokens", "POST") => (Op::IssueAccessToken, Account),
        ("/access-tokens/{id}", "DELETE") => (Op::RevokeAccessToken, Account),
        ("/metrics", "GET") => (Op::AccountMetrics, Account),
        ("/metrics/{basin}", "GET") => (Op::BasinMetrics, Account),
        ("/metrics/{basin}/{stream}", "GET") => (Op::StreamMetrics, Account),
        ("/locations", "GET") => (Op::ListLocations, Account),
        ("/locations/default", "GET") => (Op::GetDefaultLocation, Account),
        ("/locations/default", "PUT") => (Op::SetDefaultLocation, Account),
        ("/streams", "GET") => (Op::ListStreams, Basin),
        ("/streams", "POST") | ("/streams/{stream}", "PUT") => (Op::CreateStream, Basin),
        ("/streams/{stream}", "GET") => (Op::GetStreamConfig, Basin),
        ("/streams/{stream}", "PATCH") => (Op::ReconfigureStream, Basin),
        ("/streams/{stream}", "DELETE") => (Op::DeleteStream, Basin),
        ("/streams/{stream}/records/tail", "GET") => (Op::CheckTail, Basin),
        _ => return None,
    })
}

fn is_of_metrics(operation: Operation) -> bool {
    use Operation::{AccountMetrics, BasinMetrics, StreamMetrics};
    matches!(operation, AccountMetrics | BasinMetrics | StreamMetrics)
}

/// Counts a request that succeeds.
pub async fn count(State(usage): State<Usage>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>();
    let counted = route.and_then(|route| operation(route.as_str(), request.method()));
    // The node that a client asks for metrics asks all others: that is one request.
    let is_of_all = is_forwarded(request.extensions());
    let counted = counted.filter(|(operation, _)| !(is_of_all && is_of_metrics(*operation)));
    let Some((operation, scope)) = counted else {
        return next.run(request).await;
    };
    let header = request.headers().get("s2-basin");
    let basin = header.and_then(|name| name.to_str().ok().map(str::to_owned));
    let response = next.run(request).await;
    if response.status().is_success() {
        match (scope, basin) {
            (Scope::Account, _) => usage.requested(operation, None),
            (Scope::Basin, Some(basin)) => usage.requested(operation, Some(&basin)),
            // Without a basin, it would not have succeeded.
            (Scope::Basin, None) => {}
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_operation_but_those_on_records_is_counted_by_requests() {
        let routes = [
            "/basins",
            "/basins/{basin}",
            "/access-tokens",
            "/access-tokens/{id}",
            "/metrics",
            "/metrics/{basin}",
            "/metrics/{basin}/{stream}",
            "/locations",
            "/locations/default",
            "/streams",
            "/streams/{stream}",
            "/streams/{stream}/records",
            "/streams/{stream}/records/tail",
        ];
        let methods = [
            Method::GET,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
        ];
        let counted = routes.iter().flat_map(|route| {
            let of_route = methods.iter().filter_map(move |m| operation(route, m));
            of_route.map(|(operation, _)| operation)
        });
        let counted: HashSet<_> = counted.collect();
        let by_minutes = [
            Operation::Append,
            Operation::Read,
            Operation::Trim,
            Operation::Fence,
        ];
        let expected = esker_node::OPERATIONS.into_iter();
        let expected = expected.filter(|operation| !by_minutes.contains(operation));
        assert_eq!(counted, expected.collect());
    }
}
