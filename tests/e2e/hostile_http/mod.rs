//! Requests that are made to harm: two meanings of one request, headers in values, floods of frames. Each
//! ends with a polite client that is served.

mod frames;
mod http1;
mod http2;

use crate::support::Server;
use crate::support::http::TRANSPORTS;

/// What the server may grow by, whatever is sent, bytes.
const MAX_GROWTH: u64 = 48 * 1024 * 1024;

/// Checks that the server serves, over both versions of HTTP.
async fn polite_client_is_served(server: &Server) {
    for transport in TRANSPORTS {
        let http = server.http(transport);
        http.get("/health").send().await.expect(200);
        http.get("/v1/basins").send().await.expect(200);
    }
}

/// Checks that memory is what it was before, within a bound.
#[track_caller]
fn assert_bounded(server: &Server, before: u64) {
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < MAX_GROWTH, "{} MiB", grown >> 20);
}
