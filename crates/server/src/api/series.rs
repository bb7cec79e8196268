//! Series of labelled counters that are registered at the start.
//!
//! A series that begins to exist with the first failure has that failure as its first value, so an alert
//! on its increase does not see it.

/// Routes of the S2 API and beside it, and their methods. Routes that are not implemented are left out: they
/// fail in no other way.
const ROUTES: &[(&str, &[&str])] = &[
    ("/health", &["GET"]),
    ("/health/live", &["GET"]),
    ("/health/ready", &["GET"]),
    ("/ping", &["GET"]),
    ("/metrics", &["GET"]),
    ("/v1/basins", &["GET", "POST"]),
    ("/v1/basins/{basin}", &["GET", "PUT", "PATCH", "DELETE"]),
    ("/v1/streams", &["GET", "POST"]),
    ("/v1/streams/{stream}", &["GET", "PUT", "PATCH", "DELETE"]),
    ("/v1/streams/{stream}/records", &["GET", "POST"]),
    ("/v1/access-tokens", &["GET", "POST"]),
    ("/v1/access-tokens/{id}", &["DELETE"]),
    ("/v1/streams/{stream}/records/tail", &["GET"]),
    ("/v1/metrics", &["GET"]),
    ("/v1/metrics/{basin}", &["GET"]),
    ("/v1/metrics/{basin}/{stream}", &["GET"]),
    ("/v1/locations", &["GET"]),
    ("/v1/locations/default", &["GET", "PUT"]),
];

/// Statuses of failures that clients alone do not cause.
const FAILURES: [&str; 6] = ["408", "429", "500", "502", "503", "504"];

/// The counter of all requests.
pub(super) const REQUESTS: &str = "esker_http_requests_total";

/// The counter of sessions that ended with an error: their heads were answered with 200.
const SESSION_ERRORS: &str = "esker_http_session_errors_total";

/// Further statuses that sessions end with.
const SESSION_STATUSES: [&str; 8] = ["400", "401", "403", "404", "409", "412", "416", "422"];

/// Counts a session that ended with an error.
pub(super) fn session_ended(status: http::StatusCode) {
    metrics::counter!(SESSION_ERRORS, "status" => status.as_str().to_owned()).increment(1);
}

/// Registers the series of failures, at zero if they are new.
pub(crate) fn register() {
    let admin = crate::admin::operations();
    let routes = ROUTES
        .iter()
        .flat_map(|(route, methods)| methods.iter().map(|method| (route.to_string(), *method)))
        .chain(admin);
    for (route, method) in routes {
        for status in FAILURES {
            metrics::counter!(
                REQUESTS, "route" => route.clone(), "method" => method, "status" => status
            )
            .increment(0);
        }
    }
    for status in FAILURES.iter().chain(&SESSION_STATUSES) {
        metrics::counter!(SESSION_ERRORS, "status" => *status).increment(0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::{open_routes, v1_routes};
    use super::*;

    #[test]
    fn the_failures_of_every_route_are_counted_from_the_start() {
        let found: BTreeSet<_> = [open_routes(), v1_routes()]
            .into_iter()
            .flat_map(|routes| routes.listed)
            .map(|(_, path)| path.to_owned())
            .collect();
        let listed = |path: &str| {
            let known = |it: &str| ROUTES.iter().any(|(route, _)| *route == it);
            known(path) || known(&format!("/v1{path}"))
        };
        let without: [&str; 0] = [];
        for path in &found {
            let implemented = !without.iter().any(|it| path.starts_with(it));
            assert_eq!(listed(path), implemented, "{path}");
        }
        for (route, _) in ROUTES {
            let path = route.strip_prefix("/v1").unwrap_or(route);
            assert!(found.contains(path), "{route} is no route");
        }
        let admin: Vec<_> = crate::admin::operations().collect();
        assert!(
            admin.contains(&("/esker/v1/status".to_owned(), "GET")),
            "{admin:?}"
        );
    }
}
