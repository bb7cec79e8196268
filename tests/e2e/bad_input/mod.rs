//! Input that breaks a rule: it is refused with a status and a code that name the rule, and nothing is
//! appended.

mod bodies;
mod frames;
mod names;
mod records;
mod transport;

use s2_sdk::S2Stream;

use crate::support::Server;
use crate::support::sdk;

const RECORDS: &str = "/v1/streams/orders/records";

/// A server with basin `test-basin` and stream `orders`.
async fn orders() -> (Server, S2Stream) {
    let server = Server::fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    (server, stream)
}

/// Checks that the server works, and nothing was appended.
async fn untouched(server: &Server, stream: &S2Stream) {
    let health = server.http1().get("/health").send().await;
    assert_eq!(health.expect(200).text(), "OK");
    assert_eq!(stream.check_tail().await.unwrap().seq_num, 0);
}
